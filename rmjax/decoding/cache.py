"""Keys and values of prompts and of responses, and attention over both.

Dimensions: P prompts, N responses to each, L prompt length, M slots of a response, H query heads, K key heads, G = H / K, D head size.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from rmjax.trees import Array


class Cache(NamedTuple):
  """What one layer remembers.

  Heads come before length: each head's keys lie together, as the products read them. Responses are one axis, not two: XLA updates in place what
  it need not reshape, and copies the rest at every step.
  """

  prompt_keys: Float[Array, 'P K L D']  # once for all responses
  prompt_values: Float[Array, 'P K L D']
  keys: Float[Array, 'P*N K M D']
  values: Float[Array, 'P*N K M D']


def cached_attention(
  q: Float[Array, 'P N H D'],
  k: Float[Array, 'P N K D'],
  v: Float[Array, 'P N K D'],
  cache: Cache,
  lengths: Int[Array, 'P'],
  step: Int[Array, ''],
  *,
  scale: float,
  window: int | None = None,
  softcap: float | None = None,
) -> tuple[Float[Array, 'P N H D'], Cache]:
  """Attention of every response's token number `step` to its prompt, to the tokens before it and to itself, under one softmax.

  Args:
    q: queries.
    k: keys of the same tokens; head h of the queries reads head h // G.
    v: values likewise.
    cache: of the tokens before.
    lengths: tokens of each prompt, which come first in its row.
    step: tokens of a response before this one; it is at position lengths + step.
    scale: factor of the logits.
    window: how many positions back a query sees, itself included; None for all.
    softcap: logits become softcap * tanh(logits / softcap) (Gemma 2).

  Returns:
    Attended values in q's dtype, and the cache with this token in it.
  """
  (prompts, responses, _, size), key_heads = q.shape, k.shape[2]
  flat = lambda x: x.reshape(prompts * responses, key_heads, -1, size)
  write = lambda cached, new: jax.lax.dynamic_update_slice_in_dim(cached, flat(new).astype(cached.dtype), step, 2)
  cache = cache._replace(keys=write(cache.keys, k), values=write(cache.values, v))
  column, slot = jnp.arange(cache.prompt_keys.shape[2]), jnp.arange(cache.keys.shape[2])
  sees_prompt, sees_response = column < lengths[:, None], slot <= step
  if window is not None:
    sees_prompt &= lengths[:, None] + step - column < window
    sees_response &= step - slot < window
  part = functools.partial(_part, scale=scale, softcap=softcap)
  # All queries of a prompt are one matrix, [P, N, K, G, D] -> [P, K, N G, D], so that its keys are read once for all.
  together = q.reshape(prompts, responses, key_heads, -1, size).swapaxes(1, 2).reshape(prompts, key_heads, -1, size)
  apart = lambda x: x.reshape(prompts, key_heads, responses, -1, x.shape[-1]).swapaxes(1, 2).reshape(prompts * responses, key_heads, -1, x.shape[-1])
  one = map(apart, part(together, cache.prompt_keys, cache.prompt_values, sees_prompt[:, None, None]))
  two = part(flat(q), cache.keys, cache.values, sees_response)
  return _merge(*one, *two).astype(q.dtype).reshape(q.shape), cache


def _part(q, k, v, mask, *, scale, softcap):
  """Attention to some of the keys: the weighted sum of values, the weights' sum, and the logit from which they are counted; each [B K G D or 1]."""
  logits = jnp.einsum('bkgd,bkld->bkgl', q, k, preferred_element_type=jnp.float32) * scale
  if softcap is not None:
    logits = softcap * jnp.tanh(logits / softcap)
  logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  top = jnp.max(logits, -1, keepdims=True)
  weights = jnp.exp(logits - top)
  y = jnp.einsum('bkgl,bkld->bkgd', weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
  return y, jnp.sum(weights, -1, keepdims=True), top


def _merge(y, total, top, other_y, other_total, other_top):
  """One softmax of two parts. A part that a window hides counts from the lowest of numbers, so its weight is 0: a token always sees itself."""
  highest = jnp.maximum(top, other_top)
  a, b = jnp.exp(top - highest), jnp.exp(other_top - highest)
  return (y * a + other_y * b) / (total * a + other_total * b)
