"""Attention on packed token trees: what it is, and which computation of it is fastest where.

Dimensions: R rows, T length, H query heads, K key heads, G = H / K, D head size.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from rmjax.backbones.blockwise import blockwise_attention
from rmjax.errors import InputError
from rmjax.trees import Array, attention_mask

IMPLEMENTATIONS = ('dense', 'blockwise', 'pallas')

# Rows of this length and more are attended to blockwise. On a CPU that is faster from 128 columns on (benchmarks/attention.py); rows that
# short stay dense, which compiles in a third of the time and has all derivatives.
BLOCKWISE_FROM = {'cpu': 256}
# Rows of this length and more are left to the kernels: there the dense logits, which go through the main memory several times, are most of the
# traffic. Reasoned: the kernels have been compiled for GPUs and TPUs, and run on neither.
PALLAS_FROM = {'gpu': 1024, 'tpu': 1024}


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
      once, in reverse; 'pallas', the same in kernels for a GPU or a TPU; None for what should be the fastest here at this length.

  Returns:
    Attended values, in q's dtype; the softmax is float32.

  Raises:
    InputError: another implementation, or kernels on a CPU.
  """
  if implementation is None:
    implementation = _fastest(q.shape[1])
  if implementation not in IMPLEMENTATIONS:
    raise InputError(f"implementation = '{implementation}': choose one of {', '.join(IMPLEMENTATIONS)}, or None")
  attend = {'dense': _dense_attention, 'blockwise': blockwise_attention, 'pallas': _pallas_attention}[implementation]
  return attend(q, k, v, subtree_end, positions, scale=scale, window=window, softcap=softcap)


def _fastest(length: int) -> str:
  here = platform()
  if length >= PALLAS_FROM.get(here, math.inf):
    return 'pallas'
  return 'blockwise' if length >= BLOCKWISE_FROM.get(here, math.inf) else 'dense'


def platform() -> str:
  """'cpu', 'gpu' or 'tpu': of the mesh, which may describe a machine that is not this one; else of this machine."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  if device is None:
    return jax.default_backend()
  # Kinds are names of products: 'cpu', 'TPU v5 lite', 'NVIDIA H100 80GB HBM3'.
  return next((platform for platform in ('cpu', 'tpu') if device.device_kind.lower().startswith(platform)), 'gpu')


def _pallas_attention(q, k, v, subtree_end, positions, **options):
  """The kernels of this platform; imported here, since on a CPU nobody needs them and they take a quarter of a second."""
  here = platform()
  if here == 'tpu':
    from rmjax.backbones import pallas_tpu as pallas
  elif here == 'gpu':
    from rmjax.backbones import pallas_gpu as pallas
  else:
    raise InputError(f"implementation = 'pallas' needs a GPU or a TPU, and this is a {here}: choose dense or blockwise, or None")
  dtype = jnp.result_type(q, k, v)  # kernels multiply equals
  block = pallas.block(q.shape[2] // k.shape[2], q.shape[1], q.shape[3] * dtype.itemsize)
  arrays = (x.astype(dtype) for x in (q, k, v))
  return blockwise_attention(*arrays, subtree_end, positions, **options, block=block, kernels=pallas.KERNELS).astype(q.dtype)


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
