"""The one training step: state and batch in, state and metrics out, whatever is trained."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int, PRNGKeyArray
import optax

from rmjax.trees import Array

Params = dict[str, Any]  # part -> plain nested dict of arrays
Sums = dict[str, Any]
Objective = Callable[[Params, Any, PRNGKeyArray, Int[Array, '']], tuple[Sums, Sums]]
"""(params, batch, key, step) -> (sums, counts), both with the same keys, float32 scalars.

`sums['loss']` is a dict of weighted terms: what is minimised is the sum over terms of sums / counts. Everything else is a metric.
Counts depend on the batch alone, never on the parameters.
"""


@no_type_check  # jax builds it around whatever a tree map gives
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that training carries from step to step, but for the data iterator.

  Attributes:
    step: updates made.
    params: by part, such as `reward`, or `policy` and `value`.
    opt_state: by part.
    key: never split; each step folds its number in, so that a resumed run draws what the first would have.
  """

  step: Int[Array, '']
  params: Params
  opt_state: dict[str, Any]
  key: PRNGKeyArray


def init_state(params: Params, optimizers: Mapping[str, optax.GradientTransformation], key: PRNGKeyArray) -> TrainState:
  """State before the first step."""
  return TrainState(jnp.zeros((), jnp.int32), params, {part: optimizer.init(params[part]) for part, optimizer in optimizers.items()}, key)


def make_step(
  objective: Objective,
  optimizers: Mapping[str, optax.GradientTransformation],
  *,
  accumulate: int = 1,
  moves: Callable[[Int[Array, '']], Mapping[str, Bool[Array, '']]] = lambda step: {},
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]:
  """Builds the step; jit it with the state donated.

  Args:
    objective: what is minimised and measured.
    optimizers: one a part of the parameters; a part without one stays as it is.
    accumulate: micro-batches that a batch's rows are cut into, to save memory. Exact whatever the masks: every term is divided by its
      count over the whole batch, never by a micro-batch's.
    moves: step -> whether a part moves at that step; parts not named do. A part that rests keeps its optimiser state too.

  Returns:
    (state, batch) -> (state, metrics), metrics a dict of (sum, count) by name, with `loss`, its terms `loss/<term>` where there are
    several, and `grad_norm` (before clipping).
  """

  def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
    key = jax.random.fold_in(state.key, state.step)
    # Rows are dealt out in turn, so that each device cuts up its own and none moves.
    micro = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), batch)
    keys = jax.random.split(key, accumulate)
    trained = {part: state.params[part] for part in optimizers}

    def evaluate(trained, batch, key):
      return objective({**state.params, **trained}, batch, key, state.step)

    # The counts first. They do not depend on the parameters, so the forward pass that would give them is dead code and is never run.
    counts = jax.tree.map(lambda x: x.sum(0), jax.lax.map(lambda xs: evaluate(trained, *xs)[1], (micro, keys)))

    def loss(trained, batch, key):
      sums, _ = evaluate(trained, batch, key)
      return total_loss(sums, counts), sums

    def add(carry, xs):
      (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(trained, *xs)
      return jax.tree.map(jnp.add, carry, (sums, grads)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (jax.eval_shape(evaluate, trained, *jax.tree.map(lambda x: x[0], (micro, keys)))[0], trained))
    (sums, grads), _ = jax.lax.scan(add, zeros, (micro, keys))

    params, opt_state = dict(state.params), dict(state.opt_state)
    moving = moves(state.step)
    for part, optimizer in optimizers.items():
      updates, new_opt_state = optimizer.update(grads[part], opt_state[part], params[part])
      moved = optax.apply_updates(params[part], updates), new_opt_state
      if part in moving:
        moved = jax.tree.map(lambda new, old, on=moving[part]: jnp.where(on, new, old), moved, (params[part], opt_state[part]))
      params[part], opt_state[part] = moved
    metrics = flat_metrics(sums, counts)
    metrics['grad_norm'] = (optax.tree.norm(grads), jnp.ones(()))
    return TrainState(state.step + 1, params, opt_state, state.key), metrics

  return step


def total_loss(sums: Sums, counts: Sums) -> Array:
  """Sum over the loss's terms of their means; a term that counts nothing adds 0."""
  return sum(_mean(sums['loss'][term], counts['loss'][term]) for term in sums['loss'])


def flat_metrics(sums: Sums, counts: Sums) -> dict[str, tuple[Array, Array]]:
  """(sum, count) by name. `loss` is the total; its terms are listed as well where there are several."""
  metrics = {name: (sums[name], counts[name]) for name in sums if name != 'loss'}
  count = jnp.ones(())
  if len(sums['loss']) == 1:  # one term has a count of its own, so that batches merge exactly
    (term,) = sums['loss']
    return {'loss': (sums['loss'][term], counts['loss'][term]), **metrics}
  terms = {f'loss/{term}': (sums['loss'][term], counts['loss'][term]) for term in sums['loss']}
  return {'loss': (total_loss(sums, counts), count), **terms, **metrics}


def _mean(total: Array, count: Array) -> Array:
  return jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), 0.0)
