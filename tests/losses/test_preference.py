"""Closed forms and invariances of losses on preferences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.losses import pointwise, preference

R = jnp.array([[1.5, -0.25]])
WINS = jnp.array([[[0.0, 1.0], [0.0, 0.0]]])


def gaps(r):
  return r[..., :, None] - r[..., None, :]


@pytest.mark.parametrize('margin', [0.0, 0.7])
@pytest.mark.parametrize('label', [1.0, 0.5, 0.2])
def test_bradley_terry_is_the_two_response_tournament(margin, label):
  wins = jnp.array([[[0.0, label], [1 - label, 0.0]]])
  expected = preference.bradley_terry(R[:, 0], R[:, 1], margin, label)
  np.testing.assert_allclose(preference.preference_cross_entropy(gaps(R), wins, margin), expected, rtol=1e-6)


def test_bradley_terry_closed_forms():
  np.testing.assert_allclose(preference.bradley_terry(jnp.zeros(3), jnp.zeros(3)), np.log(2), rtol=1e-6)
  np.testing.assert_allclose(preference.bradley_terry(R[:, 0], R[:, 1], 0.25), np.log1p(np.exp(-1.5)), rtol=1e-6)  # gap 1.75, margin 0.25
  assert np.isfinite(preference.bradley_terry(jnp.array([-1e4]), jnp.array([1e4]))).all()  # no overflow
  assert preference.bradley_terry(R[:, 0].astype(jnp.bfloat16), R[:, 1].astype(jnp.bfloat16)).dtype == jnp.float32


def test_a_tie_is_best_when_rewards_are_equal():
  tie = lambda gap: preference.bradley_terry(gap, jnp.zeros(()), label=0.5)
  assert jax.grad(tie)(jnp.zeros(())) == 0
  assert tie(jnp.array(0.3)) > tie(jnp.array(0.0)) < tie(jnp.array(-0.3))


def test_scalar_rewards_cannot_learn_a_cycle():
  cycle = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
  loss = lambda r: preference.preference_cross_entropy(gaps(r), cycle)
  np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(3)), 0.0, atol=1e-7)
  np.testing.assert_allclose(loss(jnp.zeros(3)) / 3, np.log(2.0), rtol=1e-6)


def test_uncompared_pairs_have_no_part():
  rewards = jnp.array([0.3, -1.0, 2.0])
  wins = jnp.zeros((3, 3)).at[0, 1].set(1.0)
  np.testing.assert_array_equal(jax.grad(lambda r: preference.preference_cross_entropy(gaps(r), wins))(rewards)[2], 0.0)
  np.testing.assert_allclose(preference.preference_cross_entropy(gaps(rewards), wins), preference.bradley_terry(rewards[0], rewards[1]), rtol=1e-6)


def test_centering_is_trl_s_term_and_pulls_to_zero():
  np.testing.assert_allclose(preference.centering(R, WINS), (1.5 - 0.25) ** 2, rtol=1e-6)
  np.testing.assert_allclose(preference.centering(R, WINS + jnp.swapaxes(WINS, -1, -2)), 2 * 1.25**2, rtol=1e-6)
  shifted = jax.grad(lambda c: preference.centering(R + c, WINS).sum())(0.0)
  np.testing.assert_allclose(shifted, 2 * 1.25 * 2, rtol=1e-6)


def test_pointwise_losses_skip_what_is_unknown():
  rewards, ratings = jnp.array([1.0, 2.0, -1.0]), jnp.array([3.0, jnp.nan, 0.0])
  np.testing.assert_allclose(pointwise.rating_squared_error(rewards, ratings), [4.0, 0.0, 1.0])
  labels = jnp.array([1.0, jnp.nan, 0.25])
  expected = [np.log1p(np.exp(-1)), 0.0, 0.25 * np.log1p(np.exp(1)) + 0.75 * np.log1p(np.exp(-1))]
  np.testing.assert_allclose(pointwise.label_cross_entropy(rewards, labels), expected, rtol=1e-6)
  for loss, target in ((pointwise.rating_squared_error, ratings), (pointwise.label_cross_entropy, labels)):
    gradient = jax.grad(lambda r, loss=loss, target=target: loss(r, target).sum())(rewards)
    assert np.isfinite(gradient).all() and gradient[1] == 0


def test_a_margin_inside_the_division_is_one_over_the_temperature():
  s, wins = jnp.array([[[0.0, 0.37], [-0.37, 0.0]]]), jnp.array([[[0.0, 0.8], [0.2, 0.0]]])
  m, temperature = 0.2, 0.1
  inside = -0.8 * jax.nn.log_sigmoid((s[:, 0, 1] - m) / temperature) - 0.2 * jax.nn.log_sigmoid((s[:, 1, 0] - m) / temperature)
  np.testing.assert_allclose(preference.preference_cross_entropy(s / temperature, wins, m / temperature), inside, rtol=1e-5)


def test_squared_error_of_preference_logits():
  wins = jnp.array([[0.0, 1.0, 0.5], [0.0, 0.0, 0.2], [0.5, 0.8, 0.0]])
  logits = gaps(jnp.array([1.0, 0.0, -2.0]))  # 1, 3 and 2
  constant = (1 - 10) ** 2 + (3 - 0) ** 2 + (2 + 10) ** 2
  np.testing.assert_allclose(preference.preference_squared_error(logits, wins, 10.0), constant / 2, rtol=1e-6)
  label = (1 - np.log(0.9999 / 0.0001)) ** 2 + (3 - 0) ** 2 + (2 - np.log(0.2 / 0.8)) ** 2
  np.testing.assert_allclose(preference.preference_squared_error(logits, wins), label / 2, rtol=1e-5)
  one = jnp.zeros((3, 3)).at[1, 2].set(0.2).at[2, 1].set(0.8)  # each pair counts once, and those not compared do not
  np.testing.assert_allclose(preference.preference_squared_error(logits, one, 10.0), 12**2 / 2, rtol=1e-6)
  np.testing.assert_array_equal(preference.preference_squared_error(logits, jnp.zeros((3, 3))), 0.0)


@pytest.mark.parametrize(('label', 'target'), [(1.0, 10.0), (0.3, None), (0.5, 10.0)])
def test_squared_error_is_least_at_its_target(label, target):
  wins = jnp.array([[0.0, label], [1 - label, 0.0]])
  wanted = {(1.0, 10.0): 10.0, (0.3, None): np.log(0.3 / 0.7), (0.5, 10.0): 0.0}[label, target]
  of = lambda gap: preference.preference_squared_error(gap * jnp.array([[0.0, 1.0], [-1.0, 0.0]]), wins, target)
  np.testing.assert_allclose(of(jnp.float32(wanted)), 0.0, atol=1e-10)
  np.testing.assert_allclose(jax.grad(of)(jnp.float32(wanted + 1)), 1.0, rtol=1e-5)
