"""AdamW whose moments take 8 bits each: 2 bytes of optimiser state a parameter instead of 8."""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int8
import optax

from rmjax.trees import Array

BLOCK = 256  # values that share a scale
SMALLEST = 4096  # parameters with fewer values keep float32 moments: norms and biases, which cost nothing and matter most
POWER = 4  # codes are denser near 0: 127 of them reach from 1 down to (1 / 127)^4, 4e-9 of the block's largest


class Quantized(NamedTuple):
  """A tensor in 8 bits.

  Attributes:
    codes: of the tensor's shape, so that it is laid out on a mesh as the tensor is.
    scales: the largest absolute value of each block along the last axis.
  """

  codes: Int8[Array, '*shape']
  scales: Float[Array, '*blocks']


class Adam8BitState(NamedTuple):
  """Moments, in 8 bits where a parameter is large."""

  count: Array
  mu: Any
  nu: Any


def adamw_8bit(
  learning_rate: float | optax.Schedule,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 1e-4,
  mask: Any | Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
  """AdamW with both moments quantized block by block, and float32 arithmetic between reading and writing them; arguments as `optax.adamw`.

  Use it as `optimizer.name = 'rmjax.training.adam8bit:adamw_8bit'`.

  Reference: Dettmers et al., 8-bit Optimizers via Block-wise Quantization (2022). Their table of codes, looked up, is replaced by a power law,
  computed: accelerators compute faster than they look up. The second moment's root is what is quantized, since that is what divides.
  """
  return optax.chain(_scale_by_adam(b1, b2, eps), optax.add_decayed_weights(weight_decay, mask), optax.scale_by_learning_rate(learning_rate))


def _scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  def init(params):
    zeros = lambda: jax.tree.map(lambda x: quantize(jnp.zeros_like(x, jnp.float32)), params)
    return Adam8BitState(jnp.zeros((), jnp.int32), zeros(), zeros())

  def update(gradients, state, params=None):
    del params
    count = state.count + 1
    corrections = 1 - b1**count, 1 - b2**count

    def one(gradient, mu, nu):
      gradient = gradient.astype(jnp.float32)
      mu = b1 * dequantize(mu) + (1 - b1) * gradient
      root = jnp.sqrt(b2 * dequantize(nu) ** 2 + (1 - b2) * gradient**2)
      step = (mu / corrections[0]) / (root / jnp.sqrt(corrections[1]) + eps)
      return step, quantize(mu), quantize(root)

    leaves, structure = jax.tree.flatten(gradients)
    is_moment = lambda x: isinstance(x, Quantized)
    moments = (jax.tree.leaves(x, is_leaf=is_moment) for x in (state.mu, state.nu))
    updates, mu, nu = (structure.unflatten(x) for x in zip(*map(one, leaves, *moments), strict=True))
    return updates, Adam8BitState(count, mu, nu)

  return optax.GradientTransformation(init, update)


def quantize(x: Float[Array, '*shape']) -> Quantized | Float[Array, '*shape']:
  """A tensor in 8 bits; as it is if it is small. What is smaller than half of the smallest code becomes 0."""
  if x.size < SMALLEST or not x.ndim:
    return x
  blocks = _blocks(x)
  scales = jnp.max(jnp.abs(blocks), -1)
  unit = jnp.abs(blocks) / jnp.where(scales > 0, scales, 1.0)[..., None]
  codes = jnp.sign(blocks) * jnp.round(127 * unit ** (1 / POWER))
  return Quantized(codes.astype(jnp.int8).reshape(x.shape), scales)


def dequantize(x: Quantized | Float[Array, '*shape']) -> Float[Array, '*shape']:
  """The way back, float32."""
  if not isinstance(x, Quantized):
    return x
  codes = _blocks(x.codes.astype(jnp.float32) / 127)
  return (jnp.sign(codes) * jnp.abs(codes) ** POWER * x.scales[..., None]).reshape(x.codes.shape)


def _blocks(x: Array) -> Array:
  """[..., D] to [..., D / B, B], of the largest B up to `BLOCK` that divides."""
  return x.reshape(*x.shape[:-1], -1, math.gcd(x.shape[-1], BLOCK))
