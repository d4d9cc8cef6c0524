"""Attention on packed token trees: what it is, and which computation of it is fastest where.

Dimensions: R rows, T length, H query heads, K key heads, G = H / K, D head size.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from rmjax.backbones.blockwise import blockwise_attention
from rmjax.errors import InputError
from rmjax.trees import Array, attention_mask

IMPLEMENTATIONS = ('dense', 'blockwise')

# Rows of this length and more are attended to blockwise. On a CPU that is faster from 128 columns on (benchmarks/attention.py); rows that
# short stay dense, which compiles in a third of the time and has all derivatives. Elsewhere it has not been measured, and serves rows whose
# dense logits would not fit.
BLOCKWISE_FROM = {'cpu': 256}
BLOCKWISE_FROM_ELSEWHERE = 16384


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
  implementation: str | None = None,
) -> Float[Array, 'R T H D']:
  """Each query attends to itself and its ancestors.

  Args:
    q: queries.
    k: keys; head h of the queries reads head h // G.
    v: values.
    subtree_end: one past the last column of a token's subtree; 0 for padding, whose output is garbage, but finite.
    positions: depth in the tree.
    scale: factor of the logits.
    window: how many depths back a query sees, itself included; None for all.
    softcap: logits become softcap * tanh(logits / softcap) (Gemma 2).
    implementation: 'dense'; 'blockwise', which needs no T x T memory, leaves out blocks that the trees leave out, and can be differentiated
      once, in reverse; None for the faster at this length.

  Returns:
    Attended values, in q's dtype; the softmax is float32.

  Raises:
    InputError: another implementation.
  """
  if implementation is None:
    implementation = 'blockwise' if q.shape[1] >= BLOCKWISE_FROM.get(_platform(), BLOCKWISE_FROM_ELSEWHERE) else 'dense'
  if implementation not in IMPLEMENTATIONS:
    raise InputError(f"implementation = '{implementation}': choose one of {', '.join(IMPLEMENTATIONS)}, or None")
  attend = blockwise_attention if implementation == 'blockwise' else _dense_attention
  return attend(q, k, v, subtree_end, positions, scale=scale, window=window, softcap=softcap)


def _platform() -> str:
  """Of the mesh, which may describe a machine that is not this one; else of this machine."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.device_kind.lower() if device else jax.default_backend()


def _dense_attention(q, k, v, subtree_end, positions, *, scale, window, softcap):
  """The definition."""
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
