"""The objective of reward models: loss terms named in a config, applied to one forward pass, and the metrics people know.

Dimensions: R rows, S slots, N responses.
"""

from collections.abc import Mapping
import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from rmjax import named
from rmjax.errors import InputError
from rmjax.models import RewardModel
from rmjax.training.optimizers import stop_frozen
from rmjax.training.step import Objective
from rmjax.trees import Array, response_lengths, Trees

PER = ('comparison', 'response', 'token', 'critique', 'rating', 'labelled', 'tree', 'batch')


def reward_objective(
  model: RewardModel, losses: Mapping[str, Mapping[str, Any]], *, freeze: str = '', networks: Mapping[str, nn.Module] | None = None
) -> Objective:
  """Objective of the parameters' part `reward`, and of the parts that further small networks have.

  Args:
    model: backbone and head.
    losses: term -> dict(name, per, weight, start, **options). `name` is the import path of a loss; its arguments are filled by name from
      the options, else from what is known of the batch: `logits` and `rewards` (the head's), `scores`, and each of its fields if they have
      names, `wins`, `margin`, `ratings`, `lengths` (tokens, [R, S, N]; 0 where absent), `batch` (the trees), every other label, and what
      each network gives, by the name of its part, and a `key` for what is drawn. `per` is what its mean is taken over: 'comparison', 'response',
      'token' (of responses, for a loss that is a sum over each one's), 'critique' (the tokens of critiques likewise), 'rating', 'labelled' (responses
      with a `quality`), 'tree', or 'batch' for a loss that is one number a batch. `start` is the first step that it counts at.
    freeze: regular expression of the parameters no gradient is computed for; the optimiser's.
    networks: part -> network of the lengths of responses, [R, S, N] -> [R, S, N].

  Returns:
    (params, batch, key, step) -> (sums, counts), with the terms, `accuracy` (ties in the labels left out, ties in the scores half
    right), `margin` (mean logit of the preferred over the other), `mean_reward`, `num_tokens` (padding left out), and what the head's
    `metrics(scores, batch)` adds, if it has that.

  Raises:
    InputError: an unknown path, option or `per`.
  """
  terms = {term: _resolve(term, **options) for term, options in losses.items() if options.get('weight', 1.0)}

  def objective(params, batch, key, step):
    scores = model.apply({'params': stop_frozen(params['reward'], freeze)}, batch)
    logits, rewards = model.head.preference_logits(scores), model.head.reward(scores)
    weights = jnp.nan_to_num(batch.labels['weights'])
    known = {
      **batch.labels,
      **(scores._asdict() if hasattr(scores, '_asdict') else {}),
      **dict(scores=scores, logits=logits, rewards=rewards, batch=batch, lengths=response_lengths(batch), key=key),
      'margin': jnp.nan_to_num(batch.labels['margins']),
    }
    known |= {part: network.apply({'params': params[part]}, known['lengths']) for part, network in (networks or {}).items()}
    sums, counts = preference_metrics(logits, rewards, batch)
    if hasattr(model.head, 'metrics'):
      sums, counts = (ours | theirs for ours, theirs in zip((sums, counts), model.head.metrics(scores, batch), strict=True))
    sums['loss'], counts['loss'] = {}, {}
    for term, (loss, defaults, options, per, weight, start) in terms.items():
      arguments = [name for name in defaults if name not in options]
      if missing := [name for name in arguments if name not in known and defaults[name] is inspect.Parameter.empty]:
        raise InputError(f'losses.{term} needs `{missing[0]}`, which neither the data nor a network gives; there are {", ".join(sorted(known))}')
      value = loss(**{name: known[name] for name in arguments if name in known}, **options)
      count = _counts(batch)[per]
      # The loss of an absent or uncompared response is garbage; a mask by multiplication would keep its NaN.
      value = jnp.where(jnp.broadcast_to(_spread(count, value), value.shape) > 0, value, 0.0)
      each = weights if per != 'batch' else jnp.ones(())
      sums['loss'][term] = jnp.where(step >= start, weight, 0.0) * jnp.sum(_spread(each, value) * value)
      counts['loss'][term] = jnp.sum(_spread(each, count) * count)
    return sums, counts

  return objective


def init_network(network: nn.Module, key: jax.Array) -> Any:
  """Parameters of a network of lengths, before the first step."""
  return nn.unbox(network.init(key, jnp.ones((1, 1, 1), jnp.int32)))['params']


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
    labelled=present * (batch.labels['quality'] >= 0) if 'quality' in batch.labels else jnp.zeros_like(present),
    batch=jnp.ones(()),
    comparison=batch.labels['wins'].sum((-2, -1)),
    response=present,
    token=response_lengths(batch).astype(jnp.float32),
    critique=jnp.maximum(batch.labels['critique_lengths'], 0).astype(jnp.float32) if 'critique_lengths' in batch.labels else jnp.zeros_like(present),
    rating=present * ~jnp.isnan(batch.labels['ratings']),
    tree=present.max(-1),
  )


def _spread(x: Array, like: Array) -> Array:
  """[R, S] against [R, S, N]."""
  return x[..., None] if x.ndim < like.ndim else x


def _resolve(term: str, *, name: str, per: str = 'comparison', weight: float = 1.0, start: int = 0, **options: Any):
  loss = named.resolve(f'losses.{term}', name, 'rmjax.losses.preference:preference_cross_entropy')
  if per not in PER:
    raise InputError(f"losses.{term}.per = '{per}': choose one of {', '.join(PER)}")
  parameters = inspect.signature(loss).parameters
  unknown = options.keys() - parameters.keys()
  if unknown:
    raise InputError(f'losses.{term}: {name} has no argument {sorted(unknown)[0]!r}; it takes {", ".join(parameters)}')
  return loss, {name: parameter.default for name, parameter in parameters.items()}, options, per, weight, start
