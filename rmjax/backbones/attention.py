"""Attention on packed token trees.

Dimensions: R rows, T length, H query heads, K key heads, G = H / K, D head size.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from rmjax.trees import Array, attention_mask


def tree_attention(
  q: Float[Array, 'R T H D'],
  k: Float[Array, 'R T K D'],
  v: Float[Array, 'R T K D'],
  subtree_end: Int[Array, 'R T'],
  positions: Int[Array, 'R T'],
  *,
  scale: float,
  window: int | Int[Array, ''] | None = None,
  softcap: float | None = None,
) -> Float[Array, 'R T H D']:
  """Each query attends to itself and its ancestors.

  Args:
    q: queries.
    k: keys; head h of the queries reads head h // G.
    v: values.
    subtree_end: one past the last column of a token's subtree; 0 for padding, which attends to everything before it and is garbage.
    positions: depth in the tree.
    scale: factor of the logits.
    window: how many depths back a query sees, itself included; None for all.
    softcap: logits become softcap * tanh(logits / softcap) (Gemma 2).

  Returns:
    Attended values, in q's dtype; the softmax is float32.
  """
  mask = attention_mask(subtree_end)
  if window is not None:
    mask &= positions[:, :, None] - positions[:, None, :] < window
  grouped = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
  logits = jnp.einsum('rqkgd,rskd->rkgqs', grouped, k, preferred_element_type=jnp.float32) * scale
  if softcap is not None:
    logits = softcap * jnp.tanh(logits / softcap)
  # A finite filler, not -inf: a row of padding sees nothing, and its softmax must not be NaN.
  weights = jax.nn.softmax(jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min))
  return jnp.einsum('rkgqs,rskd->rqkgd', weights.astype(v.dtype), v).reshape(q.shape)
