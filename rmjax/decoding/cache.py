"""Keys and values of prompts and of responses, and attention over both.

Dimensions: P prompts, N responses to each, L prompt length, M slots of a response, H query heads, K key heads, G = H / K, D head size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from rmjax.trees import Array


class Cache(NamedTuple):
  """What one layer remembers. Heads come before length: each head's keys lie together, as the products read them."""

  prompt_keys: Float[Array, 'P K L D']  # once for all responses
  prompt_values: Float[Array, 'P K L D']
  keys: Float[Array, 'P N K M D']
  values: Float[Array, 'P N K M D']


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
  write = lambda cached, new: jax.lax.dynamic_update_slice_in_dim(cached, new[:, :, :, None].astype(cached.dtype), step, 3)
  cache = cache._replace(keys=write(cache.keys, k), values=write(cache.values, v))
  grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
  to_prompt = jnp.einsum('pnkgd,pkld->pnkgl', grouped, cache.prompt_keys, preferred_element_type=jnp.float32)
  to_response = jnp.einsum('pnkgd,pnkmd->pnkgm', grouped, cache.keys, preferred_element_type=jnp.float32)
  column, slot = jnp.arange(to_prompt.shape[-1]), jnp.arange(to_response.shape[-1])
  sees_prompt, sees_response = column < lengths[:, None], slot <= step
  if window is not None:
    sees_prompt &= lengths[:, None] + step - column < window
    sees_response &= step - slot < window

  def masked(logits, mask):
    logits = logits * scale
    if softcap is not None:
      logits = softcap * jnp.tanh(logits / softcap)
    return jnp.where(mask, logits, jnp.finfo(jnp.float32).min)

  logits = [masked(to_prompt, sees_prompt[:, None, None, None]), masked(to_response, sees_response)]
  weights = jax.nn.softmax(jnp.concatenate(logits, -1)).astype(v.dtype)
  over_prompt, over_response = jnp.split(weights, [column.size], -1)
  y = jnp.einsum('pnkgl,pkld->pnkgd', over_prompt, cache.prompt_values) + jnp.einsum('pnkgm,pnkmd->pnkgd', over_response, cache.values)
  return y.reshape(q.shape), cache
