"""Log-probabilities of the tokens of responses, and the entropy where they were chosen."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, ScalarLike

from rmjax.backbones.decoder import Decoder
from rmjax.errors import InputError
from rmjax.models import per_token
from rmjax.trees import Array, Trees


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

  def of(logits: Array, tokens: Array) -> tuple[Array, Array]:
    log_p = jax.nn.log_softmax(logits / temperature)
    return jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0], -jnp.sum(jnp.exp(log_p) * log_p, -1)

  return nn.apply(lambda decoder: per_token(decoder, batch, of, chunk=chunk or batch.tokens.shape[1]), decoder)({'params': params})
