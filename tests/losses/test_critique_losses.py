"""Ties, masks and the joint loss, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.losses.critique import bradley_terry_with_ties, critique_negative_log_likelihood
from rmjax.losses.preference import preference_cross_entropy

REWARDS = jnp.array([1.0, -0.5, 0.25])
LOGITS = REWARDS[:, None] - REWARDS[None, :]
WINS = jnp.array([[0, 1, 0.5], [0, 0, 0.3], [0.5, 0.7, 0]])  # one wins, a tie, a soft label


def test_ties_are_squares_and_the_rest_is_bradley_terry():
  by_hand = np.log1p(np.exp(-1.5)) + 0.3 * np.log1p(np.exp(0.75)) + 0.7 * np.log1p(np.exp(-0.75))
  np.testing.assert_allclose(bradley_terry_with_ties(LOGITS, WINS), by_hand + 0.75**2, rtol=1e-6)
  np.testing.assert_allclose(bradley_terry_with_ties(LOGITS, WINS, tie_weight=0.2), by_hand + 0.2 * 0.75**2, rtol=1e-6)
  margin = np.log1p(np.exp(-1.1)) + 0.3 * np.log1p(np.exp(1.15)) + 0.7 * np.log1p(np.exp(-0.35))
  np.testing.assert_allclose(bradley_terry_with_ties(LOGITS, WINS, margin=0.4), margin + 0.75**2, rtol=1e-6)


def test_a_tie_of_equal_rewards_costs_nothing():
  tie = jnp.array([[0, 0.5], [0.5, 0]])
  assert bradley_terry_with_ties(jnp.zeros((2, 2)), tie) == 0 < preference_cross_entropy(jnp.zeros((2, 2)), tie)
  gradient = jax.grad(lambda r: bradley_terry_with_ties(r[:, None] - r[None, :], tie))(jnp.array([2.0, 0.5]))
  np.testing.assert_allclose(gradient, [3.0, -3.0])  # of (r_0 - r_1)^2


def test_samples_without_a_critique_are_masked_whatever_stands_there():
  nll, lengths = jnp.array([3.0, 99.0, jnp.nan]), jnp.array([4, 0, -1])
  np.testing.assert_array_equal(critique_negative_log_likelihood(nll, lengths), [3, 0, 0])
