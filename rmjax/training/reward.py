"""The objective of reward models: loss terms named in a config, applied to one forward pass, and the metrics people know.

Dimensions: R rows, S slots, N responses.
"""

from collections.abc import Mapping
import inspect
import pkgutil
from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from rmjax.errors import InputError
from rmjax.models import RewardModel
from rmjax.training.optimizers import stop_frozen
from rmjax.training.step import Objective
from rmjax.trees import Array, response_lengths, Trees


def reward_objective(model: RewardModel, losses: Mapping[str, Mapping[str, Any]], *, freeze: str = '') -> Objective:
  """Objective of the parameters' part `reward`.

  Args:
    model: backbone and head.
    losses: term -> dict(name, per, weight, **options). `name` is the import path of a loss; its arguments are filled by name from the
      options, else from what is known of the batch: `logits` and `rewards` (the head's), `scores`, `wins`, `margin`, `ratings`,
      `lengths` (tokens, [R, S, N]), `batch` (the trees) and every other label. `per` is what its mean is taken over: 'comparison',
      'response', 'rating' or 'tree'.
    freeze: regular expression of the parameters no gradient is computed for; the optimiser's.

  Returns:
    (params, batch, key, step) -> (sums, counts), with the terms, `accuracy` (ties in the labels left out, ties in the scores half
    right), `margin` (mean logit of the preferred over the other), `mean_reward` and `num_tokens` (padding left out).

  Raises:
    InputError: an unknown path, option or `per`.
  """
  terms = {term: _resolve(term, **options) for term, options in losses.items() if options.get('weight', 1.0)}

  def objective(params, batch, key, step):
    del key, step
    scores = model.apply({'params': stop_frozen(params['reward'], freeze)}, batch)
    logits, rewards = model.head.preference_logits(scores), model.head.reward(scores)
    weights = jnp.nan_to_num(batch.labels['weights'])
    known = {
      **batch.labels,
      **dict(scores=scores, logits=logits, rewards=rewards, batch=batch, lengths=response_lengths(batch)),
      'margin': jnp.nan_to_num(batch.labels['margins']),
    }
    sums, counts = preference_metrics(logits, rewards, batch)
    sums['loss'], counts['loss'] = {}, {}
    for term, (loss, arguments, options, per, weight) in terms.items():
      value = loss(**{name: known[name] for name in arguments if name in known}, **options)
      count = _counts(batch)[per]
      # The loss of an absent or uncompared response is garbage; a mask by multiplication would keep its NaN.
      value = jnp.where(jnp.broadcast_to(_spread(count, value), value.shape) > 0, value, 0.0)
      sums['loss'][term] = weight * jnp.sum(_spread(weights, value) * value)
      counts['loss'][term] = jnp.sum(_spread(weights, count) * count)
    return sums, counts

  return objective


def preference_metrics(logits: Float[Array, 'R S N N'], rewards: Float[Array, 'R S N'], batch: Trees) -> tuple[dict[str, Array], dict[str, Array]]:
  """(sums, counts) of accuracy, margin, mean_reward and num_tokens."""
  preferred = batch.labels['wins'] > 0.5
  right = jnp.where(logits > 0, 1.0, jnp.where(logits == 0, 0.5, 0.0))
  present = batch.response_ends >= 0
  compared = jnp.sum(preferred, dtype=jnp.float32)
  sums = dict(
    accuracy=jnp.sum(jnp.where(preferred, right, 0.0)),
    margin=jnp.sum(jnp.where(preferred, logits, 0.0)),
    mean_reward=jnp.sum(jnp.where(present, rewards, 0.0)),
    num_tokens=jnp.sum(batch.subtree_end > 0, dtype=jnp.float32),
  )
  counts = dict(accuracy=compared, margin=compared, mean_reward=jnp.sum(present, dtype=jnp.float32), num_tokens=jnp.ones(()))
  return sums, counts


def _counts(batch: Trees) -> dict[str, Array]:
  present = (batch.response_ends >= 0).astype(jnp.float32)
  return dict(
    comparison=batch.labels['wins'].sum((-2, -1)),
    response=present,
    rating=present * ~jnp.isnan(batch.labels['ratings']),
    tree=present.max(-1),
  )


def _spread(x: Array, like: Array) -> Array:
  """[R, S] against [R, S, N]."""
  return x[..., None] if x.ndim < like.ndim else x


def _resolve(term: str, *, name: str, per: str = 'comparison', weight: float = 1.0, **options: Any):
  try:
    loss = pkgutil.resolve_name(name)
  except (ImportError, AttributeError, ValueError) as e:
    raise InputError(f"losses.{term}.name = '{name}': {e}; give an import path such as 'rmjax.losses.preference:preference_cross_entropy'") from e
  if per not in ('comparison', 'response', 'rating', 'tree'):
    raise InputError(f"losses.{term}.per = '{per}': choose 'comparison', 'response', 'rating' or 'tree'")
  parameters = inspect.signature(loss).parameters
  unknown = options.keys() - parameters.keys()
  if unknown:
    raise InputError(f'losses.{term}: {name} has no argument {sorted(unknown)[0]!r}; it takes {", ".join(parameters)}')
  return loss, [argument for argument in parameters if argument not in options], options, per, weight
