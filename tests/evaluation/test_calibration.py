"""Calibration: closed forms, and what a swap of the pair must not change."""

import numpy as np
import pytest

from rmjax.evaluation.calibration import brier, expected_calibration_error, negative_log_likelihood, reliability


def _calibrated(pairs):
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 2, pairs)
  return logits, (rng.random(pairs) < 1 / (1 + np.exp(-logits))).astype(float)


def test_a_calibrated_model_has_no_error_beyond_sampling():
  logits, wins = _calibrated(100_000)
  curve = reliability(logits, wins)
  assert curve.count.sum() == 100_000
  error = np.sqrt(curve.confidence * (1 - curve.confidence) / curve.count)
  assert np.all(np.abs(curve.accuracy - curve.confidence) < 4 * error)
  assert expected_calibration_error(curve) < 4 * np.mean(error)


def test_a_model_twice_too_sure_has_the_error_of_its_overconfidence():
  logits, wins = _calibrated(100_000)
  gap = lambda z: np.mean(1 / (1 + np.exp(-np.abs(2 * z))) - 1 / (1 + np.exp(-np.abs(z))))
  assert expected_calibration_error(reliability(2 * logits, wins)) == pytest.approx(gap(logits), abs=0.005)


def test_a_model_that_says_half_is_calibrated_and_has_brier_a_quarter_and_nll_log_two():
  logits, wins = np.zeros(7), np.array([1.0, 1, 1, 1, 1, 0.5, 0.3])  # chosen first: a one-sided reading would call it all wrong
  assert expected_calibration_error(reliability(logits, wins)) == 0
  np.testing.assert_allclose(brier(logits, wins), 0.25)
  np.testing.assert_allclose(negative_log_likelihood(logits, wins), np.log(2))


def test_orientation_of_pairs_changes_nothing():
  logits, wins = _calibrated(1000)
  wins[::7] = 0.25
  flip = np.random.default_rng(1).random(1000) < 0.5
  turned = np.where(flip, -logits, logits), np.where(flip, 1 - wins, wins)
  for got, expected in zip(reliability(*turned), reliability(logits, wins), strict=True):
    np.testing.assert_allclose(got, expected)
  np.testing.assert_allclose(brier(*turned), brier(logits, wins))
  np.testing.assert_allclose(negative_log_likelihood(*turned), negative_log_likelihood(logits, wins))


def test_a_soft_label_is_the_expectation_over_hard_ones():
  logits = np.linspace(-3, 3, 13)
  for score in (brier, negative_log_likelihood):
    mixed = 0.7 * score(logits, np.ones(13)) + 0.3 * score(logits, np.zeros(13))
    np.testing.assert_allclose(score(logits, np.full(13, 0.7)), mixed)
    assert np.argmin(score(np.log(np.array([0.3, 0.5, 0.7, 0.9]) / np.array([0.7, 0.5, 0.3, 0.1])), np.full(4, 0.7))) == 2  # proper


def test_huge_logits_stay_finite():
  logits = np.array([1000.0, -1000.0])
  np.testing.assert_allclose(negative_log_likelihood(logits, np.array([1.0, 1.0])), [0, 1000])
  np.testing.assert_allclose(brier(logits, np.array([1.0, 1.0])), [0, 1])
  assert expected_calibration_error(reliability(logits, np.array([1.0, 1.0]))) == pytest.approx(0.5)


def test_reliability_by_hand():
  logits = np.log([0.62 / 0.38, 0.64 / 0.36, 0.97 / 0.03])
  curve = reliability(logits, np.array([1.0, 0.0, 1.0]))
  assert curve.count.tolist() == [0, 0, 2, 0, 0, 0, 0, 0, 0, 1]
  np.testing.assert_allclose(curve.confidence[[2, 9]], [0.63, 0.97])
  np.testing.assert_allclose(curve.accuracy[[2, 9]], [0.5, 1.0])
  assert expected_calibration_error(curve) == pytest.approx((2 * 0.13 + 0.03) / 3)
  assert np.isnan(expected_calibration_error(reliability(np.empty(0), np.empty(0))))
