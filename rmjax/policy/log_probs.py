"""Log-probabilities of the tokens of responses, and the entropy where they were chosen."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, ScalarLike

from rmjax.backbones.decoder import Decoder
from rmjax.errors import InputError
from rmjax.trees import Array, gather, Trees


def token_log_probs(
  decoder: Decoder, params: Any, batch: Trees, *, temperature: ScalarLike = 1.0, chunk: int = 0
) -> tuple[Float[Array, 'R T'], Float[Array, 'R T']]:
  """Log p(token | its path) of each token of a response, and the entropy of the distribution that it was drawn from.

  Args:
    decoder: the policy.
    params: the decoder's.
    batch: trees.
    temperature: logits are divided by it, as the sampler's were.
    chunk: columns whose logits are held at a time, also in the backward pass, which computes them again; 0 for all at once.

  Returns:
    Both float32, nats; 0 for tokens of no response and where there is no token before.

  Raises:
    InputError: chunk is negative.
  """
  if chunk < 0:
    raise InputError(f'chunk = {chunk}: it must be positive, or 0 for all columns at once')
  hidden = decoder.apply({'params': params}, batch.tokens, batch.positions, batch.subtree_end)

  def of(hidden, tokens):
    logits = decoder.apply({'params': params}, hidden, method='unembed') / temperature
    log_p = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0], -jnp.sum(jnp.exp(log_p) * log_p, -1)

  rows, length = batch.tokens.shape
  before = gather(hidden, batch.parents)
  if chunk and chunk < length:
    count = -(-length // chunk)
    cut = lambda x: jnp.moveaxis(jnp.pad(x, [(0, 0), (0, count * chunk - length), *[(0, 0)] * (x.ndim - 2)]).reshape(rows, count, chunk, *x.shape[2:]), 1, 0)
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, -1)[:, :length]
    out = tuple(map(join, jax.lax.map(jax.checkpoint(lambda xs: of(*xs)), (cut(before), cut(batch.tokens)))))
  else:
    out = of(before, batch.tokens)
  known = (batch.response_ids >= 0) & (batch.parents >= 0)
  return tuple(jnp.where(known, x, 0.0) for x in out)
