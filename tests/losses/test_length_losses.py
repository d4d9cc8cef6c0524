"""Correlations of a whole batch, and whose parameters their gradients reach."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.heads.length import length_encoding, LengthBiasNet, LinearLength, OdinHead
from rmjax.losses import length_bias
from rmjax.losses.preference import bradley_terry

ALL = jnp.ones(50, bool)


def normal(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape or 50), jnp.float32)


def test_pearson_of_affine_maps_and_of_numpy():
  a, b = normal(0), normal(1)
  np.testing.assert_allclose([length_bias.pearson(a, 3 * a + 2, ALL), length_bias.pearson(a, -a, ALL)], [1, -1], rtol=1e-6)
  expected = np.corrcoef(a, b)[0, 1]
  for one, two in ((a, b), (b, a), (1e-4 * a - 3e-4, 1e6 * b + 1e6)):
    np.testing.assert_allclose(length_bias.pearson(one, two, ALL), expected, atol=2e-5)
  mask = jnp.arange(50) < 30
  np.testing.assert_allclose(length_bias.pearson(a, b.at[30:].set(jnp.nan), mask), np.corrcoef(a[:30], b[:30])[0, 1], atol=1e-6)


def test_pearson_keeps_small_differences_of_large_rewards():
  """bfloat16, or sums of squares in place of centred ones, would give noise here."""
  a = 1000 + 0.01 * normal(0)
  np.testing.assert_allclose(length_bias.pearson(a, normal(1), ALL), np.corrcoef(np.asarray(a, np.float64), normal(1))[0, 1], atol=1e-3)


def test_the_correlation_of_a_batch_is_not_the_mean_of_its_parts():
  x = jnp.concatenate([jnp.linspace(0, 1, 25), jnp.linspace(0, 1, 25)])
  y = jnp.concatenate([jnp.linspace(0, 1, 25), jnp.linspace(1, 0, 25)])  # opposite slopes
  half = jnp.arange(50) < 25
  np.testing.assert_allclose(length_bias.pearson(x, y, ALL), 0, atol=1e-6)
  np.testing.assert_allclose([length_bias.pearson(x, y, half), length_bias.pearson(x, y, ~half)], [1, -1], atol=1e-5)


@pytest.mark.parametrize(('a', 'mask'), [(jnp.full(50, 7.3), ALL), (jnp.zeros(50), ALL), (normal(0), jnp.arange(50) < 2), (normal(0), jnp.zeros(50, bool))])
def test_nothing_to_correlate_is_zero_with_a_finite_gradient(a, mask):
  value, gradient = jax.value_and_grad(lambda a, b: jnp.abs(length_bias.pearson(a, b, mask)), argnums=(0, 1))(a, normal(1))
  assert value == 0
  jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), gradient)


def test_each_side_of_fimi_moves_its_own_parameters():
  rewards, fit, lengths = normal(0, 2, 3, 4), normal(1, 2, 3, 4), jnp.ones((2, 3, 4), jnp.int32)
  to_rewards, to_fit = jax.grad(length_bias.bias_decorrelate, argnums=(0, 1))(rewards, fit, lengths)
  assert np.abs(to_rewards).max() > 0 and not np.any(to_fit)
  to_rewards, to_fit = jax.grad(length_bias.bias_fit, argnums=(0, 1))(rewards, fit, lengths)
  assert np.abs(to_fit).max() > 0 and not np.any(to_rewards)
  # Down the gradient, one correlation grows and the other falls.
  rho = lambda r, f: abs(float(length_bias.pearson(r, f, lengths > 0)))
  assert rho(rewards, fit - 0.1 * to_fit) > rho(rewards, fit)
  assert rho(rewards - 0.1 * jax.grad(length_bias.bias_decorrelate)(rewards, fit, lengths), fit) < rho(rewards, fit)


def test_the_two_versions_of_the_fit():
  rewards, lengths = normal(0, 1, 1, 50), jnp.ones((1, 1, 50), jnp.int32)
  np.testing.assert_allclose(length_bias.bias_fit(rewards, 2 * rewards + 1, lengths), -1, rtol=1e-5)
  np.testing.assert_allclose(length_bias.bias_fit(rewards, rewards + 0.5, lengths, mse_weight=1.0), -1 + 0.25, rtol=1e-5)
  absent = lengths.at[0, 0, 25:].set(0)
  np.testing.assert_allclose(length_bias.bias_fit(rewards, jnp.where(absent > 0, rewards, 1e6), absent, mse_weight=1.0), -1, rtol=1e-5)


def test_length_encoding_by_hand():
  encoded = length_encoding(jnp.array([100, 0]))
  for j, (sine, cosine) in {0: (-0.506366, 0.862319), 1: (-0.309375, 0.950940), 15: (0.017782, 0.999842)}.items():
    np.testing.assert_allclose([encoded[0, j], encoded[0, 16 + j]], [sine, cosine], atol=2e-5)
  np.testing.assert_array_equal(encoded[1], [0.0] * 16 + [1.0] * 16)


def test_the_fitting_model_has_the_paper_s_size_and_sees_length_alone():
  net, lengths = LengthBiasNet(), jnp.array([[[3, 70], [3, 5]]])
  params = net.init(jax.random.key(0), lengths)
  assert sum(x.size for x in jax.tree.leaves(params)) == 6465
  out = net.apply(params, lengths)
  assert out.shape == lengths.shape and out[0, 0, 0] == out[0, 1, 0] != out[0, 0, 1]
  line = LinearLength()
  values = line.apply(line.init(jax.random.key(0), lengths), jnp.array([10, 20, 30]))
  np.testing.assert_allclose(values[2] - values[1], values[1] - values[0], rtol=1e-4)


def test_odin_ranks_by_both_heads_and_rewards_by_one():
  head, hidden = OdinHead(), normal(0, 2, 3, 2, 8)
  params = head.init(jax.random.key(0), hidden, hidden[..., 0, :])
  scores = head.apply(params, hidden, hidden[..., 0, :])
  np.testing.assert_array_equal(head.reward(scores), scores.quality)
  wins = jnp.zeros((2, 3, 2, 2)).at[..., 0, 1].set(1.0)
  total = scores.quality + scores.length
  np.testing.assert_allclose(length_bias.odin_cross_entropy(scores, wins), bradley_terry(total[..., 0], total[..., 1]), rtol=1e-6)
  kernel = jnp.stack([jnp.arange(8.0), jnp.arange(8.0)], -1)
  assert head.apply({'params': {'kernel': kernel}}, hidden, hidden[..., 0, :]).overlap == pytest.approx(np.ones((2, 3)))


def test_odin_disentangles_by_hand():
  lengths = jnp.array([[[3, 9], [4, 30]]])
  tokens = lengths.astype(jnp.float32)
  quality = jnp.array([[[1.0, -1.0], [1.0, -1.0]]])
  scores = OdinHead().apply({'params': {'kernel': jnp.eye(8)[:, :2]}}, normal(0, 1, 2, 2, 8), normal(0, 1, 2, 8))._replace(quality=quality, length=5 * tokens)
  expected = abs(np.corrcoef(quality.ravel(), tokens.ravel())[0, 1]) - 1
  np.testing.assert_allclose(length_bias.odin_disentangle(scores, lengths), expected, atol=1e-5)
  np.testing.assert_allclose(length_bias.odin_disentangle(scores._replace(overlap=jnp.full((1, 2), 0.5)), lengths, orthogonality=2.0), expected + 1, atol=1e-5)
