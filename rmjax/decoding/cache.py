"""Keys and values of prompts and of responses, and attention over both.

Dimensions: P prompts, N responses to each, L prompt length, W columns of a response, H query heads, K key heads, G = H / K, D head size.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from rmjax.errors import InputError
from rmjax.trees import Array

CACHE_DTYPES = ('bfloat16', 'int8')


class Stored(NamedTuple):
  """Keys or values as they are kept: numbers, or whole numbers of steps of a size that each token and head has for itself."""

  values: Float[Array, '*B D'] | Int[Array, '*B D']
  scale: Float[Array, '*B'] | None  # size of a step, float32; None where values are the numbers


class Cache(NamedTuple):
  """What one layer remembers.

  Heads come before length: each head's keys lie together, as the products read them. Responses are one axis, not two: XLA updates in place what
  it need not reshape, and copies the rest at every step.

  The columns of responses are a ring: in each call all responses write to the same one, so that they may have begun at different times and the
  cache is still updated by one slice. A response of at most W tokens never meets its own beginning.
  """

  prompt_keys: Stored  # [P K L D], once for all responses
  prompt_values: Stored
  keys: Stored  # [P*N K W D]
  values: Stored


def resolve_dtype(cache_dtype: str | None, dtype: Any) -> jnp.dtype:
  """What a cache holds: `cache_dtype`, or the model's dtype for None.

  Raises:
    InputError: it is another than `CACHE_DTYPES`.
  """
  if cache_dtype not in (None, *CACHE_DTYPES):
    raise InputError(f"cache_dtype = '{cache_dtype}': choose one of {', '.join(CACHE_DTYPES)}, or None for the model's")
  return jnp.dtype(cache_dtype or dtype)


def store(x: Float[Array, '*B D'], dtype: Any) -> Stored:
  """Keys or values in a dtype; for int8 the nearest of 255 steps, the largest number of a token and head at 127 of them."""
  if dtype != jnp.int8:
    return Stored(x.astype(dtype), None)
  x = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(x), -1) / 127
  steps = jnp.round(x / jnp.where(scale > 0, scale, 1.0)[..., None])
  return Stored(steps.astype(jnp.int8), scale)


def empty(rows: int, heads: int, columns: int, size: int, dtype: Any) -> Stored:
  """Room for the keys or values of responses."""
  values = jnp.zeros((rows, heads, columns, size), dtype)
  return Stored(values, jnp.zeros(values.shape[:-1]) if dtype == jnp.int8 else None)


def cached_attention(
  q: Float[Array, 'P N H D'],
  k: Float[Array, 'P N K D'],
  v: Float[Array, 'P N K D'],
  cache: Cache,
  lengths: Int[Array, 'P'],
  step: Int[Array, ''] | Int[Array, 'P'],
  column: Int[Array, ''],
  *,
  scale: float,
  window: int | None = None,
  softcap: float | None = None,
) -> tuple[Float[Array, 'P N H D'], Cache]:
  """Attention of every response's token number `step` to its prompt, to the tokens before it and to itself, under one softmax.

  Products are in q's dtype, whatever the cache's, and sums are float32. A cache of another dtype saves memory and not time on a CPU: XLA converts
  all of it at every step there, one layer at a time.

  Args:
    q: queries.
    k: keys of the same tokens; head h of the queries reads head h // G.
    v: values likewise.
    cache: of the tokens before.
    lengths: tokens of each prompt, which come first in its row.
    step: tokens of a response before this one; it is at position lengths + step. One for all, or one for those to each prompt.
    column: of the ring, to which these tokens go; the one after that of the tokens before.
    scale: factor of the logits.
    window: how many positions back a query sees, itself included; None for all.
    softcap: logits become softcap * tanh(logits / softcap) (Gemma 2).

  Returns:
    Attended values in q's dtype, and the cache with this token in it.
  """
  (prompts, responses, _, size), key_heads = q.shape, k.shape[2]
  flat = lambda x: x.reshape(prompts * responses, key_heads, -1, size)
  write = lambda cached, new: jax.tree.map(
    lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, column, 2), cached, store(flat(new), cached.values.dtype)
  )  # fmt: skip
  cache = cache._replace(keys=write(cache.keys, k), values=write(cache.values, v))
  place, ring = jnp.arange(cache.prompt_keys.values.shape[2]), jnp.arange(cache.keys.values.shape[2])
  age = jnp.where(ring <= column, column - ring, column - ring + ring.size)  # of what a column holds, in tokens
  step = step.reshape(-1, 1)
  sees_prompt, sees_response = place < lengths[:, None], age <= step
  if window is not None:
    sees_prompt &= lengths[:, None] + step - place < window
    sees_response &= age < window
  if sees_response.shape[0] > 1:
    sees_response = jnp.repeat(sees_response, responses, 0)
  part = functools.partial(_part, scale=scale, softcap=softcap)
  # All queries of a prompt are one matrix, [P, N, K, G, D] -> [P, K, N G, D], so that its keys are read once for all.
  together = q.reshape(prompts, responses, key_heads, -1, size).swapaxes(1, 2).reshape(prompts, key_heads, -1, size)
  apart = lambda x: x.reshape(prompts, key_heads, responses, -1, x.shape[-1]).swapaxes(1, 2).reshape(prompts * responses, key_heads, -1, x.shape[-1])
  one = map(apart, part(together, cache.prompt_keys, cache.prompt_values, sees_prompt[:, None, None]))
  two = part(flat(q), cache.keys, cache.values, sees_response[:, None, None])
  return _merge(*one, *two).astype(q.dtype).reshape(q.shape), cache


def _part(q, k, v, mask, *, scale, softcap):
  """Attention to some of the keys: the weighted sum of values, the weights' sum, and the logit from which they are counted; each [B K G D or 1]."""
  # Sizes of steps are taken out of the products, which are then of whole numbers.
  logits = jnp.einsum('bkgd,bkld->bkgl', q, k.values.astype(q.dtype), preferred_element_type=jnp.float32) * scale
  if k.scale is not None:
    logits *= k.scale[:, :, None]
  if softcap is not None:
    logits = softcap * jnp.tanh(logits / softcap)
  logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  top = jnp.max(logits, -1, keepdims=True)
  weights = jnp.exp(logits - top)
  shares = weights if v.scale is None else weights * v.scale[:, :, None]
  y = jnp.einsum('bkgl,bkld->bkgd', shares.astype(q.dtype), v.values.astype(q.dtype), preferred_element_type=jnp.float32)
  return y, jnp.sum(weights, -1, keepdims=True), top


def _merge(y, total, top, other_y, other_total, other_top):
  """One softmax of two parts. A part that a window hides counts from the lowest of numbers, so its weight is 0: a token always sees itself."""
  highest = jnp.maximum(top, other_top)
  a, b = jnp.exp(top - highest), jnp.exp(other_top - highest)
  return (y * a + other_y * b) / (total * a + other_total * b)
