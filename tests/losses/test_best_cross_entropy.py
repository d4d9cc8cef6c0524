"""The listwise cross-entropy of YOJO: its exact values and invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.data.records import pairwise_wins, wins_from_ratings
from rmjax.losses.listwise import best_cross_entropy
from rmjax.losses.preference import bradley_terry

REWARDS = jnp.array([0.3, -1.2, 2.0, 0.7])


@pytest.mark.parametrize('count', [2, 4, 7])
def test_equal_scores_cost_the_logarithm_of_their_number(count):
  assert best_cross_entropy(jnp.zeros(count), wins_from_ratings(np.arange(count))) == pytest.approx(np.log(count), abs=1e-6)
  assert np.log(4) == pytest.approx(1.386294, abs=1e-6)


def test_two_responses_are_bradley_terry():
  for best in (0, 1):
    found = best_cross_entropy(REWARDS[:2], pairwise_wins(2, [(0, 1, 1.0 - best)]))
    np.testing.assert_allclose(found, bradley_terry(REWARDS[best], REWARDS[1 - best]), atol=1e-6)


def test_by_hand_and_blind_to_a_constant_and_to_the_order_below_the_best():
  expected = -np.log(np.exp(0.7) / np.exp(REWARDS).sum())
  for ratings in ([1, 2, 3, 9], [3, 2, 1, 9]):
    np.testing.assert_allclose(best_cross_entropy(REWARDS, wins_from_ratings(ratings)), expected, rtol=1e-6)
    np.testing.assert_allclose(best_cross_entropy(REWARDS + 50, wins_from_ratings(ratings)), expected, rtol=1e-5)
  order = np.array([2, 0, 3, 1])
  np.testing.assert_allclose(best_cross_entropy(REWARDS[order], wins_from_ratings(np.array([1, 2, 3, 9])[order])), expected, rtol=1e-6)


def test_the_best_share_the_target():
  p = jax.nn.log_softmax(REWARDS)
  np.testing.assert_allclose(best_cross_entropy(REWARDS, wins_from_ratings([5, 1, 5, 0])), -(p[0] + p[2]) / 2, rtol=1e-6)
  np.testing.assert_allclose(best_cross_entropy(REWARDS, wins_from_ratings([1, 1, 1, 1])), -p.mean(), rtol=1e-6)
  gradient = jax.grad(best_cross_entropy)(jnp.array([1.0, 0.0, 1.0]), wins_from_ratings([5, 1, 5]))
  np.testing.assert_allclose(gradient[0], gradient[2])


@pytest.mark.parametrize('filler', [0.0, 1e4, -1e4, np.inf])
def test_absent_responses_take_no_part_and_leave_no_nan(filler):
  wins = wins_from_ratings([3.0, np.nan, 1.0, 2.0])
  value, gradient = jax.value_and_grad(best_cross_entropy)(REWARDS.at[1].set(filler), wins)
  np.testing.assert_allclose(value, best_cross_entropy(REWARDS[jnp.array([0, 2, 3])], wins_from_ratings([3, 1, 2])), rtol=1e-6)
  assert gradient[1] == 0 and np.isfinite(gradient).all()
  nothing, gradient = jax.value_and_grad(best_cross_entropy)(REWARDS.at[1].set(filler), jnp.zeros((4, 4)))
  assert nothing == 0 and not np.any(gradient)


def test_the_gradient_is_softmax_less_target():
  gradient = jax.grad(best_cross_entropy)(REWARDS, wins_from_ratings([1, 2, 9, 3]))
  np.testing.assert_allclose(gradient, jax.nn.softmax(REWARDS) - jnp.array([0, 0, 1, 0]), atol=1e-6)
