"""Figures of mixtures: by hand, and blind to the order of the components."""

import dataclasses

import numpy as np
import pytest

from rmjax.evaluation.mixture import head_accuracies, mixture_figures
from rmjax.evaluation.scored import Scored
from rmjax.heads.mixture import MixtureHead, MixtureScores
from rmjax.worlds.traits import Traits

WEIGHTS = ((2.0, -1.0, 0.0), (0.0, 2.0, -1.0), (-1.0, 0.0, 2.0))
WORLD = Traits(split='eval', size=60, weights=WEIGHTS, temperature=0.3)


def scored(components, gate=(1 / 3, 1 / 3, 1 / 3)):
  """Records as a mixture of `components(record)` [N, K] scores them."""
  found = []
  for index in range(len(WORLD)):
    record = WORLD[index]
    scores = MixtureScores(np.asarray(components(record), np.float32), np.log(np.asarray(gate, np.float32)))
    head = MixtureHead(components=scores.log_gate.shape[-1])
    found.append(
      Scored(
        index=index, rewards=np.asarray(head.reward(scores)), logits=np.asarray(head.preference_logits(scores)), lengths=np.ones(4, np.int64),
        wins=record.wins, gold=record.labels['gold'], probability=record.labels['probability'], labels=record.labels, scores=scores,
      )  # fmt: skip
    )
  return found


truth = lambda record: np.stack([record.labels[f'gold_{g}'] for g in range(3)], -1) / 0.3


def test_the_world_s_own_mixture_is_the_best_prediction():
  figures = mixture_figures(scored(truth))
  assert figures['excess_nll'] == pytest.approx(0, abs=1e-5) and figures['gate_entropy'] == pytest.approx(np.log(3))
  assert figures['best_head_accuracy'] == figures['matched_accuracy'] == 1


def test_a_single_model_stays_above_and_matches_nobody():
  single = mixture_figures(scored(lambda record: truth(record).mean(-1, keepdims=True), gate=(1.0,)))
  assert single['excess_nll'] > 0.01 and 'matched_accuracy' not in single and single['best_head_accuracy'] < 0.8


def test_the_order_of_components_does_not_matter_and_none_counts_twice():
  figures = mixture_figures(scored(lambda record: truth(record)[:, [2, 0, 1]]))
  assert figures['best_head_accuracy'] == figures['matched_accuracy'] == 1 and figures['excess_nll'] == pytest.approx(0, abs=1e-5)
  twice = mixture_figures(scored(lambda record: truth(record)[:, [0, 0, 1]]))
  assert twice['matched_accuracy'] <= twice['best_head_accuracy'] < 1


def test_by_hand():
  components, golds = [np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])], [np.array([[3.0, 2.0, 1.0]])]
  np.testing.assert_allclose(head_accuracies(components, golds), [[(1 + 1 + 0.5) / 3], [0]])
  np.testing.assert_allclose(head_accuracies(components, [np.array([[3.0, 3.0, 1.0]])]), [[(1 + 0.5) / 2], [0]])  # a tie in gold does not count


def test_other_heads_have_the_divergence_alone():
  plain = [dataclasses.replace(one, scores=one.rewards) for one in scored(truth)]
  assert set(mixture_figures(plain)) == {'excess_nll'}
