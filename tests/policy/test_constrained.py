"""Multipliers and the mixed advantage: exact values, signs, caps, exactness under micro-batches, and problems whose Lagrangian is known."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmjax.errors import InputError
from rmjax.policy import constrained
from rmjax.policy.algorithm import Constraints
from rmjax.training.step import init_state, make_step

AT_LEAST, AT_MOST, EQUAL = ('>=', '>='), ('<=', '<='), ('==', '==')


def step_of(mu, gap, senses, form='squashed', **options):
  """Multipliers after one step of the optimiser, with J - theta = gap."""
  mu, gap = jnp.asarray(mu, jnp.float32), jnp.asarray(gap, jnp.float32)
  optimizer = constrained.multiplier_optimizer(senses, form, **options)
  loss = lambda mu: jnp.sum(constrained.multiplier_loss(mu, gap, jnp.ones_like(gap), jnp.zeros_like(gap), senses, form))
  updates, _ = optimizer.update(jax.grad(loss)(mu), optimizer.init(mu), mu)
  return optax.apply_updates(mu, updates)


# Exact values


@pytest.mark.parametrize(
  ('senses', 'form', 'mu', 'weights'),
  [
    # of A_0, A_1, A_2
    (AT_LEAST, 'squashed', (0.0, 0.0), (1.0, 0.5, 0.5)),
    (EQUAL, 'squashed', (0.0, 0.0), (2.0, 0.0, 0.0)),
    (AT_MOST, 'squashed', (0.0, 0.0), (1.0, -0.5, -0.5)),
    (('>=', '=='), 'squashed', (0.0, 0.0), (1.5, 0.5, 0.0)),
    (EQUAL, 'squashed', (-20.0, -20.0), (4.0, -1.0, -1.0)),  # both rewards are minimised: the weight of the objective is 2 C
    (AT_LEAST, 'squashed', (20.0, -20.0), (1.0, 1.0, 0.0)),
    (AT_LEAST, 'unsquashed', (0.5, 2.0), (1.0, 0.5, 2.0)),  # the first multiplier too
    (('>=', '<='), 'log', (0.0, np.log(3.0)), (1 / 5, 1 / 5, -3 / 5)),
  ],
)
def test_the_weights_of_a_mixture(senses, form, mu, weights):
  mixture = lambda column: float(constrained.mix(jnp.eye(3)[column], jnp.asarray(mu, jnp.float32), senses, form))
  np.testing.assert_allclose([mixture(column) for column in range(3)], weights, atol=1e-6)


@pytest.mark.parametrize('senses', [AT_LEAST, EQUAL, ('==', '>=')])
def test_squashed_weights_sum_to_the_number_of_constraints(senses):
  for mu in np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32):
    np.testing.assert_allclose(constrained.mix(jnp.ones(3), jnp.asarray(mu), senses, 'squashed'), 2.0, rtol=1e-6)
  one = constrained.mix(jnp.array([3.0, 7.0]), jnp.array([0.4]), ('>=',), 'squashed')  # one constraint: a convex combination
  w = 1 / (1 + np.exp(-0.4))
  np.testing.assert_allclose(one, (1 - w) * 3 + w * 7, rtol=1e-6)


@pytest.mark.parametrize(('senses', 'slack'), [(AT_LEAST, -0.0025), (EQUAL, -0.01)])
def test_one_step_of_a_multiplier(senses, slack):
  np.testing.assert_allclose(step_of((0.0, 0.0), (0.1, 0.0), senses), (slack, 0.0), atol=1e-8)
  np.testing.assert_allclose(step_of((0.0, 0.0), (-0.1, 0.0), senses), (-slack, 0.0), atol=1e-8)  # violated: up
  np.testing.assert_allclose(step_of((0.0, 0.0), (0.1, 0.0), senses, learning_rate=0.01), (slack / 10, 0.0), atol=1e-8)


def test_at_most_is_at_least_of_the_negated_signal():
  for form in ('squashed', 'unsquashed', 'log'):
    np.testing.assert_allclose(step_of((0.3, 0.6), (0.1, -0.2), AT_MOST, form), step_of((0.3, 0.6), (-0.1, 0.2), AT_LEAST, form), atol=1e-7)
    a = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    mu = jnp.array([0.3, 0.6])
    np.testing.assert_allclose(constrained.mix(a, mu, AT_MOST, form), constrained.mix(a * np.array([1, -1, -1], np.float32), mu, AT_LEAST, form), rtol=1e-6)
  assert (step_of((0.0, 0.0), (0.1, 0.1), AT_MOST) > 0).all()  # cost above its limit: weight up


def test_gradients_are_clipped_by_the_norm_over_all_constraints():
  # tanh at 0: the gradient is the gap itself, (3, 4), of norm 5
  np.testing.assert_allclose(step_of((0.0, 0.0), (3.0, 4.0), EQUAL), (-0.03, -0.04), rtol=1e-5)
  np.testing.assert_allclose(step_of((0.0, 0.0), (0.3, 0.4), EQUAL), (-0.03, -0.04), rtol=1e-5)  # of norm 0.5: not clipped


def test_momentum_is_low_and_there():
  optimizer = constrained.multiplier_optimizer(EQUAL, 'unsquashed')
  mu, gradient = jnp.zeros(2), jnp.array([-0.1, 0.0])
  state = optimizer.init(mu)
  for _ in range(2):
    updates, state = optimizer.update(gradient, state, mu)
    mu = optax.apply_updates(mu, updates)
  np.testing.assert_allclose(mu, (0.01 + 0.01 * 1.1, 0.0), rtol=1e-5)


def test_multipliers_start_where_they_should():
  draws = np.array([constrained.init_multipliers(jax.random.key(k), AT_LEAST, 'squashed') for k in range(400)])
  np.testing.assert_array_equal(draws[:, 0], draws[:, 1])  # one draw for all
  np.testing.assert_allclose(draws[:, 0].std(), 0.01, rtol=0.15)
  np.testing.assert_array_equal(constrained.init_multipliers(jax.random.key(0), EQUAL, 'unsquashed'), 0.5)
  lagrange = constrained.weights(constrained.init_multipliers(jax.random.key(0), AT_MOST, 'log'), AT_MOST, 'log')
  np.testing.assert_array_equal(lagrange, 1.0)


# Bounds


def test_multipliers_are_held_within_bounds_and_come_back():
  def run(senses, form, gaps, **options):
    one = lambda mu, gap: (step_of(mu, gap, senses, form, learning_rate=5.0, **options), None)
    return jax.lax.scan(one, jnp.full(2, 0.5), jnp.array(gaps))[0]

  up, down = [(-1.0, -1.0)] * 200, [(1.0, 1.0)] * 200
  np.testing.assert_allclose(run(AT_LEAST, 'squashed', up, cap=3.0), 3.0, atol=1e-4)
  np.testing.assert_allclose(run(EQUAL, 'unsquashed', down, cap=4.0), -4.0, atol=1e-4)
  np.testing.assert_allclose(run(('>=', '=='), 'unsquashed', down), (0.0, -10.0), atol=1e-4)  # an inequality's is never negative
  np.testing.assert_allclose(run(('>=', '<='), 'unsquashed', [*down, (-0.04, 0.0)]), (0.2, 10.0), atol=1e-4)  # and leaves 0 at once
  lagrange = constrained.weights(run(AT_LEAST, 'log', up), AT_LEAST, 'log')
  np.testing.assert_allclose(lagrange, 5.0, rtol=1e-3)


def test_a_threshold_out_of_reach_is_reported():
  names, mu = ('a', 'b'), jnp.array([5.0, 0.0])
  figures = lambda senses, mu=mu: constrained.multiplier_metrics(
    mu, jnp.array([2.0, 8.0]), jnp.array([4.0, 4.0]), jnp.array([0.75, 1.5]), names=names, senses=senses, form='squashed'
  )  # fmt: skip
  means = {name: float(figures(AT_LEAST)[0][name] / figures(AT_LEAST)[1][name]) for name in figures(AT_LEAST)[0]}
  assert len(means) == 12
  assert means['constraints/a/capped'] == 1 and means['constraints/b/capped'] == 0
  for name, value in (('multiplier', 5.0), ('weight', 1 / (1 + np.exp(-5))), ('return', 0.5), ('gap', -0.25), ('violation', 0.25)):
    assert means[f'constraints/a/{name}'] == pytest.approx(value, rel=1e-6)
  assert means['constraints/b/violation'] == -0.5 and means['constraints/b/weight'] == 0.5
  violations = lambda senses: [float(figures(senses)[0][f'constraints/{name}/violation'] / 4) for name in names]
  assert violations(AT_MOST) == [-0.25, 0.5] and violations(EQUAL) == [0.25, 0.5]
  low = jnp.array([-5.0, 5.0])  # the weight of an inequality may vanish; that of an equality is as far as it goes
  assert [float(figures(AT_LEAST, low)[0][f'constraints/{name}/capped']) for name in names] == [0, 1]
  assert [float(figures(EQUAL, low)[0][f'constraints/{name}/capped']) for name in names] == [1, 1]


# Signals


def test_signals_are_normalised_apart_and_a_constant_one_is_zero():
  rng = np.random.default_rng(0)
  advantages = (rng.normal(size=(3, 8, 3)) * np.array([1.0, 100.0, 0.0]) + np.array([0.0, 5.0, 0.1])).astype(np.float32)
  mask = (rng.random((3, 8)) < 0.6).astype(np.float32)
  found = np.asarray(constrained.normalize_signals(advantages, mask))
  kept = advantages[mask > 0].astype(np.float64)
  np.testing.assert_allclose(found[mask > 0][:, :2], ((kept - kept.mean(0))[:, :2] / kept.std(0)[:2]), atol=1e-5)
  np.testing.assert_array_equal(found[..., 2], 0.0)
  np.testing.assert_array_equal(found[mask == 0], 0.0)
  np.testing.assert_array_equal(constrained.normalize_signals(advantages, np.zeros_like(mask)), 0.0)
  other = np.where(mask[..., None] > 0, advantages, np.float32(np.nan))  # what does not count is not read
  np.testing.assert_array_equal(constrained.normalize_signals(other, mask), found)
  scaled = constrained.normalize_signals(7 * advantages + 2, mask)
  np.testing.assert_allclose(scaled[..., :2], found[..., :2], atol=1e-4)


def test_returns_count_every_episode_once_or_every_token():
  signals = np.array([[[1.0, 2.0], [4.0, np.nan], [9.0, 9.0]]], np.float32)
  lengths = np.array([[3.0, 1.0, 0.0]], np.float32)  # the last one is absent
  np.testing.assert_array_equal(constrained.total_returns(signals, lengths), [[5.0, 2.0], [2.0, 1.0]])
  np.testing.assert_array_equal(constrained.total_returns(signals, lengths, 'token'), [[7.0, 6.0], [4.0, 3.0]])


def test_token_weighting_is_the_mean_reward_to_go_over_tokens():
  """The released code's figure: each token of an episode has the episode's last reward still to go."""
  rewards = np.array([[0, 0, 1.0], [4.0, 0, 0]])
  mask = np.array([[1, 1, 1], [1, 0, 0]])
  to_go = np.cumsum(rewards[:, ::-1], 1)[:, ::-1][mask > 0].mean()
  total, count = constrained.total_returns(np.array([[1.0], [4.0]], np.float32), mask.sum(1).astype(np.float32), 'token')
  np.testing.assert_allclose(total / count, to_go)


def test_ppo_sat_is_best_at_the_thresholds():
  signals = np.array([[0.2, 0.5], [0.3, 0.1]], np.float32)
  np.testing.assert_allclose(constrained.satisfaction_reward(signals, np.array([0.2, 0.4], np.float32)), [-0.01, -0.1], rtol=1e-5)


# Problems whose solution is known: two arms, of which the second has reward 1, and a policy that should stay near its reference.

REFERENCE = jnp.log(jnp.array([0.7, 0.3]))
REWARDS = jnp.array([0.0, 1.0])


def bandit(senses, form, threshold, *, steps=3000, learning_rate=0.1, accumulate=1, policy_rate=0.2, **options):
  """Runs policy and multiplier together; returns P(arm 1) and the weight at each step."""

  def objective(params, batch, key, step):
    del key, step
    log_p = jax.nn.log_softmax(params['policy']['logits'])
    p = jax.lax.stop_gradient(jnp.exp(log_p))[batch['arm']] * batch['weight']  # exact expectation over the arms
    kl_reward = jax.lax.stop_gradient(-(log_p - REFERENCE))[batch['arm']]
    mixed = constrained.mix(jnp.stack([kl_reward, REWARDS[batch['arm']]], -1), params['multipliers'], senses, form)
    returns = jnp.sum(p * REWARDS[batch['arm']])[None]
    gap = constrained.multiplier_loss(params['multipliers'], returns, jnp.sum(p)[None], params['thresholds'], senses, form)
    sums = {'loss': {'policy': -jnp.sum(p * mixed * log_p[batch['arm']]), 'multiplier': gap[0]}}
    return sums, {'loss': {'policy': jnp.float32(batch['share'].sum()), 'multiplier': jnp.float32(batch['share'].sum())}}

  optimizers = {'policy': optax.sgd(policy_rate), 'multipliers': constrained.multiplier_optimizer(senses, form, learning_rate=learning_rate, **options)}
  params = {
    'policy': {'logits': REFERENCE},
    'multipliers': constrained.init_multipliers(jax.random.key(0), senses, form),
    'thresholds': jnp.array([threshold]),
  }
  state = init_state(params, optimizers, jax.random.key(1))
  batch = {'arm': jnp.array([0, 1]), 'weight': jnp.ones(2), 'share': jnp.full(2, 0.5)}
  step = make_step(objective, optimizers, accumulate=accumulate)

  def one(state, _):
    state, _ = step(state, batch)
    return state, (jax.nn.softmax(state.params['policy']['logits'])[1], constrained.weights(state.params['multipliers'], senses, form)[0])

  return np.array(jax.jit(lambda state: jax.lax.scan(one, state, None, length=steps)[1])(state))


def logit(p):
  return np.log(p / (1 - p))


@pytest.mark.parametrize(
  ('sense', 'form', 'threshold', 'weight_of'),
  [
    # At the optimum log(p / (1 - p)) - log(q / (1 - q)) = lambda; squashed, w / (1 - w) = lambda.
    ('>=', 'squashed', 0.6, lambda multiplier: multiplier / (1 + multiplier)),
    ('==', 'squashed', 0.6, lambda multiplier: multiplier / (1 + multiplier)),
    ('==', 'squashed', 0.25, lambda multiplier: multiplier / (1 + multiplier)),  # below the reference's 0.3: negative
    ('>=', 'unsquashed', 0.6, lambda multiplier: multiplier),
    ('==', 'unsquashed', 0.15, lambda multiplier: multiplier),
    ('>=', 'log', 0.6, lambda multiplier: multiplier),
    ('<=', 'log', 0.2, lambda multiplier: -multiplier),
  ],
)
def test_the_bandit_meets_its_constraint_at_the_analytic_weight(sense, form, threshold, weight_of):
  p, w = bandit((sense,), form, threshold)[:, 1000:]
  assert p.mean() == pytest.approx(threshold, abs=2e-3)  # the AVERAGE policy
  assert w.mean() == pytest.approx(weight_of(logit(threshold) - logit(0.3)), rel=0.02)


def test_a_constraint_that_holds_anyway_leaves_the_reference_alone():
  for sense, threshold in (('>=', 0.1), ('<=', 0.5)):
    p, w = bandit((sense,), 'unsquashed', threshold)[:, 1000:]
    np.testing.assert_allclose(p, 0.3, atol=1e-3)
    np.testing.assert_array_equal(w, 0.0)


def test_a_threshold_out_of_reach_ends_at_the_cap_with_a_finite_policy():
  p, w = bandit(('>=',), 'unsquashed', 1.5, cap=3.0)[:, -1]
  assert w == pytest.approx(3.0, abs=1e-4)
  assert logit(p) == pytest.approx(3.0 + logit(0.3), rel=1e-2)  # the best policy under the capped weight
  p, w = bandit(('>=',), 'squashed', 1.5)[:, -1]
  assert np.isfinite(p) and w == pytest.approx(1 / (1 + np.exp(-5)), abs=1e-4)


def test_micro_batches_change_nothing():
  whole = bandit(('>=',), 'squashed', 0.6, steps=50)
  np.testing.assert_allclose(bandit(('>=',), 'squashed', 0.6, steps=50, accumulate=2), whole, atol=1e-6)
  assert np.ptp(whole[0]) > 0.01


def test_thresholds_and_seeds_run_side_by_side():
  """Nothing is recompiled for another threshold, which is an array of the state."""
  thresholds = jnp.array([0.4, 0.6, 0.8])
  mu = jax.vmap(lambda theta: step_of(jnp.zeros(1), jnp.array([0.5]) - theta, ('==',)))(thresholds)
  np.testing.assert_allclose(mu[:, 0], [-0.01, 0.01, 0.03], atol=1e-6)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: constrained.check(('>',), 'squashed'), "constraints: senses ('>',): give one of >=, <=, =="),
    (lambda: constrained.check((), 'squashed'), 'constraints: senses (): '),
    (lambda: constrained.check(('>=',), 'soft'), "constraints: form 'soft': choose one of squashed, unsquashed, log"),
    (lambda: constrained.check(('==',), 'log'), 'constraints: an equality needs multipliers of either sign'),
    (lambda: constrained.squash(jnp.zeros(1), 'softmax'), "constraints: squash 'softmax': choose one of sigmoid, tanh, none, exp"),
    (lambda: constrained.total_returns(jnp.zeros((1, 1)), jnp.ones(1), 'word'), "constraints: weighting 'word': choose one of episode, token"),
    (lambda: Constraints(names=('a',), senses=('==',), form='log'), 'constraints: an equality needs multipliers of either sign'),
  ],
)
def test_bad_input_is_named(make, message):
  with pytest.raises(InputError, match=re.escape(message)):
    make()
