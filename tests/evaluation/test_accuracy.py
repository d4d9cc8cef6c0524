"""Accuracy: ties, clusters, and the best of N."""

import numpy as np
import pytest

from rmjax.data.records import pairwise_wins, wins_from_ratings
from rmjax.evaluation.accuracy import agreement, best_of_n, clustered_bootstrap, clustered_mean


def test_ties_in_labels_are_left_out_and_ties_in_scores_count_half():
  right = agreement(np.array([2.0, -2.0, 0.0, 3.0, 0.1]), np.array([1.0, 1.0, 1.0, 0.5, 0.8]))
  np.testing.assert_array_equal(right, [1.0, 0.0, 0.5, np.nan, 1.0])


def test_a_pair_seen_from_its_other_side_is_as_right():
  rng = np.random.default_rng(0)
  logits, wins = np.round(rng.normal(size=500), 1), rng.integers(0, 5, 500) / 4
  np.testing.assert_array_equal(agreement(logits, wins), agreement(-logits, 1 - wins))


def test_standard_error_of_independent_values_is_the_textbook_one():
  values = np.random.default_rng(0).random(50)
  mean, error = clustered_mean(values, np.arange(50))
  assert mean == pytest.approx(values.mean())
  assert error == pytest.approx(values.std(ddof=1) / np.sqrt(50))


def test_copies_of_a_value_in_its_group_add_no_certainty():
  values = np.random.default_rng(0).random(50)
  once = clustered_mean(values, np.arange(50))
  assert clustered_mean(np.repeat(values, 6), np.repeat(np.arange(50), 6)) == pytest.approx(once)


def test_clustered_error_is_the_spread_of_the_mean_over_repeated_draws():
  rng = np.random.default_rng(0)
  groups = np.repeat(np.arange(60), 5)
  draws = [clustered_mean(np.repeat(rng.normal(size=60), 5) + rng.normal(size=300), groups) for _ in range(2000)]
  means, errors = np.array(draws).T
  assert np.mean(errors) == pytest.approx(means.std(), rel=0.05)
  assert np.mean(errors) == pytest.approx(np.sqrt((1 + 1 / 5) / 60), rel=0.05)  # exact


def test_nothing_known_has_no_mean():
  assert np.isnan(clustered_mean(np.array([np.nan, np.nan]), np.array([0, 1]))).all()
  assert np.isnan(clustered_mean(np.array([1.0]), np.array([0]))[1])


def test_best_of_four_is_right_when_the_chosen_one_scores_highest():
  wins = pairwise_wins(4, [(2, 0, 1.0), (2, 1, 1.0), (2, 3, 1.0)])
  assert best_of_n(np.array([0.0, 1.0, 2.0, -1.0]), wins) == (1.0, 0.25)
  assert best_of_n(np.array([3.0, 1.0, 2.0, -1.0]), wins) == (0.0, 0.25)


def test_responses_that_tie_for_the_highest_reward_share_one_choice():
  wins = pairwise_wins(3, [(0, 1, 1.0), (0, 2, 1.0)])
  assert best_of_n(np.array([1.0, 1.0, 0.0]), wins)[0] == pytest.approx(1 / 2)
  assert best_of_n(np.zeros(3), wins)[0] == pytest.approx(1 / 3)


def test_all_top_rated_responses_are_right_and_equal_ratings_ask_nothing():
  assert best_of_n(np.array([0.0, 1.0, 0.0]), wins_from_ratings([4, 4, 1])) == pytest.approx((1.0, 2 / 3))
  assert np.isnan(best_of_n(np.array([0.0, 1.0, 0.0]), wins_from_ratings([3, 3, 3]))).all()


def test_a_response_that_nobody_compared_takes_no_part():
  wins = pairwise_wins(3, [(0, 1, 1.0)])
  assert best_of_n(np.array([1.0, 0.0, 9.0]), wins) == (1.0, 0.5)


def test_best_of_n_does_not_depend_on_the_order_of_responses():
  rng = np.random.default_rng(0)
  for _ in range(20):
    rewards, wins, order = rng.normal(size=5), wins_from_ratings(rng.integers(0, 4, 5)), rng.permutation(5)
    np.testing.assert_allclose(best_of_n(rewards[order], wins[np.ix_(order, order)]), best_of_n(rewards, wins))


def test_the_bootstrap_agrees_with_the_closed_form_of_a_clustered_mean():
  rng = np.random.default_rng(0)
  groups = rng.integers(0, 80, 400)
  values = rng.normal(size=400) + rng.normal(size=80)[groups]  # observations of a group go together
  closed = clustered_mean(values, groups)[1]
  assert closed > 1.5 * clustered_mean(values, np.arange(400))[1]
  found = clustered_bootstrap(lambda x: float(np.mean(x)), values, groups=groups, resamples=2000)
  assert found == pytest.approx(closed, rel=0.07)  # 4 errors of the error
  order = rng.permutation(400)
  assert clustered_bootstrap(lambda x: float(np.mean(x)), values[order], groups=groups[order]) == pytest.approx(
    clustered_bootstrap(lambda x: float(np.mean(x)), values, groups=groups)
  )
  assert np.isnan(clustered_bootstrap(lambda x: float(np.mean(x)), values, groups=np.zeros(400)))
