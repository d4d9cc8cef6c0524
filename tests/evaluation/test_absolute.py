"""Absolute quality of each kind of head, by hand."""

import numpy as np
import pytest

from rmjax.evaluation.absolute import absolute_quality, auroc
from rmjax.evaluation.scored import Scored
from rmjax.heads.quality import QualityScores


def scored(index, scores, gold, rewards=None, **labels):
  gold = np.asarray(gold, float)
  rewards = np.zeros(len(gold)) if rewards is None else np.asarray(rewards, float)
  logits = rewards[:, None] - rewards[None, :]
  return Scored(index, rewards, logits, np.ones(len(gold), int), np.zeros(logits.shape), gold=gold, scores=scores, labels=labels)


def delta(*levels):
  """Log-probabilities of sure ratings 1..9, with places for more responses than there are, as a batch has them."""
  p = np.full((len(levels) + 2, 9), 1e-9)
  p[range(len(levels)), np.array(levels) - 1] = 1
  return np.log(p / p.sum(-1, keepdims=True)).astype(np.float32)


def test_an_ordinal_head_by_hand():
  records = [
    scored(0, delta(1, 5, 9), [0, 1, 2], quality=np.array([0, 1, 2]), contested=np.int32(0)),
    scored(1, delta(9, 2), [1.5, 0.5], quality=np.array([1, 0]), contested=np.int32(0)),
  ]
  found = absolute_quality(records)
  assert found['region_mass'] == pytest.approx(0.8, abs=1e-5) and found['quality_accuracy'] == pytest.approx(0.8)
  assert found['absolute_spearman'] == pytest.approx(np.corrcoef([0, 2, 4, 3, 1], [0, 2, 3.5, 3.5, 1])[0, 1])
  wide = scored(2, np.log(np.full((3, 9), 1 / 9, np.float32)), [1.0], quality=np.array([-1]), contested=np.int32(1))
  assert absolute_quality([*records, wide])['variance_auroc'] == 1.0


def test_a_quality_head_and_a_scalar_one():
  logits = np.log(np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3], [0, 0, 1]], np.float32) + 1e-6)
  records = [scored(0, QualityScores(np.zeros(4), logits), [0, 2, 1], quality=np.array([0, 1, 1]))]
  assert absolute_quality(records) == pytest.approx(dict(absolute_spearman=1.0, quality_accuracy=2 / 3))
  assert absolute_quality([scored(0, np.zeros(5), [0, 2, 1], rewards=[3, 1, 2])]) == pytest.approx(dict(absolute_spearman=-1.0))
  assert absolute_quality([]) == {}


def test_auroc_is_the_share_of_pairs_in_the_right_order():
  rng = np.random.default_rng(0)
  values, positive = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.4
  gaps = values[positive][:, None] - values[~positive][None, :]
  assert auroc(values, positive) == pytest.approx(np.mean((gaps > 0) + 0.5 * (gaps == 0)))
  assert np.isnan(auroc(values, np.ones(60, bool)))
