"""Dynamic reward scaling: the card's numbers, gradients, and the released code's other rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.losses.dynamic import batch_beta, dynamic_beta, margin_std, mm_dpo, mm_dpo_released
from rmjax.losses.preference import preference_cross_entropy

WINS = jnp.array([[0.0, 1, 1], [0, 0, 1], [0, 0, 0]])  # a ranking of three: all of its pairs


def gaps(x):
  return x[..., :, None] - x[..., None, :]


def test_the_cards_numbers():
  found = dynamic_beta(jnp.array([0.0, 1, 2, 5, 10, -3]), 0.1, 0.5, 0.5)
  np.testing.assert_allclose(found, [0.1, 0.119673, 0.131606, 0.145896, 0.149663, 0.1], atol=5e-7)
  assert 0.1 * (1 + 0.5 * (1 - np.exp(1.5))) == pytest.approx(-0.0741, abs=5e-5)  # what it would be unclipped
  assert (dynamic_beta(jnp.array([-1e6, 1e6])) == jnp.array([0.1, 0.15])).all()
  assert jax.grad(lambda delta: dynamic_beta(delta))(1.0) == 0


def test_each_pair_has_its_own_beta():
  h, r = jnp.array([0.4, -1.0, 2.0]), jnp.array([3.0, 1.0, 1.5])  # the last two: label and reward disagree
  betas = dynamic_beta(jnp.array([2.0, 1.5, -0.5]))
  by_hand = sum(np.log1p(np.exp(-b * d)) for b, d in zip(betas, (1.4, -1.6, -3.0), strict=True))
  np.testing.assert_allclose(mm_dpo(0.1 * gaps(h), WINS, r), by_hand, rtol=1e-6)
  np.testing.assert_allclose(mm_dpo(0.1 * gaps(h), WINS, 7 * r, scale=7.0), by_hand, rtol=1e-6)
  assert abs(mm_dpo(0.1 * gaps(h), WINS, 7 * r) - by_hand) > 1e-3
  np.testing.assert_allclose(mm_dpo(0.1 * gaps(h), WINS, r, w=0.0), preference_cross_entropy(0.1 * gaps(h), WINS), rtol=1e-6)
  np.testing.assert_allclose(mm_dpo(0.1 * gaps(h), WINS, jnp.zeros(3)), preference_cross_entropy(0.1 * gaps(h), WINS), rtol=1e-6)


def test_at_the_start_a_sure_pair_weighs_half_as_much_again_and_later_less():
  pair = jnp.array([[0.0, 1], [0, 0]])
  slope = lambda h, delta: -jax.grad(lambda h: mm_dpo(0.1 * gaps(jnp.stack([h, 0.0])), pair, jnp.array([delta, 0.0])))(h)
  np.testing.assert_allclose([slope(0.0, 0.0), slope(0.0, 50.0)], [0.05, 0.075], rtol=1e-5)
  assert slope(60.0, 50.0) < slope(60.0, 0.0)
  to_rewards = jax.grad(lambda r: mm_dpo(0.1 * gaps(jnp.array([1.0, 0.0])), pair, r))(jnp.array([1.0, 0.0]))
  np.testing.assert_array_equal(to_rewards, 0)


def test_margins_are_of_decided_pairs():
  tie = jnp.array([[0, 0.5], [0.5, 0]])
  rewards, wins = jnp.array([[3.0, 1.0], [0.0, 1.0], [50.0, 0.0]]), jnp.stack([jnp.array([[0.0, 1], [0, 0]])] * 2 + [tie])
  np.testing.assert_allclose(margin_std(rewards, wins), np.std([2.0, -1.0]), rtol=1e-6)


def test_the_released_rule_moves_one_beta_by_what_outliers_did():
  """Ten margins, one far out: 8 are kept, those nearest to the mean."""
  margins = jnp.array([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 100])
  mean, kept = 13.6, 4.5  # of 1 ... 8; mean of all
  expected = max(0.1 * (1 + 0.1 * (kept - mean)), 1e-3)
  everywhere = jnp.ones(10, bool)
  np.testing.assert_allclose(batch_beta(margins, everywhere), expected, rtol=1e-5)
  padded, there = jnp.r_[margins, jnp.full(5, jnp.nan)], jnp.arange(15) < 10
  np.testing.assert_allclose(batch_beta(padded, there), expected, rtol=1e-5)
  assert batch_beta(10 * margins, everywhere) == jnp.float32(1e-3)  # its minimum
  np.testing.assert_allclose(batch_beta(jnp.full(4, 3.0), jnp.ones(4, bool)), 0.1, rtol=1e-6)
  drawn = jax.vmap(lambda key: batch_beta(margins, everywhere, key=key))(jax.random.split(jax.random.key(0), 500))
  assert len(np.unique(np.round(drawn, 6))) > 3 and np.all(drawn >= 0.1 * (1 + 0.1 * (3.5 - 13.6)) - 1e-6)
  # z of 100 is 2.98, so that its weight is 0.012 of the others': it is kept in few draws.
  assert 0.0 < np.mean(drawn > 0.1) < 0.2


def test_the_released_loss_is_a_mean_with_that_beta_and_no_gradient_through_it():
  h = jnp.array([0.4, -1.0, 2.0])
  beta = batch_beta(jnp.array([1.4, -1.6, -3.0]), jnp.ones(3, bool))
  by_hand = np.mean([np.log1p(np.exp(-beta * d)) for d in (1.4, -1.6, -3.0)])
  loss = lambda h: mm_dpo_released(0.1 * gaps(h), WINS, jnp.array(0.1))
  np.testing.assert_allclose(loss(h), by_hand, rtol=1e-5)
  fixed = lambda h: preference_cross_entropy(beta * gaps(h), WINS) / 3
  np.testing.assert_allclose(jax.grad(loss)(h), jax.grad(fixed)(h), rtol=1e-4)
