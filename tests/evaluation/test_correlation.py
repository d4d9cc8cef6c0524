"""Kappa by hand, correlations with exact permutation tests."""

import itertools

import numpy as np
import pytest
from scipy import stats

from rmjax.evaluation import correlation


def test_kappa_is_that_of_the_card():
  one, two = np.array([1.0, 1, 1, 0]), np.array([1.0, 0, 1, 0])
  assert correlation.kappa(one, two) == pytest.approx(0.5)  # p_o = .75, p_e = .5
  assert correlation.kappa(np.ones(4), np.ones(4)) == 1  # p_e = 1
  assert correlation.kappa(np.ones(4), np.zeros(4)) == 0  # p_e = 0, p_o = 0
  assert correlation.kappa(np.array([0, 1]), np.array([1, 0])) == -1


def test_kappa_of_three_labels_is_the_textbook_formula_whatever_they_are_called():
  rng = np.random.default_rng(0)
  one, two = rng.choice(['win', 'tie', 'loss'], (2, 300))
  two = np.where(rng.random(300) < 0.5, one, two)
  observed, expected = np.mean(one == two), sum(np.mean(one == name) * np.mean(two == name) for name in ('win', 'tie', 'loss'))
  value = correlation.kappa(one, two)
  assert value == pytest.approx((observed - expected) / (1 - expected)) and 0.3 < value < 0.7
  numbers = dict(win=1.0, tie=0.5, loss=0.0)
  assert correlation.kappa(*(np.array([numbers[name] for name in side]) for side in (one, two))) == pytest.approx(value)


def test_items_that_one_side_lacks_are_left_out():
  one, two = np.array([1, 1, 1, 0, np.nan, 0]), np.array([1, 0, 1, 0, 1, np.nan])
  assert correlation.kappa(one, two) == pytest.approx(0.5)
  assert np.isnan(correlation.kappa(np.full(2, np.nan), np.ones(2)))


def test_permuting_languages_permutes_the_matrix():
  labels = (np.random.default_rng(0).random((80, 5)) < np.linspace(0.3, 0.8, 5)).astype(float)
  matrix, order = correlation.kappa_matrix(labels), np.array([3, 0, 4, 1, 2])
  np.testing.assert_array_equal(np.diag(matrix), 1)
  np.testing.assert_allclose(matrix, matrix.T)
  np.testing.assert_allclose(correlation.kappa_matrix(labels[:, order]), matrix[np.ix_(order, order)])
  assert matrix[0, 1] == pytest.approx(correlation.kappa(labels[:, 0], labels[:, 1])) and matrix[0, 1] < 0.5


@pytest.mark.parametrize('test, r', [(correlation.pearson_test, stats.pearsonr), (correlation.spearman_test, stats.spearmanr)])
def test_correlation_and_exact_p_value_are_those_of_all_permutations(test, r):
  x, y = np.array([1.0, 2, 4, 8, 5, 3]), np.array([2.0, 1, 6, 20, 9, 9])
  found = test(x, y)
  assert found.r == pytest.approx(r(x, y).statistic)
  every = np.array([r(np.array(order), y).statistic for order in itertools.permutations(x)])
  expected = min(1, 2 * min(np.mean(every >= found.r - 1e-9), np.mean(every <= found.r + 1e-9)))
  assert found.p_value == pytest.approx(expected) and expected < 0.05
  assert test(np.arange(4), 3 * np.arange(4)).p_value == pytest.approx(2 / 24)


def test_a_monotone_transform_changes_one_of_them_alone():
  rng = np.random.default_rng(0)
  x = rng.normal(size=30)
  y = x + rng.normal(size=30)
  plain, bent = (correlation.spearman_test(v, y, permutations=499) for v in (x, np.exp(3 * x)))
  np.testing.assert_allclose(plain, bent)
  assert correlation.pearson_test(np.exp(3 * x), y, permutations=99).r < correlation.pearson_test(x, y, permutations=99).r - 0.1


def test_independent_figures_give_uniform_p_values_and_intervals_around_zero():
  rng = np.random.default_rng(0)
  found = [correlation.pearson_test(*rng.normal(size=(2, 25)), permutations=199, seed=seed) for seed in range(60)]
  assert np.mean([f.p_value < 0.05 for f in found]) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)
  assert 0.38 < np.mean([f.p_value for f in found]) < 0.62
  assert np.mean([f.low <= 0 <= f.high for f in found]) > 0.85
  assert all(f.low < f.r < f.high for f in found)


def test_a_constant_correlates_with_nothing():
  assert np.isnan(correlation.pearson_test(np.ones(5), np.arange(5))).all()
