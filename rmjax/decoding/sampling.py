"""From logits to a token: temperature, truncation of the distribution, and the draw.

Dimensions: B any leading ones, V vocabulary.
"""

import dataclasses
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from rmjax.errors import InputError
from rmjax.trees import Array

_BLOCK = 128  # tokens


@no_type_check  # jax builds it around whatever a tree map gives
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are drawn. A pytree of which the temperature is the one leaf: it may be traced, the rest is static.

  Attributes:
    temperature: logits are divided by it; 0 takes the most likely token.
    top_k: only the k most likely tokens; 0 for all. Those that tie with the last one stay too, as they do for `top_p`.
    top_p: only the fewest most likely tokens that together have this probability, of what `top_k` left.
    min_p: only tokens at least this fraction as likely as the most likely one.

  Reference: top-k Fan et al., Hierarchical Neural Story Generation (2018); top-p Holtzman et al., The Curious Case of Neural Text
    Degeneration (2020); min-p Nguyen et al., Turning Up the Heat (2024).
  """

  temperature: float | Float[Array, ''] = 1.0
  top_k: int = dataclasses.field(default=0, metadata=dict(static=True))
  top_p: float = dataclasses.field(default=1.0, metadata=dict(static=True))
  min_p: float = dataclasses.field(default=0.0, metadata=dict(static=True))

  def __post_init__(self):
    if isinstance(self.temperature, (int, float)) and not self.temperature >= 0:
      raise InputError(f'temperature = {self.temperature}: it must be positive, or 0 for the most likely token')
    if self.top_k < 0:
      raise InputError(f'top_k = {self.top_k}: it must be positive, or 0 for all tokens')
    if not 0 < self.top_p <= 1:
      raise InputError(f'top_p = {self.top_p}: it must be in (0, 1]')
    if not 0 <= self.min_p < 1:
      raise InputError(f'min_p = {self.min_p}: it must be in [0, 1)')


def scale(logits: Float[Array, '*B V'], sampling: Sampling) -> Float[Array, '*B V']:
  """Logits / temperature; as they are where it is 0, whose log-probabilities are thus those of temperature 1."""
  temperature = jnp.asarray(sampling.temperature, jnp.float32)
  return logits / jnp.where(temperature > 0, temperature, 1.0)


def truncate(logits: Float[Array, '*B V'], sampling: Sampling) -> Float[Array, '*B V']:
  """Logits, already divided by the temperature, of the tokens that may be drawn; -inf for the others."""
  vocab_size = logits.shape[-1]
  ordered = floor = None
  if 0 < sampling.top_k < vocab_size:
    ordered = jax.lax.top_k(logits, sampling.top_k)[0]
    floor = ordered[..., -1:]
  if sampling.top_p < 1:
    ordered = jnp.sort(logits, descending=True) if ordered is None else ordered
    p = jax.nn.softmax(ordered)
    needed = jnp.cumsum(p, -1) - p < sampling.top_p  # what is more likely has not enough
    floor = jnp.min(jnp.where(needed, ordered, jnp.inf), -1, keepdims=True)
  if sampling.min_p > 0:
    lowest = jnp.max(logits, -1, keepdims=True) + jnp.log(jnp.float32(sampling.min_p))
    floor = lowest if floor is None else jnp.maximum(floor, lowest)
  return logits if floor is None else jnp.where(logits >= floor, logits, -jnp.inf)


def draw(keys: Shaped[Array, '*B'], logits: Float[Array, '*B V'], sampling: Sampling) -> Int[Array, '*B']:
  """One token of each distribution, by its own key [*B]; the most likely one if the temperature is 0.

  First a block of tokens is drawn and then a token in it, which is the same distribution with few random numbers: about 2 sqrt(V), not V.
  """
  # A number that is known when this is traced saves the half that is not wanted.
  known = sampling.temperature if isinstance(sampling.temperature, (int, float)) else None
  likeliest = None if known else jnp.argmax(logits, -1).astype(jnp.int32)
  if known == 0:
    return likeliest
  blocks = _blocks(logits)
  count, size = blocks.shape[-2:]
  noise = jax.vmap(lambda key: jax.random.gumbel(key, (count + size,)))(keys.reshape(-1)).reshape(*keys.shape, count + size)
  block = jnp.argmax(jax.nn.logsumexp(blocks, -1) + noise[..., :count], -1)
  inside = jnp.take_along_axis(blocks, block[..., None, None], -2)[..., 0, :]
  token = (block * size + jnp.argmax(inside + noise[..., count:], -1)).astype(jnp.int32)
  return token if known else jnp.where(jnp.asarray(sampling.temperature) > 0, token, likeliest)


def log_prob(logits: Float[Array, '*B V'], tokens: Int[Array, '*B']) -> Float[Array, '*B']:
  """The log-probability of a token under softmax(logits), in float32, without those of the others."""
  picked = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
  # By blocks, as `draw` does it, so that the compiler passes over the vocabulary once for both.
  return picked - jax.nn.logsumexp(jax.nn.logsumexp(_blocks(logits), -1), -1)


def _blocks(logits):
  """[*B, V] -> [*B, V / block, block], filled with -inf."""
  block = min(_BLOCK, logits.shape[-1])
  padding = -logits.shape[-1] % block
  if padding:
    logits = jnp.pad(logits, [(0, 0)] * (logits.ndim - 1) + [(0, padding)], constant_values=-jnp.inf)
  return logits.reshape(*logits.shape[:-1], -1, block)
