"""One iteration of policy optimization: sample, score, advantages, several epochs of updates; pure, so that it fits in one jit.

Dimensions: P prompts = R rows, S slots (one a row), N responses, T length, C signals.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from rmjax import trees
from rmjax.policy import advantages as estimators
from rmjax.policy import constrained, controllers, kl, surrogates
from rmjax.policy.algorithm import Algorithm, Constraints, UNCONSTRAINED
from rmjax.policy.objective import LogProbs, Values
from rmjax.training.step import TrainState
from rmjax.trees import Array, Trees

Params = Mapping[str, Any]
Signals = Mapping[str, Float[Array, 'R S N']]  # reward function -> rewards of the responses, NaN where it does not apply
Metrics = dict[str, tuple[Array, Array]]
Prepare = Callable[[Params, Trees, Signals], tuple[Trees, Metrics]]
Step = Callable[[TrainState, Trees], tuple[TrainState, Metrics]]
Update = Callable[[TrainState, Trees, Signals], tuple[TrainState, Metrics]]


def make_prepare(
  algorithm: Algorithm,
  log_probs_of: LogProbs,
  values_of: Values | None = None,
  *,
  reference_of: Callable[[Params, Trees], Float[Array, 'R T']] | None = None,
  constraints: Constraints = UNCONSTRAINED,
  length: int,
) -> Prepare:
  """Builds what gives a rollout the labels that `policy_objective` reads.

  Args:
    algorithm: the method.
    log_probs_of: (parameters, rollout) -> log-probs and entropies at the sampling temperature.
    values_of: the critic; values [R, T, 1], or [R, T, 1 + C] with constraints.
    reference_of: (all parameters, rollout) -> log-probs of the reference; None where there is none.
    constraints: which signals have thresholds.
    length: longest response in tokens.

  Returns:
    (params, rollout, signals) -> (labelled rollout, metrics). `params` has `policy`, `value` with a critic, what `reference_of` reads, and
    `scalars`: `weights` [number of signals] in their order, `kl_coefficient` [] and `thresholds` [C]. The rollout has labels `log_probs`, `mask`,
    `finished`, and `sampler_log_probs` if `algorithm.sampler_cap` is set. No gradient passes through the labels.
  """

  def prepare(params: Params, rollout: Trees, signals: Signals) -> tuple[Trees, Metrics]:
    labels = dict(rollout.labels)
    ended = labels['finished'] > 0
    if algorithm.mask_truncated:
      labels['mask'] = labels['mask'] * trees.to_tokens(ended.astype(jnp.float32), rollout)
    mask = labels['mask']
    if algorithm.recompute:
      labels['log_probs'] = log_probs_of(params['policy'], rollout)[0]
    metrics, divergence = {}, jnp.zeros_like(mask)
    if algorithm.sampler_cap:
      labels['sampler_weights'] = surrogates.sampler_weights(labels['log_probs'], labels['sampler_log_probs'], mask, cap=algorithm.sampler_cap)
      metrics['sampling/importance_sampling_ratio/mean'] = jnp.sum(mask * labels['sampler_weights']), mask.sum()
    if reference_of is not None:
      labels['ref_log_probs'] = reference_of(params, rollout)
      divergence = mask * kl.estimate(labels['log_probs'], labels['ref_log_probs'], 'k1')
      metrics |= kl_metrics(labels, rollout)
    if values_of is not None:
      labels['values'] = mask[..., None] * values_of(params['value'], rollout)

    present = rollout.response_ends >= 0
    penalties = algorithm.missing_end_penalty * (present & ~ended)
    if algorithm.overlong:
      penalties -= estimators.overlong_penalty(trees.response_lengths(rollout), max_length=length, cache=algorithm.overlong)
    weights, coefficient = params['scalars']['weights'], params['scalars']['kl_coefficient']
    coefficient = coefficient if algorithm.kl == 'reward' else 0.0
    rewards, valid = add_signals(signals, weights, present)
    if constraints.form == 'satisfaction':
      found = jnp.stack([signals[name] for name in constraints.names], -1)
      rewards += jnp.where(valid, constrained.satisfaction_reward(found, params['scalars']['thresholds']), 0.0)
    rewards -= jnp.where(valid, penalties, 0.0)
    metrics |= reward_metrics(signals, rewards, valid, rollout)

    at_ends = lambda scores: kl.terminal_rewards(scores, mask, rollout)
    with_kl = lambda scores: kl.token_rewards(scores, divergence, mask, rollout, coefficient=coefficient)
    if constraints.multipliers:
      columns = [with_kl(rewards)]
      columns += [-divergence if name == 'kl' else at_ends(jnp.nan_to_num(signals[name])) for name in constraints.names]
      labels |= _constrained(columns, labels, rollout, present)
    elif algorithm.advantages == 'gae':
      found, returns = gae(with_kl(rewards), labels['values'][..., 0], mask, rollout)
      labels |= dict(advantages=estimators.whiten(found, mask) if algorithm.whiten else found, returns=returns[..., None])
    elif algorithm.advantages == 'return':
      if algorithm.baseline != 'none':
        rewards = group(rewards, valid, rollout, scale='none')
      found = estimators.return_to_go(with_kl(rewards), mask, rollout.response_ids, discount=algorithm.discount)
      labels['advantages'] = estimators.whiten(found, mask)
    else:
      rewards -= jnp.where(valid, coefficient * trees.response_sums(divergence, rollout), 0.0)
      if algorithm.combine == 'normalize_then_sum':
        normalized = {name: jnp.where(jnp.isnan(x), x, group(jnp.nan_to_num(x), ~jnp.isnan(x) & present, rollout)) for name, x in signals.items()}
        rewards = jnp.where(valid, estimators.whiten(add_signals(normalized, weights, present)[0], valid), 0.0)
      else:
        rewards = group(rewards, valid, rollout)
      labels['advantages'] = trees.to_tokens(rewards, rollout)
      if algorithm.surrogate == 'regression':
        labels['targets'] = algorithm.regression_scale * rewards
    return dataclasses.replace(rollout, labels=jax.lax.stop_gradient(labels)), metrics

  def gae(rewards, values, mask, rollout):
    return estimators.gae(rewards, values, mask, rollout.response_ids, discount=algorithm.discount, decay=algorithm.decay)

  def group(rewards, valid, rollout, scale=algorithm.scale):
    return estimators.group_relative(rewards, valid, baseline=algorithm.baseline, scale=scale, lengths=trees.response_lengths(rollout))

  def _constrained(columns, labels, rollout, present):
    """Advantages, returns and episode returns of the objective and of every constraint."""
    mask = labels['mask']
    returns = jnp.stack([trees.response_sums(column, rollout) for column in columns[1:]], -1)
    if algorithm.advantages == 'gae':
      pairs = [gae(column, labels['values'][..., i], mask, rollout) for i, column in enumerate(columns)]
      found, targets = (jnp.stack(parts, -1) for parts in zip(*pairs, strict=True))
      return dict(advantages=found, returns=targets, returns_of_signals=returns)
    parts = [trees.to_tokens(group(trees.response_sums(column, rollout), present, rollout), rollout) for column in columns]
    return dict(advantages=jnp.stack(parts, -1), returns_of_signals=returns)

  return prepare


def make_update(algorithm: Algorithm, prepare: Prepare, step: Step, *, prompts: int, constraints: Constraints = UNCONSTRAINED) -> Update:
  """Builds the part of an iteration that comes after sampling and scoring.

  Args:
    algorithm: the method.
    prepare: see `make_prepare`.
    step: `rmjax.training.step.make_step` of `policy_objective`.
    prompts: P that are trained on; where more were sampled, those are taken first whose responses have different rewards (DAPO's refill, once).
    constraints: whose columns of advantages are normalised over each minibatch, or are not.

  Returns:
    (state, rollout, signals) -> (state, metrics). `state.step` counts iterations; within one, each update draws its own key.
  """

  def update(state: TrainState, rollout: Trees, signals: Signals) -> tuple[TrainState, Metrics]:
    if rollout.tokens.shape[0] > prompts:
      rewards, valid = add_signals(signals, state.params['scalars']['weights'], rollout.response_ends >= 0)
      useful = estimators.informative(rewards, valid).any(-1)
      rollout, signals = jax.tree.map(lambda x: x[jnp.argsort(~useful, stable=True)[:prompts]], (rollout, dict(signals)))
    batch, metrics = prepare(state.params, rollout, signals)
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)
    orders = jax.vmap(lambda key: jax.random.permutation(key, prompts))(jax.random.split(key, algorithm.epochs))
    updates = algorithm.epochs * algorithm.minibatches

    def one(state, rows):
      minibatch = jax.tree.map(lambda x: x[rows], batch)
      if constraints.multipliers and constraints.normalize:
        found = constrained.normalize_signals(minibatch.labels['advantages'], minibatch.labels['mask'])
        minibatch = dataclasses.replace(minibatch, labels={**minibatch.labels, 'advantages': found})
      return step(state, minibatch)

    inner = dataclasses.replace(state, step=state.step * updates)
    inner, found = jax.lax.scan(one, inner, orders.reshape(updates, -1))
    metrics |= {name: (total.sum(0), count.sum(0)) for name, (total, count) in found.items()}
    params = dict(inner.params)
    if algorithm.kl_target:
      mean = metrics['objective/kl'][0] / jnp.maximum(metrics['objective/kl'][1], 1.0)
      coefficient = params['scalars']['kl_coefficient']
      coefficient = controllers.adaptive_kl(
        coefficient, mean, target=algorithm.kl_target, horizon=algorithm.kl_horizon, rows=jnp.sum(rollout.response_ends >= 0)
      )  # fmt: skip
      params['scalars'] = {**params['scalars'], 'kl_coefficient': coefficient}
    metrics['objective/kl_coef'] = (params['scalars']['kl_coefficient'], jnp.ones(()))
    return dataclasses.replace(inner, step=state.step + 1, params=params), metrics

  return update


def sampling_key(state: TrainState) -> PRNGKeyArray:
  """The key of an iteration's rollouts."""
  return jax.random.fold_in(jax.random.fold_in(state.key, state.step), 0)


def add_signals(signals: Signals, weights: Float[Array, 'C'], present: Array) -> tuple[Float[Array, 'R S N'], Array]:
  """Weighted sum over the reward functions that apply to a response, and whether one does; 0 where none does."""
  stacked = jnp.stack([signals[name].astype(jnp.float32) for name in signals], -1)
  applies = ~jnp.isnan(stacked) & present[..., None]
  return jnp.sum(jnp.where(applies, stacked * weights, 0.0), -1), applies.any(-1)


def kl_metrics(labels: Mapping[str, Array], rollout: Trees) -> Metrics:
  """`kl`, nats a token by k3 (TRL's GRPO), and `objective/kl`, nats a response by k1 (TRL's PPO)."""
  mask, pair = labels['mask'], (labels['log_probs'], labels['ref_log_probs'])
  sums = {'kl': jnp.sum(mask * kl.estimate(*pair, 'k3')), 'objective/kl': jnp.sum(mask * kl.estimate(*pair, 'k1'))}
  counts = {'kl': mask.sum(), 'objective/kl': jnp.sum(rollout.response_ends >= 0, dtype=jnp.float32)}
  return {name: (sums[name], counts[name]) for name in sums}


def reward_metrics(signals: Signals, rewards: Float[Array, 'R S N'], valid: Array, rollout: Trees) -> Metrics:
  """TRL's figures of rewards and completions; spreads are those within a group, averaged over groups."""
  count = lambda x: jnp.sum(x, dtype=jnp.float32)
  present, ended = rollout.response_ends >= 0, rollout.labels['finished'] > 0
  lengths = trees.response_lengths(rollout).astype(jnp.float32)
  groups = count(present.any(-1))
  spread = _group_std(rewards, valid)
  metrics = {
    'reward': (count(jnp.where(valid, rewards, 0.0)), count(valid)),
    'reward_std': (count(spread), groups),
    'frac_reward_zero_std': (count(present.any(-1) & (spread == 0)), groups),
    'completions/mean_length': (count(lengths), count(present)),
    'completions/clipped_ratio': (count(present & ~ended), count(present)),
    'completions/mean_terminated_length': (count(jnp.where(ended, lengths, 0.0)), count(present & ended)),
    'num_tokens': (count(rollout.subtree_end > 0), jnp.ones(())),
  }
  for name, values in signals.items():
    applies = ~jnp.isnan(values) & present
    metrics[f'rewards/{name}/mean'] = (count(jnp.where(applies, values, 0.0)), count(applies))
    metrics[f'rewards/{name}/std'] = (count(_group_std(jnp.nan_to_num(values), applies)), groups)
  return metrics


def _group_std(values: Array, valid: Array) -> Array:
  """Standard deviation within each group; 0 with fewer than two."""
  number = jnp.sum(valid, -1)
  mean = jnp.sum(jnp.where(valid, values, 0.0), -1, keepdims=True) / jnp.maximum(number, 1)[..., None]
  return jnp.sqrt(jnp.sum(jnp.where(valid, (values - mean) ** 2, 0.0), -1) / jnp.maximum(number - 1, 1))

