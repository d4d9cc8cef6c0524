"""The iteration on a decoder of a few hundred parameters: what it minimises, that it is exact however it is cut, and that it learns."""

import dataclasses
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmjax import trees
from rmjax.backbones.decoder import Decoder, DecoderConfig
from rmjax.decoding.generate import generate
from rmjax.errors import InputError
from rmjax.heads.value import ValueHead
from rmjax.policy import constrained, iteration
from rmjax.policy.algorithm import Algorithm, Constraints, UNCONSTRAINED
from rmjax.policy.log_probs import token_log_probs
from rmjax.policy.models import Critic, LanguageModel
from rmjax.policy.objective import policy_objective
from rmjax.training.step import init_state, make_step

P, L, N, M = 4, 3, 4, 5
DECODER = Decoder(DecoderConfig(vocab_size=8, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1))
END, WANTED = 0, 3
PROMPTS, LENGTHS = np.array([[1, 2, 3], [4, 5, 0], [6, 0, 0], [2, 2, 1]], np.int32), np.array([3, 2, 1, 3], np.int32)


def log_probs_of(params, batch):
  return token_log_probs(DECODER, params['backbone'], batch)


def reference_of(params, batch):
  return log_probs_of(params['reference'], batch)[0]


def wanted(batch):
  """Share of a response's tokens that are the wanted one."""
  hits = trees.response_sums((batch.tokens == WANTED).astype(jnp.float32), batch)
  return jnp.where(batch.response_ends >= 0, hits / jnp.maximum(trees.response_lengths(batch), 1), jnp.nan)


def lengths(batch):
  return jnp.where(batch.response_ends >= 0, trees.response_lengths(batch) / M, jnp.nan)


def build(algorithm, *, constraints=UNCONSTRAINED, thresholds=(), rewards=(wanted,), accumulate=1, learning_rate=0.02, sgd=False, kl_coefficient=0.05):
  """(state, sample, update) of a method on the tiny decoder."""
  critic = Critic(DECODER, ValueHead(1 + len(constraints.names) * constraints.multipliers)) if algorithm.needs_critic else None
  values_of = critic and (lambda params, batch: critic.apply({'params': params}, batch))
  prepare = iteration.make_prepare(algorithm, log_probs_of, values_of, reference_of=reference_of, constraints=constraints, length=M)
  objective = policy_objective(algorithm, log_probs_of, values_of, constraints=constraints, length=M)
  optimizer = optax.sgd(learning_rate) if sgd else optax.adam(learning_rate)
  optimizers = {'policy': optimizer} | ({'value': optimizer} if critic else {})
  if constraints.multipliers:
    optimizers['multipliers'] = constrained.multiplier_optimizer(constraints.senses, constraints.form)
  update = iteration.make_update(
    algorithm, prepare, make_step(objective, optimizers, accumulate=accumulate), prompts=P, constraints=constraints
  )

  def init(key):
    example = trees.pack([[trees.branch([1], [[2]])]], length=4, slots=1, responses=1)
    params = {'policy': nn.unbox(LanguageModel(DECODER).init(key, example))['params']}
    params['policy']['backbone']['embedding']['embedding'] *= 0.3  # tied: near a uniform policy
    params['reference'] = params['policy']
    params['scalars'] = dict(kl_coefficient=jnp.float32(kl_coefficient), weights=jnp.ones(len(rewards)), thresholds=jnp.array(thresholds, jnp.float32))
    if critic:
      params['value'] = nn.unbox(critic.init(key, example))['params']
    if constraints.multipliers:
      params['multipliers'] = constrained.init_multipliers(key, constraints.senses, constraints.form)
    return init_state(params, optimizers, key)

  signals = lambda rollout: {reward.__name__: reward(rollout) for reward in rewards}
  return Built(init, lambda state, rollout: update(state, rollout, signals(rollout)), signals, objective, prepare, update)


class Built(NamedTuple):
  init: Any
  advance: Any
  signals: Any
  objective: Any
  prepare: Any
  update: Any


def sample(state):
  return _sample(state.params['policy']['backbone'], iteration.sampling_key(state))


@jax.jit  # once for all methods
def _sample(params, key):
  return generate(DECODER, params, PROMPTS, LENGTHS, key, responses=N, max_new_tokens=M, stop_tokens=(END,))


def iterate(built, state):
  return built.advance(state, sample(state))


def compiled(built):
  advance = jax.jit(built.advance)
  return lambda state: advance(state, sample(state))


METHODS = {
  'grpo': Algorithm(kl='loss', aggregation='sequence_mean_token_mean'),
  'dr_grpo': Algorithm(scale='none', aggregation='constant'),
  'rloo': Algorithm(baseline='leave_one_out', scale='none', ratio='sequence_sum', kl='reward', kl_estimator='k1', aggregation='sequence_mean_token_mean'),
  'gspo': Algorithm(ratio='sequence', clip_low=0.01, clip_high=0.01, epochs=2),
  'cispo': Algorithm(surrogate='cispo', clip_high=5.0, epochs=2),
  'reinforce_pp': Algorithm(advantages='return', baseline='none', kl='reward'),
  'ppo': Algorithm(advantages='gae', kl='reward', epochs=2, minibatches=2),
  'gpo': Algorithm(surrogate='regression', baseline='mean', scale='none', regression_scale=4.0, epochs=3),
}


@pytest.mark.parametrize('name', ['grpo', 'ppo', 'reinforce_pp', 'cispo', 'gpo'])
def test_every_method_learns_what_is_rewarded(name):
  built = build(METHODS[name], kl_coefficient=0.01)
  step = compiled(built)
  state = built.init(jax.random.key(0))
  found = []
  for _ in range(30):
    state, metrics = step(state)
    found.append(float(metrics['rewards/wanted/mean'][0] / metrics['rewards/wanted/mean'][1]))
  assert found[0] < 0.3
  assert np.mean(found[-5:]) > 0.7, found[::5]
  assert int(state.step) == 30
  assert all(np.isfinite(float(total)) for total, _ in metrics.values())


def test_the_first_gradient_is_that_of_the_policy_gradient_theorem():
  """At ratio 1 the gradient is -E[A grad log p] whatever the clipping, here of Dr.GRPO with its constant divisor."""
  algorithm = Algorithm(scale='none', aggregation='constant')
  built = build(algorithm)
  state = built.init(jax.random.key(1))
  rollout = sample(state)
  batch, _ = built.prepare(state.params, rollout, built.signals(rollout))
  scores = wanted(rollout)

  def ours(policy):
    sums, counts = built.objective({**state.params, 'policy': policy}, batch, jax.random.key(0), 0)
    return sums['loss']['policy'] / counts['loss']['policy']

  def theirs(policy):
    total = trees.response_sums(log_probs_of(policy, rollout)[0], rollout)
    return -jnp.sum((scores - scores.mean(-1, keepdims=True)) * total) / (P * N * M)

  chex.assert_trees_all_close(jax.grad(ours)(state.params['policy']), jax.grad(theirs)(state.params['policy']), atol=1e-6)
  value, _ = built.objective(state.params, batch, jax.random.key(0), 0)
  np.testing.assert_allclose(value['val/ratio'], batch.labels['mask'].sum(), rtol=1e-5)  # rho = 1: the sampler's log-probs are the trainer's


def test_tokens_are_weighted_by_what_the_sampler_said_of_them():
  """Where it said half or a quarter of what the trainer says, the gradient is that of the theorem with weights 2 and, capped, 3."""
  built = build(Algorithm(scale='none', aggregation='constant', sampler_cap=3.0))
  state = built.init(jax.random.key(1))
  rollout = sample(state)
  less = jnp.where(jnp.arange(rollout.tokens.shape[1]) % 2, jnp.log(2.0), jnp.log(4.0))
  labels = {**rollout.labels, 'sampler_log_probs': rollout.labels['log_probs'] - less}
  rollout = dataclasses.replace(rollout, labels=labels)
  batch, metrics = built.prepare(state.params, rollout, built.signals(rollout))
  scores = wanted(rollout)

  def ours(policy):
    sums, counts = built.objective({**state.params, 'policy': policy}, batch, jax.random.key(0), 0)
    return sums['loss']['policy'] / counts['loss']['policy']

  def theirs(policy):
    weights = jnp.where(jnp.arange(rollout.tokens.shape[1]) % 2, 2.0, 3.0)
    total = trees.response_sums(weights * log_probs_of(policy, rollout)[0], rollout)
    return -jnp.sum((scores - scores.mean(-1, keepdims=True)) * total) / (P * N * M)

  chex.assert_trees_all_close(jax.grad(ours)(state.params['policy']), jax.grad(theirs)(state.params['policy']), atol=1e-6)
  total, count = metrics['sampling/importance_sampling_ratio/mean']
  assert 2.0 < total / count < 3.0


@pytest.mark.parametrize('name', ['rloo', 'gspo', 'ppo'])
def test_micro_batches_change_nothing(name):
  algorithm = dataclasses.replace(METHODS[name], minibatches=1, epochs=1)
  whole, cut = (build(algorithm, sgd=True, accumulate=accumulate) for accumulate in (1, 4))
  state = whole.init(jax.random.key(2))
  one, two = (compiled(built)(state) for built in (whole, cut))
  chex.assert_trees_all_close(one[0].params, two[0].params, atol=1e-6)
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params['policy'], one[0].params['policy'])
  assert max(jax.tree.leaves(moved)) > 1e-5


def test_a_group_that_agrees_moves_nothing():
  constant = lambda batch: jnp.where(batch.response_ends >= 0, 0.7, jnp.nan)
  constant.__name__ = 'constant'
  built = build(Algorithm(), rewards=(constant,), sgd=True)
  state = built.init(jax.random.key(3))
  after, metrics = compiled(built)(state)
  chex.assert_trees_all_equal(after.params['policy'], state.params['policy'])
  assert float(metrics['frac_reward_zero_std'][0] / metrics['frac_reward_zero_std'][1]) == 1


def test_seeds_side_by_side_are_seeds_one_by_one():
  built = build(METHODS['ppo'])
  states = jax.vmap(built.init)(jax.random.split(jax.random.key(4), 2))
  each = [jax.tree.map(lambda x, number=number: x[number], states) for number in range(2)]
  rollouts = jax.jit(jax.vmap(sample))(states)
  together, _ = jax.jit(jax.vmap(built.advance))(states, rollouts)
  step = compiled(built)
  for number, state in enumerate(each):
    alone, _ = step(state)
    chex.assert_trees_all_close(jax.tree.map(lambda x, number=number: x[number], together.params), alone.params, atol=2e-5)


def test_rewards_that_do_not_apply_are_left_out():
  """TRL's None: a response that no function scores has no advantage and is in no baseline; one that one scores has that one's."""
  built = build(Algorithm(scale='none'), rewards=(wanted, lengths))
  state = built.init(jax.random.key(5))
  rollout = sample(state)
  one = jnp.where(jnp.arange(N) < 2, wanted(rollout), jnp.nan)
  two = jnp.where(jnp.arange(N) == 1, 1.0, jnp.nan) + jnp.zeros((P, 1, N))
  batch, metrics = built.prepare(state.params, rollout, dict(wanted=one, lengths=two))
  total = np.where(np.arange(N) == 1, np.asarray(one) + 1, np.asarray(one))[..., :2]
  expected = np.concatenate([total - total.mean(-1, keepdims=True), np.zeros((P, 1, 2))], -1)
  np.testing.assert_allclose(batch.labels['advantages'], trees.to_tokens(jnp.float32(expected), rollout), atol=1e-6)
  assert float(metrics['rewards/lengths/mean'][1]) == P


def test_oversampling_takes_the_groups_that_differ():
  algorithm = Algorithm(scale='none')
  built = build(algorithm)
  state = built.init(jax.random.key(6))
  rollout = sample(state)
  doubled = jax.tree.map(lambda x: jnp.concatenate([x, x]), rollout)
  flat = jnp.where(rollout.response_ends >= 0, 0.5, jnp.nan)
  _, metrics = built.update(state, doubled, dict(wanted=jnp.concatenate([flat, wanted(rollout)])))
  _, alone = built.update(state, rollout, dict(wanted=wanted(rollout)))
  assert float(metrics['frac_reward_zero_std'][0]) == float(alone['frac_reward_zero_std'][0])


def test_an_adaptive_coefficient_steers_for_its_target():
  algorithm = Algorithm(advantages='gae', kl='reward', kl_target=1e-3, kl_horizon=float(P * N))
  built = build(algorithm, learning_rate=0.05)
  step = compiled(built)
  state = built.init(jax.random.key(7))
  state, _ = step(state)
  assert float(state.params['scalars']['kl_coefficient']) == pytest.approx(0.05 * 0.8)  # no divergence yet: down by the most
  for _ in range(5):
    state, metrics = step(state)
  assert float(metrics['objective/kl'][0] / metrics['objective/kl'][1]) > 1e-3
  assert float(state.params['scalars']['kl_coefficient']) > 0.05 * 0.8


@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize('advantages', ['gae', 'group'])
def test_a_constraint_is_met(advantages, normalize):
  """xi-PPO and its critic-free kin: half of the tokens shall be the wanted one, no more; the uniform policy has an eighth."""
  constraints = Constraints(names=('wanted',), senses=('==',), normalize=normalize)
  algorithm = Algorithm(advantages=advantages, baseline='mean', scale='none' if advantages == 'group' else 'group', kl='reward', discount=0.99, epochs=2)
  built = build(algorithm, constraints=constraints, thresholds=(0.5,), kl_coefficient=0.1)
  step = compiled(built)
  state, found, multipliers = built.init(jax.random.key(8)), [], []
  state.params['scalars']['weights'] = jnp.zeros(1)  # the reward is in the constraint alone
  for _ in range(150):
    state, metrics = step(state)
    found.append(float(metrics['constraints/wanted/return'][0] / metrics['constraints/wanted/return'][1]))
    multipliers.append(float(state.params['multipliers'][0]))
  assert found[0] < 0.3
  # A step of mu is 0.1 g'(mu) (theta - J): while mu stays within its bounds, J is theta in the mean that g' weighs, whatever circle it runs. That mean is
  # off by |mu| / (0.2 sum g'), a tenth where mu ends at 2. All that descent and ascent at once promises, and all that holds of normalised columns.
  assert np.abs(multipliers).max() < 2
  assert np.average(found, weights=1 - np.tanh(multipliers) ** 2) == pytest.approx(0.5, abs=0.1), found[::10]
  if not normalize:
    assert np.mean(found[50:]) == pytest.approx(0.5, abs=0.06), found[::10]


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(advantages='gea'), "algorithm.advantages = 'gea'"),
    (dict(epochs=0), 'algorithm.epochs = 0'),
    (dict(clip_low=float('nan')), 'algorithm.clip_low = nan'),
    (dict(surrogate='regression', advantages='gae'), 'regression'),
    (dict(surrogate='regression', sampler_cap=2.0), 'algorithm.sampler_cap'),
    (dict(advantages='return', baseline='leave_one_out'), 'algorithm.baseline'),
  ],
)
def test_what_makes_no_method_is_refused(options, message):
  with pytest.raises(InputError, match=message):
    Algorithm(**options)
