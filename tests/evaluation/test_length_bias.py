"""Curves in the length: found, subtracted, and told from their absence."""

import numpy as np
import pytest

from rmjax.data.records import pairwise_wins
from rmjax.errors import InputError
from rmjax.evaluation import length_bias
from rmjax.evaluation.length import pearson
from rmjax.evaluation.scored import Scored
from rmjax.heads.length import LinearLength


def hump(n):
  return np.minimum(n, 12) - 0.3 * np.maximum(n - 12, 0)


def records(bias, count=300, noise=0.3, gold=True):
  """Rewards are quality + bias(length) + noise; quality has nothing to do with length."""
  rng, out = np.random.default_rng(0), []
  for index in range(count):
    lengths, quality = rng.integers(2, 40, 4), rng.normal(size=4)
    rewards = quality + bias(lengths) + noise * rng.normal(size=4)
    wins = pairwise_wins(4, [(i, j, float(quality[i] > quality[j])) for i in range(4) for j in range(i)])
    out.append(Scored(index, rewards, rewards[:, None] - rewards[None, :], lengths, wins, group=index, gold=quality if gold else None))
  return out


def test_the_curve_is_found_where_a_line_is_not_enough():
  rng = np.random.default_rng(1)
  lengths = rng.integers(2, 40, 2000)
  rewards = 5 + 0.1 * (hump(lengths) + rng.normal(size=2000))
  curve = length_bias.fit_curve(lengths, rewards)
  grid = np.arange(3, 39)
  assert pearson(curve(grid), hump(grid)) > 0.98 and np.max(np.abs(curve(grid) - 5 - 0.1 * hump(grid))) < 0.15
  assert pearson(length_bias.fit_curve(lengths, rewards, LinearLength())(grid), hump(grid)) < 0.6


def test_subtraction_gives_the_quality_back():
  biased = records(lambda n: 0.5 * hump(n))
  before = length_bias.dependence(biased)
  after = length_bias.dependence(length_bias.curve_subtraction(biased[:150])(biased[150:]))
  assert before['length_probe'] > 0.7 and abs(after['length_probe']) < 0.15
  assert abs(after['gold_length_gap']) < 0.06 < 0.1 < abs(before['gold_length_gap'])
  (record,) = length_bias.curve_subtraction(biased[:150])(biased[150:151])
  np.testing.assert_allclose(record.logits, record.rewards[:, None] - record.rewards[None, :], atol=1e-9)


def test_a_tuned_penalty_undoes_a_straight_bias_of_either_sign_but_not_a_bend():
  gap = lambda scored: length_bias.dependence(scored)['gold_length_gap']
  for slope in (0.2, -0.2):
    straight = records(lambda n, slope=slope: slope * n)
    assert abs(gap(length_bias.length_penalty(straight[:150])(straight[150:]))) < 0.08 < 0.3 < abs(gap(straight))
  bent = records(lambda n: 0.5 * hump(n))
  assert length_bias.dependence(length_bias.length_penalty(bent[:150])(bent[150:]))['length_probe'] > 0.5
  with pytest.raises(InputError, match='tuned against gold'):
    length_bias.length_penalty(records(hump, gold=False))


def test_mutual_information_sees_what_a_correlation_misses():
  rng = np.random.default_rng(2)
  n = rng.integers(0, 41, 4000)
  bent = (n - 20.0) ** 2
  assert abs(pearson(n, bent)) < 0.1 < 1 < length_bias._mutual_information(bent, n)
  assert abs(length_bias._mutual_information(rng.normal(size=4000), n)) < 0.005
