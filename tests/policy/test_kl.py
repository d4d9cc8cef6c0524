"""Estimates of KL: exact values, what their gradients are in expectation, and where the rewards that hold them land."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import trees
from rmjax.errors import InputError
from rmjax.policy import kl


def test_values_at_a_log_ratio_of_ln_2():
  values = [kl.estimate(jnp.log(jnp.array([2.0])), jnp.zeros(1), kind)[0] for kind in kl.KINDS]
  np.testing.assert_allclose(values, [0.693147, 0.240227, 0.193147, 0.193147], atol=1e-6)


def test_expectations_over_all_outcomes():
  """Values and gradients against the divergences, summed over a distribution of five outcomes."""
  logits, ref = jax.random.normal(jax.random.key(0), (2, 5)) * 1.5
  log_p, log_ref = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref)
  p = jnp.exp(log_p)

  def value(kind):
    return jnp.sum(p * kl.estimate(log_p, log_ref, kind))

  def gradient(kind):  # of a loss on samples: the weights are where the samples fell, and are not differentiated
    return jax.grad(lambda logits: jnp.sum(p * kl.estimate(jax.nn.log_softmax(logits), log_ref, kind)))(logits)

  forward = lambda logits: jnp.sum(jnp.exp(jax.nn.log_softmax(logits)) * (jax.nn.log_softmax(logits) - log_ref))
  backward = lambda logits: jnp.sum(jnp.exp(log_ref) * (log_ref - jax.nn.log_softmax(logits)))
  for kind in ('k1', 'k3', 'k3_straight_through'):
    np.testing.assert_allclose(value(kind), forward(logits), rtol=1e-5)
  assert abs(value('k2') - forward(logits)) > 0.01  # biased
  np.testing.assert_allclose(gradient('k1'), 0.0, atol=1e-6)
  for kind in ('k2', 'k3_straight_through'):
    np.testing.assert_allclose(gradient(kind), jax.grad(forward)(logits), atol=1e-6)
  np.testing.assert_allclose(gradient('k3'), jax.grad(backward)(logits), atol=1e-6)
  assert np.abs(jax.grad(forward)(logits) - jax.grad(backward)(logits)).max() > 0.05


def test_k3_is_never_negative_and_far_off_neither_overflows_nor_loses_its_gradient():
  d = jnp.array([-200.0, -30.0, -1e-4, 0.0, 1e-4, 30.0, 200.0])
  k3 = kl.estimate(d, jnp.zeros(7), 'k3')
  assert np.isfinite(k3).all() and k3[3] == 0 and (k3[2:5] >= 0).all()
  np.testing.assert_allclose(k3[2], 5e-9, rtol=0.05)  # exp(-d) - 1 + d as it stands would give 0 or noise
  for kind in kl.KINDS:
    gradient = jax.grad(lambda d, kind=kind: kl.estimate(d, jnp.zeros(7), kind).sum())(d)
    assert np.isfinite(gradient).all() and gradient[-1] > 0.5 and gradient[0] != 0


def test_another_kind_is_named():
  with pytest.raises(InputError, match="kl kind 'k4': choose one of k1, k2, k3"):
    kl.estimate(jnp.zeros(1), jnp.zeros(1), 'k4')


BATCH = trees.pack([[trees.branch([1, 2], [[3, 4, 5], [6]]), trees.branch([1], [[7, 8]])]], length=12, slots=2, responses=2)
SCORES = jnp.array([[[1.0, 2.0], [4.0, jnp.nan]]])  # the last response is absent
MASK = (BATCH.response_ids >= 0).astype(np.float32)


def test_the_score_lands_on_the_last_valid_token():
  np.testing.assert_array_equal(kl.terminal_rewards(SCORES, MASK, BATCH), [[0, 0, 0, 0, 1, 2, 0, 0, 4, 0, 0, 0]])
  mask = MASK.copy()
  mask[0, [4, 5]] = 0  # of the environment; a response that has no other token is left out
  np.testing.assert_array_equal(kl.terminal_rewards(SCORES, mask, BATCH), [[0, 0, 0, 1, 0, 0, 0, 0, 4, 0, 0, 0]])


def test_rewards_hold_kl_score_clip_and_penalty():
  divergence = jnp.where(MASK > 0, jnp.arange(12.0), jnp.nan)[None, 0]
  rewards = kl.token_rewards(SCORES, divergence, MASK, BATCH, coefficient=0.1)
  np.testing.assert_allclose(rewards, [[0, 0, -0.2, -0.3, 1 - 0.4, 2 - 0.5, 0, -0.7, 4 - 0.8, 0, 0, 0]], rtol=1e-6)
  finished = jnp.array([[[1, 0], [0, 0]]])
  traced = jax.jit(lambda c, e, clip: kl.token_rewards(SCORES, divergence, MASK, BATCH, coefficient=c, finished=finished, missing_end=e, clip=clip))
  np.testing.assert_allclose(traced(0.0, 3.0, 1.5), [[0, 0, 0, 0, 1, 1.5 - 3, 0, 0, 1.5 - 3, 0, 0, 0]], rtol=1e-6)
  gradient = jax.grad(lambda d: kl.token_rewards(SCORES, d, MASK, BATCH, coefficient=1.0).sum())(jnp.zeros((1, 12)))
  np.testing.assert_array_equal(gradient, 0.0)
