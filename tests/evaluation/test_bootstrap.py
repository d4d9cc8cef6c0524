"""Resampling of groups: coverage, exact small cases, and the fast path against the slow one."""

import itertools

import numpy as np
import pytest

from rmjax.evaluation import accuracy, bootstrap


def clustered(rng, groups=40, each=5, spread=1.0):
  """Values that share most of what they are within a group; their true mean is 0."""
  return np.repeat(spread * rng.normal(size=groups), each) + 0.3 * rng.normal(size=groups * each), np.repeat(np.arange(groups), each)


def test_the_sums_of_groups_give_what_drawing_their_rows_gives():
  values, groups = clustered(np.random.default_rng(0))
  slow = lambda x: float(np.mean(x))
  for seed in (0, 1):
    fast = bootstrap.resample(np.mean, values, groups=groups, resamples=50, seed=seed)
    np.testing.assert_allclose(fast, bootstrap.resample(slow, values, groups=groups, resamples=50, seed=seed), rtol=1e-12)
  assert np.ptp(fast) > 0.1
  values[::7] = np.nan
  fast = bootstrap.resample(np.nanmean, values, groups=groups, resamples=50)
  np.testing.assert_allclose(fast, bootstrap.resample(lambda x: float(np.nanmean(x)), values, groups=groups, resamples=50), rtol=1e-12)
  assert np.isnan(bootstrap.resample(np.mean, values, groups=groups, resamples=5)).all()


def test_the_interval_covers_the_truth_as_often_as_it_says_only_if_groups_stay_whole():
  whole, torn = [], []
  for seed in range(200):
    values, groups = clustered(np.random.default_rng(seed))
    for hits, by in ((whole, groups), (torn, np.arange(len(values)))):
      low, high = bootstrap.interval(np.mean, values, groups=by, resamples=300, seed=seed)
      hits.append(low <= 0 <= high)
  assert 0.90 <= np.mean(whole) <= 0.98  # 0.95 +- 3 standard errors of 200 trials, less what 40 groups lack
  assert np.mean(torn) < 0.75


def test_half_the_width_of_the_interval_is_the_standard_error_of_a_mean():
  values, groups = clustered(np.random.default_rng(1), groups=400)
  low, high = bootstrap.interval(np.mean, values, groups=groups, resamples=4000)
  mean, error = accuracy.clustered_mean(values, groups)
  assert (low + high) / 2 == pytest.approx(mean, abs=0.1 * error)
  assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.08)
  narrow = bootstrap.interval(np.mean, values, groups=groups, resamples=4000, level=0.5)
  assert (narrow[1] - narrow[0]) / 2 == pytest.approx(0.6745 * error, rel=0.1)
  assert accuracy.clustered_bootstrap(np.mean, values, groups=groups, resamples=2000) == pytest.approx(error, rel=0.08)


def test_statistics_of_rows_of_matrices_are_drawn_by_row():
  labels = np.repeat(np.arange(30)[:, None], 4, 1)
  drawn = bootstrap.resample(lambda m: float(np.ptp(m, axis=1).max()), labels, groups=np.arange(30), resamples=20)
  np.testing.assert_array_equal(drawn, 0)  # a row stays together


def test_an_accuracy_of_one_has_an_interval_and_one_group_has_none():
  assert bootstrap.interval(np.mean, np.ones(20), groups=np.arange(20)) == (1, 1)
  assert np.isnan(bootstrap.interval(np.mean, np.arange(3.0), groups=np.zeros(3))).all()
  assert np.isnan(bootstrap.interval(np.mean, np.empty(0), groups=np.empty(0))).all()


def test_the_paired_p_value_of_few_groups_is_exact():
  differences = np.array([1.0, 2, 0.5, 3])
  assert bootstrap.paired(differences, np.arange(4)).p_value == pytest.approx(2 / 16)  # all of one sign: the most extreme 2 of 2^4
  differences = np.array([2.0, -1, 4, 3, 1])
  totals = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=5)]
  expected = np.mean(np.array(totals) >= differences.sum())
  assert bootstrap.paired(differences, np.arange(5)).p_value == pytest.approx(expected)


def test_two_models_that_differ_on_the_same_items_are_told_apart_and_equal_ones_are_not():
  rng = np.random.default_rng(0)
  items = np.repeat(np.arange(300), 3)
  hard = np.repeat(rng.random(300), 3)
  right = lambda gain: (rng.random(900) < np.clip(hard + gain, 0, 1)).astype(float)
  better = bootstrap.paired(right(0.15) - right(0.0), items)
  assert better.p_value == pytest.approx(2 / 1001) and 0 < better.low < better.mean < better.high
  same = [bootstrap.paired(right(0.0) - right(0.0), items, resamples=200, seed=seed).p_value for seed in range(60)]
  assert np.mean(np.array(same) < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)
  assert 0.3 < np.mean(same) < 0.7  # p-values of no difference are uniform


def test_copies_of_an_item_in_other_languages_add_no_certainty():
  rng = np.random.default_rng(2)
  once = rng.normal(0.2, 1, 60)
  one, many = bootstrap.paired(once, np.arange(60)), bootstrap.paired(np.repeat(once, 8), np.repeat(np.arange(60), 8))
  np.testing.assert_allclose(one, many, rtol=1e-9)
  assert bootstrap.paired(np.repeat(once, 8), np.arange(480)).p_value < one.p_value / 3


def test_the_sign_of_a_difference_turns_with_the_models_and_unknown_items_are_left_out():
  rng = np.random.default_rng(3)
  differences = np.append(rng.normal(0.1, 1, 50), np.nan)
  one, other = bootstrap.paired(differences, np.arange(51)), bootstrap.paired(-differences, np.arange(51))
  assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
  assert one.p_value == pytest.approx(other.p_value, abs=0.03)
  assert np.isnan(bootstrap.paired(np.array([0.5]), np.zeros(1))[1:]).all()
  assert bootstrap.paired(np.zeros(9), np.arange(9)) == (0, 0, 0, 1)  # the same model twice
