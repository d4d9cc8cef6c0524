"""Acc+: all pairs of one prompt right."""

import numpy as np
import pytest

from rmjax.data.records import pairwise_wins
from rmjax.evaluation.grouped import accuracy_plus
from rmjax.evaluation.length_bias import length_normalization
from rmjax.evaluation.scored import Scored
from rmjax.evaluation.summary import summary


def record(rewards, pairs, *, group, gold=None, lengths=None, index=0):
  rewards = np.asarray(rewards, np.float64)
  n = len(rewards)
  return Scored(
    index=index,
    rewards=rewards,
    logits=rewards[:, None] - rewards[None, :],
    lengths=np.asarray(lengths) if lengths else np.ones(n, np.int64),
    wins=pairwise_wins(n, pairs),
    group=group,
    gold=None if gold is None else np.asarray(gold, np.float32),
  )


def test_every_pair_of_a_prompt_has_to_be_right_records_of_it_together():
  right, wrong = [(0, 1, 1.0)], [(0, 1, 0.0)]
  scored = [record([1, 0], right, group=1), record([1, 0], right, group=1), record([1, 0], right, group=2), record([1, 0], wrong, group=2)]
  figures = accuracy_plus(scored)
  assert figures['accuracy_plus'] == 0.5 and summary(scored)['accuracy'] == 0.75 and 'gold_accuracy_plus' not in figures


def test_with_one_pair_a_prompt_it_is_the_accuracy():
  rng = np.random.default_rng(0)
  scored = [record(rng.normal(size=2), [(0, 1, float(rng.random() < 0.5))], group=g, gold=rng.normal(size=2)) for g in range(50)]
  figures, plain = accuracy_plus(scored), summary(scored)
  assert figures['accuracy_plus'] == pytest.approx(plain['accuracy']) and figures['gold_accuracy_plus'] == pytest.approx(plain['gold_accuracy'])
  assert figures['accuracy_plus_se'] == pytest.approx(plain['accuracy_se'])


def test_a_tie_in_the_scores_is_not_right_and_one_in_the_labels_does_not_count():
  assert accuracy_plus([record([1, 1], [(0, 1, 1.0)], group=1)])['accuracy_plus'] == 0
  scored = [record([2, 1, 0], [(0, 1, 1.0), (1, 2, 0.5)], group=1, gold=[1, 0, 5])]
  assert accuracy_plus(scored)['accuracy_plus'] == 1 and accuracy_plus(scored)['gold_accuracy_plus'] == 0


def test_rewards_judged_after_normalization():
  (found,) = length_normalization([])([record([3, 2], [(0, 1, 1.0)], group=0, lengths=[20, 4])])
  np.testing.assert_allclose(found.rewards, [3 / np.log(20), 2 / np.log(4)], rtol=1e-6)
  assert found.logits[0, 1] < 0 and found.logits[0, 1] == -found.logits[1, 0]
