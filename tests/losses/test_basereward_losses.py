"""What BaseReward rejects: the zero-mean penalty and length normalization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.data.records import pairwise_wins
from rmjax.losses.preference import bradley_terry, centering, length_normalized, length_normalized_cross_entropy, preference_cross_entropy

FIRST = pairwise_wins(2, [(0, 1, 1.0)])


def test_equal_rewards_cost_ln_2():
  assert bradley_terry(jnp.array(0.7), jnp.array(0.7)) == pytest.approx(np.log(2), abs=1e-6)


def test_the_penalty_of_opposite_rewards_is_0():
  assert centering(jnp.array([1.0, -1.0]), FIRST) == 0
  assert 0.01 * centering(jnp.array([1.0, 2.0]), FIRST) == pytest.approx(0.09)


def test_bradley_terry_does_not_see_what_is_added_to_a_prompt_and_the_penalty_does():
  rewards = jnp.array([1.0, -0.5])
  logits = lambda r: r[:, None] - r[None, :]
  assert preference_cross_entropy(logits(rewards + 5), FIRST) == pytest.approx(float(preference_cross_entropy(logits(rewards), FIRST)), abs=1e-6)
  assert centering(rewards + 5, FIRST) > centering(rewards, FIRST) + 50


def test_normalization_by_hand():
  rewards, lengths = jnp.array([3.0, 2.0]), jnp.array([20, 4])
  normalized = [3 / np.log(20), 2 / np.log(4)]
  np.testing.assert_allclose(length_normalized(rewards, lengths), normalized, rtol=1e-6)
  expected = -np.log(1 / (1 + np.exp(normalized[1] - normalized[0])))
  np.testing.assert_allclose(length_normalized_cross_entropy(rewards, FIRST, lengths), expected, rtol=1e-5)
  assert normalized[0] < normalized[1]  # the shorter one, of the lower reward, is the better one


def test_alike_lengths_only_scale_and_absent_responses_have_no_nan():
  wins = pairwise_wins(3, [(0, 1, 1.0)])
  rewards, lengths = jnp.array([1.0, -0.5, 0.0]), jnp.array([8, 8, 0])
  value, gradient = jax.value_and_grad(length_normalized_cross_entropy)(rewards, wins, lengths)
  expected = bradley_terry(rewards[0] / np.log(8), rewards[1] / np.log(8))
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert np.isfinite(gradient).all() and gradient[2] == 0
