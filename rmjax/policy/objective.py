"""The objective of policy optimization: a rollout that knows its advantages in, sums and counts out.

Dimensions: R rows, T length, S slots, N responses, C signals.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from rmjax import trees
from rmjax.policy import constrained, kl, surrogates
from rmjax.policy.algorithm import Algorithm, Constraints, UNCONSTRAINED
from rmjax.training.step import Objective
from rmjax.trees import Array, Trees

LogProbs = Callable[[Any, Trees], tuple[Float[Array, 'R T'], Float[Array, 'R T']]]  # (parameters, rollout) -> log-probs, entropies
Values = Callable[[Any, Trees], Float[Array, 'R T C']]


def policy_objective(
  algorithm: Algorithm, log_probs_of: LogProbs, values_of: Values | None = None, *, constraints: Constraints = UNCONSTRAINED, length: int
) -> Objective:
  """Objective of the parts `policy`, `value` (with a critic) and `multipliers` (with constraints).

  Args:
    algorithm: the method.
    log_probs_of: the policy, at the sampling temperature.
    values_of: the critic.
    constraints: what has multipliers.
    length: longest response in tokens, the divisor of aggregation 'constant'.

  Returns:
    (params, batch, key, step) -> (sums, counts). The batch's labels are `mask`, `log_probs` of the old policy and `advantages` ([R, T], or
    [R, T, 1 + C] with constraints: the objective's first); `targets` [R, S, N] with surrogate 'regression'; `sampler_weights` with a
    `sampler_cap`; `ref_log_probs` with a reference; `values` and `returns` [R, T, .] with a critic; `returns_of_signals` [R, S, N, C] with
    constraints. `params['scalars']` has `kl_coefficient` [] and, with constraints, `thresholds` [C]; nothing moves it here. Metrics have TRL's names.
  """

  def objective(params, batch, key, step):
    del key, step
    labels = batch.labels
    mask, old = labels['mask'], labels['log_probs']
    log_probs, entropy = log_probs_of(params['policy'], batch)
    ratio = surrogates.ratio(log_probs, old, mask, batch, level=algorithm.ratio)
    over = lambda values: surrogates.aggregate(values, mask, batch, algorithm.aggregation, length=length)
    per_token = lambda values: (jnp.sum(jnp.where(mask > 0, values, 0.0)), jnp.sum(mask))

    terms = {}
    if algorithm.surrogate == 'regression':
      present = (trees.response_sums(mask, batch) > 0).astype(jnp.float32)
      error = surrogates.squared_log_ratio(trees.response_sums(mask * (log_probs - old), batch), labels['targets'])
      terms['policy'] = jnp.sum(present * error), jnp.sum(present)
      advantages = jnp.zeros_like(mask)
    else:
      advantages = labels['advantages']
      if constraints.multipliers:
        advantages = constrained.mix(advantages, params['multipliers'], constraints.senses, constraints.form)
      if algorithm.surrogate == 'cispo':
        losses = surrogates.cispo(log_probs, ratio, advantages, high=algorithm.clip_high)
      else:
        losses = surrogates.clipped(ratio, advantages, low=algorithm.clip_low, high=algorithm.clip_high, dual=algorithm.dual_clip or None)
      if algorithm.sampler_cap:
        losses *= labels['sampler_weights']
      terms['policy'] = over(losses)
    if algorithm.kl == 'loss':
      divergence, count = over(kl.estimate(log_probs, labels['ref_log_probs'], algorithm.kl_estimator))
      terms['kl'] = params['scalars']['kl_coefficient'] * divergence, count
    if algorithm.entropy_weight:
      total, count = over(entropy)
      terms['entropy'] = -algorithm.entropy_weight * total, count
    if values_of is not None:
      values = values_of(params['value'], batch)
      errors = surrogates.value_loss(values, labels['returns'], labels['values'], clip=algorithm.value_clip or None)
      of_objective, of_constraint = constraints.value_weights if constraints.multipliers else (1.0, 0.0)
      each = jnp.array([of_objective] + [of_constraint] * (errors.shape[-1] - 1))
      total, count = per_token(errors @ each)
      terms['value'] = algorithm.value_weight * total, count
    metrics = {}
    if constraints.multipliers:
      returns, counts = constrained.total_returns(labels['returns_of_signals'], trees.response_sums(mask, batch), constraints.weighting)
      pair, thresholds = (constraints.senses, constraints.form), params['scalars']['thresholds']
      gaps = constrained.multiplier_loss(params['multipliers'], returns, counts, thresholds, *pair)
      terms |= {f'multiplier_{name}': (gaps[i], counts[i]) for i, name in enumerate(constraints.names)}
      found = constrained.multiplier_metrics(
        params['multipliers'], returns, counts, thresholds, names=constraints.names, senses=pair[0], form=pair[1], cap=constraints.cap or None
      )  # fmt: skip
      metrics |= {name: (found[0][name], found[1][name]) for name in found[0]}

    low, high = surrogates.clip_shares(ratio, advantages, low=algorithm.clip_low, high=algorithm.clip_high)
    share = lambda which: per_token(which.astype(jnp.float32))
    metrics |= {
      'entropy': per_token(entropy),
      'clip_ratio/low_mean': share(low),
      'clip_ratio/high_mean': share(high),
      'clip_ratio/region_mean': share(low | high),
      'policy/approxkl_avg': per_token(kl.estimate(old, log_probs, 'k3')),
      'val/ratio': per_token(ratio),
    }
    sums, counts = ({name: pair[i] for name, pair in metrics.items()} for i in (0, 1))
    sums['loss'], counts['loss'] = ({name: pair[i] for name, pair in terms.items()} for i in (0, 1))
    return sums, counts

  return objective

