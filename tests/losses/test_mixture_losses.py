"""MiCRo's losses: the card's numbers, identities, and the sign of the entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.data.records import pairwise_wins
from rmjax.heads.mixture import MixtureHead, MixtureScores
from rmjax.losses.mixture import hedge_target, mixture_bt, mixture_preference, negative_entropy, router_cross_entropy
from rmjax.losses.preference import bradley_terry, preference_cross_entropy

UNIFORM = jnp.full(3, -np.log(3), jnp.float32)
GATE = jax.nn.log_softmax(jnp.array([0.5, -1.0, 0.2]))
COMPONENTS = np.asarray(jax.random.normal(jax.random.key(0), (4, 3)), np.float32)
WINS = pairwise_wins(4, [(0, 1, 1.0), (2, 0, 1.0), (3, 1, 0.0), (2, 3, 1.0)])


def test_the_hedge_target_of_the_card():
  found = hedge_target(UNIFORM, jnp.array([0.1, 1.0, 2.0]), 0.5)
  np.testing.assert_allclose(found, [0.84198, 0.13918, 0.01884], atol=1e-5)


def test_the_hedge_target_is_the_minimum_that_it_is_said_to_be():
  losses, temperature = jnp.array([0.1, 1.0, 2.0]), 0.7
  value = lambda w: float(jnp.sum(w * losses) + temperature * jnp.sum(w * (jnp.log(w) - GATE)))
  best = hedge_target(GATE, losses, temperature)
  rng = np.random.default_rng(0)
  assert all(value(best) <= value(jnp.asarray(w, jnp.float32)) + 1e-6 for w in rng.dirichlet(np.ones(3), 200))


def test_edges_of_the_temperature():
  losses = jnp.array([0.5, 0.4, 2.0])
  np.testing.assert_allclose(hedge_target(GATE, losses, 1e-4), [0, 1, 0], atol=1e-6)
  np.testing.assert_allclose(hedge_target(GATE, losses, 1e6), jnp.exp(GATE), rtol=1e-5)
  far = hedge_target(jnp.array([0.0, -1e3, -1e3]), 1e4 * losses, 1e-4)
  assert np.isfinite(far).all() and far.sum() == pytest.approx(1)
  assert not np.any(jax.grad(lambda gate: hedge_target(gate, losses, 0.5)[0])(GATE))  # a constant


def test_the_mixture_of_the_definition():
  gaps = jnp.array([1.0, -2.0, 0.5])
  p = np.sum(np.exp(GATE) / (1 + np.exp(-gaps)))
  np.testing.assert_allclose(mixture_bt(gaps, GATE), -np.log(p), rtol=1e-6)
  np.testing.assert_allclose(mixture_bt(jnp.full(3, -500.0), GATE), 500, rtol=1e-5)  # stable


@pytest.mark.parametrize('gate', [UNIFORM, GATE, jnp.array([0.0, -50.0, -50.0])])
def test_equal_components_cost_what_bradley_terry_does_under_any_gate(gate):
  np.testing.assert_allclose(mixture_bt(jnp.full(3, 0.7), jax.nn.log_softmax(gate)), bradley_terry(jnp.array(0.7), jnp.array(0.0)), rtol=1e-5)
  equal = np.repeat(COMPONENTS[:, :1], 3, 1)
  expected = preference_cross_entropy(jnp.asarray(equal[:, None, 0] - equal[None, :, 0]), WINS)
  for joint in (False, True):
    np.testing.assert_allclose(mixture_preference(equal, jax.nn.log_softmax(gate), WINS, joint), expected, rtol=1e-5)


def test_the_paper_s_is_the_cross_entropy_of_the_head_s_logits():
  logits = MixtureHead().preference_logits(MixtureScores(COMPONENTS, GATE))
  np.testing.assert_allclose(mixture_preference(COMPONENTS, GATE, WINS), preference_cross_entropy(logits, WINS), rtol=1e-5)


def test_one_comparison_is_the_same_jointly_and_several_are_one_component_s():
  one = pairwise_wins(4, [(2, 1, 1.0)])
  for joint in (False, True):
    np.testing.assert_allclose(mixture_preference(COMPONENTS, GATE, one, joint), mixture_bt(jnp.asarray(COMPONENTS[2] - COMPONENTS[1]), GATE), rtol=1e-5)
  likelihood = np.exp(GATE)
  for i, j in ((0, 1), (2, 0), (1, 3), (2, 3)):
    likelihood = likelihood / (1 + np.exp(COMPONENTS[j] - COMPONENTS[i]))
  np.testing.assert_allclose(mixture_preference(COMPONENTS, GATE, WINS, True), -np.log(likelihood.sum()), rtol=1e-5)


@pytest.mark.parametrize('joint', [False, True])
def test_the_order_of_the_components_does_not_matter(joint):
  order = np.array([2, 0, 1])
  found = mixture_preference(COMPONENTS[:, order], GATE[order], WINS, joint)
  np.testing.assert_allclose(found, mixture_preference(COMPONENTS, GATE, WINS, joint), rtol=1e-6)


def test_nothing_compared_costs_nothing():
  value, gradient = jax.value_and_grad(mixture_preference)(COMPONENTS, GATE, np.zeros((4, 4), np.float32))
  assert value == 0 and not np.any(gradient)
  value, gradient = jax.value_and_grad(mixture_preference)(COMPONENTS, GATE, np.zeros((4, 4), np.float32), True)
  assert value == pytest.approx(0, abs=1e-6) and not np.any(gradient)


def test_the_entropy_term_of_the_card_and_its_sign():
  assert 0.5 * negative_entropy(UNIFORM) == pytest.approx(-0.549, abs=5e-4)
  assert negative_entropy(jnp.array([0.0, -np.inf, -np.inf]).at[1:].set(-1e4)) == pytest.approx(0)

  def descend(sign):
    logits = jnp.array([0.3, 0.0, -0.3])
    for _ in range(200):
      logits = logits - sign * jax.grad(lambda z: negative_entropy(jax.nn.log_softmax(z)))(logits)
    return np.asarray(jax.nn.softmax(logits))

  np.testing.assert_allclose(descend(1.0), 1 / 3, atol=1e-2)  # minimizing it draws the gate to uniform,
  assert descend(-1.0).max() > 0.95  # and with the other sign it collapses


def test_the_router_s_loss_has_its_minimum_at_the_target():
  target = jnp.array([0.7, 0.2, 0.1])
  assert router_cross_entropy(target, jnp.log(target)) == pytest.approx(float(-jnp.sum(target * jnp.log(target))))
  np.testing.assert_allclose(jax.grad(lambda z: router_cross_entropy(target, jax.nn.log_softmax(z)))(jnp.log(target)), 0, atol=1e-6)
