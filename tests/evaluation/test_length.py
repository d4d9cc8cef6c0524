"""Length bias: correlations by hand, and the length-only baseline against a search."""

import itertools

import numpy as np
import pytest

from rmjax.evaluation import length


def test_pearson_by_hand():
  assert length.pearson(np.array([1.0, 2, 3]), np.array([1.0, 2, 4])) == pytest.approx(3 / np.sqrt(2 * 14 / 3))
  assert length.pearson(np.arange(5), 7 - 2 * np.arange(5)) == pytest.approx(-1)
  assert np.isnan(length.pearson(np.ones(3), np.arange(3)))
  assert np.isnan(length.pearson(np.empty(0), np.empty(0)))


def test_spearman_without_ties_is_the_formula_of_squared_rank_differences():
  rng = np.random.default_rng(0)
  for n in (3, 10, 101):
    x, y = rng.permutation(n), rng.permutation(n)
    assert length.spearman(x, y) == pytest.approx(1 - 6 * np.sum((x - y) ** 2) / (n * (n**2 - 1)))


def test_ties_share_their_mean_rank():
  np.testing.assert_array_equal(length.ranks(np.array([5.0, 1, 5, 3, 5])), [4, 1, 4, 2, 4])


def test_a_monotone_transform_leaves_spearman_alone():
  rng = np.random.default_rng(0)
  rewards, lengths = rng.normal(size=200), rng.integers(1, 40, 200)
  assert length.spearman(np.exp(3 * rewards), lengths) == pytest.approx(length.spearman(rewards, lengths))
  assert length.spearman(-rewards, lengths) == pytest.approx(-length.spearman(rewards, lengths))


def test_within_a_record_the_bias_is_seen_that_prompts_hide():
  rng = np.random.default_rng(0)
  records = np.repeat(np.arange(300), 3)
  prompt = np.repeat(rng.normal(0, 50, 300), 3)
  deviation = rng.normal(size=900)
  lengths, rewards = 200 + prompt + deviation, -prompt + deviation  # long prompts are hard, long answers liked
  assert length.pearson(rewards, lengths) < -0.99
  assert length.pearson(length.within(rewards, records), length.within(lengths, records)) == pytest.approx(1)
  assert length.pearson(length.ranks_within(rewards, records), length.ranks_within(lengths, records)) == pytest.approx(1)


def test_ranks_within_do_not_ask_records_to_be_contiguous():
  values, records = np.array([3.0, 9, 1, 8, 2, 7]), np.array([4, 0, 4, 0, 4, 0])
  np.testing.assert_array_equal(length.ranks_within(values, records), [1, 1, -1, 0, 0, -1])


def test_the_split_by_which_response_is_longer():
  wins = np.array([1.0, 0.0, 1.0, 0.0, 0.5, 1.0])
  lengths = np.array([[9, 2], [9, 2], [2, 9], [2, 9], [9, 2], [4, 4]])
  np.testing.assert_array_equal(length.longer_won(wins, lengths), [1, 0, 0, 1, np.nan, np.nan])
  np.testing.assert_array_equal(length.longer_won(1 - wins, lengths[:, ::-1]), length.longer_won(wins, lengths))


def _pairs(n=400):
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 200, (n, 2))
  features = length.length_features(lengths)
  logits = features @ [0.005, 0.4]
  return lengths, features, (rng.random(n) < 1 / (1 + np.exp(-logits))).astype(float)


def _objective(b, features, wins, ridge):
  z, scale = features @ b, np.sqrt(np.mean(features**2, axis=0))
  return np.mean(wins * np.log1p(np.exp(-z)) + (1 - wins) * np.log1p(np.exp(z))) + 0.5 * ridge * np.sum((b * scale) ** 2)


def test_the_fit_is_the_optimum_that_a_search_finds():
  lengths, features, wins = _pairs()
  best = length.fit_length_baseline(lengths, wins, ridge=0.01)
  at = _objective(best, features, wins, 0.01)
  for width in (1.0, 0.1, 0.01):
    grid = itertools.product(best[0] + width * 0.01 * np.linspace(-1, 1, 21), best[1] + width * np.linspace(-1, 1, 21))
    assert at <= min(_objective(np.array(b), features, wins, 0.01) for b in grid) + 1e-12
  steps = np.diag(1e-5 / np.sqrt(np.mean(features**2, axis=0)))
  slope = [_objective(best + step, features, wins, 0.01) - _objective(best - step, features, wins, 0.01) for step in steps]
  np.testing.assert_allclose(slope, 0, atol=1e-12)


def test_the_fit_recovers_the_annotator_and_does_not_see_orientation():
  lengths, features, wins = _pairs(40_000)
  found = length.fit_length_baseline(lengths, wins)
  np.testing.assert_allclose(features @ found, features @ [0.005, 0.4], atol=0.1)
  flip = np.random.default_rng(1).random(len(wins)) < 0.5
  turned = np.where(flip[:, None], lengths[:, ::-1], lengths)
  np.testing.assert_allclose(length.fit_length_baseline(turned, np.where(flip, 1 - wins, wins)), found, rtol=1e-6)


def test_separable_pairs_and_equal_lengths_stay_finite():
  lengths = np.array([[10, 2], [30, 4], [7, 6]])
  assert np.all(length.length_features(lengths) @ length.fit_length_baseline(lengths, np.ones(3)) > 0)
  np.testing.assert_array_equal(length.fit_length_baseline(np.full((3, 2), 7), np.ones(3)), 0)


def test_a_baseline_needs_pairs():
  with pytest.raises(ValueError, match='at least one compared pair'):
    length.fit_length_baseline(np.empty((0, 2)), np.empty(0))
