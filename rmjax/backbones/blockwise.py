"""Attention on packed trees in blocks: no T x T array, and no work for blocks of keys that no query of a block sees.

`blockwise_attention` shares the work out over rows and devices and has its gradient; what one device does is a pair of functions, `Kernels`.
Those here run anywhere: one loop, in the forward and in the backward pass, over the pairs of blocks that the trees need, so skipping saves time and
not only memory. Those of `pallas_tpu` and `pallas_gpu` are for accelerators.

Dimensions: R rows, T length, H query heads, K key heads, G = H / K, D head size; N = T / B blocks of B columns, Q = G * B queries that share keys.
"""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import custom_vmap
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Float, Int

from rmjax.trees import Array

NEVER = jnp.iinfo(jnp.int32).max
ATTENDED = 'attended'  # values and log-sum-exp, in `jax.checkpoint` policies


class Layout(NamedTuple):
  """Who sees whom: key_column <= column < key_end and, with windows, key_position >= shallowest.

  Queries and keys apart, since a device may hold a part of the queries and all keys.
  """

  columns: Int[Array, 'R T']  # of queries; -1 for padding
  shallowest: Int[Array, 'R T']  # position that a query sees
  key_ends: Int[Array, 'R T']
  key_positions: Int[Array, 'R T']


class Kernels(NamedTuple):
  """What one device does.

  Attributes:
    forward: (statics, q, k, v, layout) to attended values like q, and float32[R T H] log-sum-exp of each query's logits, 0 where it sees nothing.
    backward: (statics, q, k, v, layout, log_sum, offset, gradient) to the gradients of q, k and v; offset float32[R T H] is what a query's
      weights lose together when one of them grows.
  """

  forward: Callable
  backward: Callable


class Statics(NamedTuple):
  """What is known when the computation is built."""

  scale: float
  windowed: bool
  softcap: float | None
  block: int | None
  kernels: Kernels


class _Axes(NamedTuple):
  """Mesh axes that a dimension is laid along; () for none."""

  rows: tuple[str, ...] = ()
  length: tuple[str, ...] = ()
  heads: tuple[str, ...] = ()


def blockwise_attention(
  q: Float[Array, 'R T H D'],
  k: Float[Array, 'R T K D'],
  v: Float[Array, 'R T K D'],
  subtree_end: Int[Array, 'R T'],
  positions: Int[Array, 'R T'],
  *,
  scale: float,
  window: int | Int[Array, ''] | None = None,
  softcap: float | None = None,
  block: int | None = None,
  kernels: Kernels | None = None,
) -> Float[Array, 'R T H D']:
  """Each query attends to itself and its ancestors, block by block.

  Inside `use_mesh`, or any mesh with logical axis rules, each device attends for its own rows, heads and stretch of the queries. `vmap` adds
  rows. Differentiable once, in reverse.

  Args:
    q: queries.
    k: keys; head h of the queries reads head h // G.
    v: values.
    subtree_end: one past the last column of a token's subtree; 0 for padding, which attends to nothing and gives 0.
    positions: depth in the tree.
    scale: factor of the logits.
    window: how many depths back a query sees, itself included; None for all.
    softcap: logits become softcap * tanh(logits / softcap) (Gemma 2).
    block: B, columns of a block. Larger ones multiply faster and skip less. None, of the loop alone: what suits the trees, found when they are there.
    kernels: what one device does; None for a loop in XLA.

  Returns:
    Attended values, in q's dtype; the softmax is float32.

  Reference: Dao, FlashAttention-2 (2023), Algorithms 1 and 2, here with blocks left out by the trees.
  """
  # A query of padding has column -1, which is before every key.
  columns = jnp.where(subtree_end > 0, jnp.arange(subtree_end.shape[1], dtype=jnp.int32), -1)
  shallowest = positions if window is None else positions - jnp.asarray(window, jnp.int32) + 1
  if kernels is None:
    block, kernels = block and min(block, subtree_end.shape[1]), LOOP
  statics = Statics(scale, window is not None, softcap, block, kernels)
  return _attend(statics, _mesh_axes(q.shape, k.shape), q, k, v, Layout(columns, shallowest, subtree_end, positions))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(statics, axes, q, k, v, layout):
  return _attend_forward(statics, axes, q, k, v, layout)[0]


def _attend_forward(statics, axes, q, k, v, layout):
  # Named, so that a policy of rematerialization can keep what takes a whole pass over the pairs of blocks to compute again.
  out, log_sum = (checkpoint_name(x, ATTENDED) for x in _forward_on_mesh(statics, axes, q, k, v, layout))
  return out, (q, k, v, layout, out, log_sum)


def _attend_backward(statics, axes, saved, gradient):
  *saved, out, log_sum = saved
  offset = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), -1)
  return *_backward_on_mesh(statics, axes, *saved, log_sum, offset, gradient), None


_attend.defvjp(_attend_forward, _attend_backward)


# --- one device, in a loop ---

# On a CPU 64 columns are as fast as 128 or faster for trees packed in rows of 256 to 4,096. The products of 512 are large enough for several cores:
# on two, a path of 4,096 takes half the time forward, and two thirds with its gradient (docs/benchmarks.md).
SMALL, LARGE = 64, 512
WORTH = 1.5  # how much more than with small blocks is computed with large ones in no more time, backward; forward it is 2.4


def large_suit(statics, layout):
  """Whether large blocks take no more time than small ones, by how much each would compute."""

  def area(block):
    resized = statics._replace(block=block)
    return needed_blocks(resized, layout_blocks(resized, layout)).sum() * block**2

  return area(LARGE) < WORTH * area(SMALL)


def _block_that_suits(function):
  """Chooses the blocks where none are asked for; small ones in rows that are not long enough for a few large ones."""

  def run(statics, *args):
    length, sized = args[0].shape[1], lambda block: functools.partial(function, statics._replace(block=block))
    if statics.block or length < 2 * LARGE:
      return sized(statics.block or min(SMALL, length))(*args)
    return jax.lax.cond(large_suit(statics, args[3]), sized(LARGE), sized(SMALL), *args)

  return run


@_block_that_suits
def _forward(statics, q, k, v, layout):
  """See `Kernels`."""
  blocks = functools.partial(to_blocks, block=statics.block, kv_heads=k.shape[2])
  qs, ks, vs, layout = blocks(q), blocks(k), blocks(v), layout_blocks(statics, layout)
  count, pairs = _pairs(statics, layout)

  def pair(step, carry):
    highest, total, out = carry
    r, i, j = pairs[step]
    logits, _ = _logits(statics, qs[r, i], ks[r, j], r, i, j, layout)
    new = jnp.maximum(highest[r, i], logits.max(-1))
    weights, shrink = jnp.exp(logits - new[..., None]), jnp.exp(highest[r, i] - new)
    values = jnp.einsum('kqs,ksd->kqd', weights.astype(v.dtype), vs[r, j], preferred_element_type=jnp.float32)
    total = total.at[r, i].set(total[r, i] * shrink + weights.sum(-1))
    return highest.at[r, i].set(new), total, out.at[r, i].set(out[r, i] * shrink[..., None] + values)

  # The highest logit starts at a finite number: a query that sees nothing has logits of -inf alone, and -inf - -inf is NaN.
  start = jnp.full(qs.shape[:-1], jnp.finfo(jnp.float32).min), jnp.zeros(qs.shape[:-1]), jnp.zeros((*qs.shape[:-1], v.shape[-1]))
  highest, total, out = jax.lax.fori_loop(0, count, pair, start)
  seen = total > 0
  total = jnp.where(seen, total, 1.0)
  back = functools.partial(from_blocks, length=q.shape[1], heads=q.shape[2])
  return back(out / total[..., None]).astype(q.dtype), back(jnp.where(seen, highest + jnp.log(total), 0.0)[..., None])[..., 0]


@_block_that_suits
def _backward(statics, q, k, v, layout, log_sum, offset, gradient):
  """See `Kernels`; the weights are computed again, block by block."""
  blocks = functools.partial(to_blocks, block=statics.block, kv_heads=k.shape[2])
  qs, ks, vs, gradients = map(blocks, (q, k, v, gradient))
  log_sums, offsets = blocks(log_sum[..., None]), blocks(offset[..., None])
  layout = layout_blocks(statics, layout)
  count, pairs = _pairs(statics, layout)

  def pair(step, carry):
    dq, dk, dv = carry
    r, i, j = pairs[step]
    q, k, v, gradient = qs[r, i], ks[r, j], vs[r, j], gradients[r, i]
    logits, slope = _logits(statics, q, k, r, i, j, layout)
    weights = jnp.exp(logits - log_sums[r, i])
    d_weights = jnp.einsum('kqd,ksd->kqs', gradient, v, preferred_element_type=jnp.float32)
    d_logits = weights * (d_weights - offsets[r, i]) * slope
    dq = dq.at[r, i].add(jnp.einsum('kqs,ksd->kqd', d_logits.astype(k.dtype), k, preferred_element_type=jnp.float32))
    dk = dk.at[r, j].add(jnp.einsum('kqs,kqd->ksd', d_logits.astype(q.dtype), q, preferred_element_type=jnp.float32))
    dv = dv.at[r, j].add(jnp.einsum('kqs,kqd->ksd', weights.astype(gradient.dtype), gradient, preferred_element_type=jnp.float32))
    return dq, dk, dv

  dq, dk, dv = jax.lax.fori_loop(0, count, pair, tuple(jnp.zeros(x.shape) for x in (qs, ks, vs)))
  back = lambda x, like: from_blocks(x, length=like.shape[1], heads=like.shape[2]).astype(like.dtype)
  return back(statics.scale * dq, q), back(statics.scale * dk, k), back(dv, v)


def _pairs(statics, layout):
  """How many pairs of blocks are needed, and (row, block of queries, block of keys) of each, before what fills the array."""
  needed = needed_blocks(statics, layout)
  return needed.sum(), jnp.stack(jnp.nonzero(needed, size=needed.size, fill_value=0), -1)


def _logits(statics, q, k, r, i, j, layout):
  """Logits [K Q B] of row r's blocks i of queries and j of keys, -inf where unseen; and their slope in the scaled products."""
  logits = jnp.einsum('kqd,ksd->kqs', q, k, preferred_element_type=jnp.float32) * statics.scale
  slope = 1.0
  if statics.softcap is not None:
    bent = jnp.tanh(logits / statics.softcap)
    logits, slope = statics.softcap * bent, 1 - bent**2
  columns = layout.columns[r, i][:, None]
  seen = (j * statics.block + jnp.arange(statics.block) <= columns) & (columns < layout.key_ends[r, j])
  if statics.windowed:
    seen &= layout.key_positions[r, j] >= layout.shallowest[r, i][:, None]
  seen = jnp.tile(seen, (q.shape[1] // len(seen), 1))
  return jnp.where(seen, logits, -jnp.inf), slope


def needed_blocks(statics, layout):
  """[R N N] which block of queries needs which block of keys: at least one query sees a key (with a window: it may)."""
  of_queries = lambda x: jnp.where(layout.columns >= 0, x, NEVER).min(-1)[:, :, None]
  of_keys = lambda x: x.max(-1)[:, None]
  starts = jnp.arange(layout.key_ends.shape[1]) * statics.block
  needed = (starts <= layout.columns.max(-1)[:, :, None]) & (of_queries(layout.columns) < of_keys(layout.key_ends))
  if statics.windowed:
    needed &= of_keys(jnp.where(layout.key_ends > 0, layout.key_positions, -1)) >= of_queries(layout.shallowest)
  return needed


def to_blocks(x, *, block, kv_heads):
  """[R T H D] to [R N K Q D]; zeros fill the last block."""
  rows, length, heads, size = x.shape
  x = jnp.pad(x, ((0, 0), (0, -length % block), (0, 0), (0, 0)))
  x = x.reshape(rows, -1, block, kv_heads, heads // kv_heads, size)
  return x.transpose(0, 1, 3, 4, 2, 5).reshape(rows, -1, kv_heads, heads // kv_heads * block, size)


def from_blocks(x, *, length, heads):
  """The way back."""
  rows, _, kv_heads, queries, size = x.shape
  group = heads // kv_heads
  x = x.reshape(rows, -1, kv_heads, group, queries // group, size).transpose(0, 1, 4, 2, 3, 5)
  return x.reshape(rows, -1, heads, size)[:, :length]


def layout_blocks(statics, layout):
  """[R N B] of each; what fills the last block neither sees nor is seen."""
  cut = lambda x, fill: jnp.pad(x, ((0, 0), (0, -x.shape[1] % statics.block)), constant_values=fill).reshape(len(x), -1, statics.block)
  return Layout(cut(layout.columns, -1), cut(layout.shallowest, 0), cut(layout.key_ends, 0), cut(layout.key_positions, 0))


LOOP = Kernels(_forward, _backward)


# --- many rows, many devices ---


def _vmap_adds_rows(function):
  """Under vmap, loops that skip would become loops that all run as long as the longest; so its axis is folded into the rows."""
  function = custom_vmap(function)

  @function.def_vmap
  def _(size, batched, *args):
    fold = lambda x, batched: (x if batched else jnp.broadcast_to(x, (size, *x.shape))).reshape(-1, *x.shape[1 + batched :])
    out = function(*jax.tree.map(fold, args, tuple(batched)))
    return jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out), jax.tree.map(lambda x: True, out)

  return function


def _mesh_axes(q_shape, k_shape):
  """Where the mesh, if any, lays the queries' dimensions, by the logical axis rules; a dimension that does not divide stays whole."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size == 1 or set(mesh.axis_types) != {AxisType.Auto}:  # no mesh, or inside a shard_map of the caller's
    return None
  sizes = dict(zip(('batch', 'length', 'heads', 'kv_heads'), (*q_shape[:3], k_shape[2]), strict=True))
  fits = lambda axes, size: not size % math.prod(mesh.shape[axis] for axis in axes)
  axes = {}
  for name, size in sizes.items():
    found = nn.logical_to_mesh_axes((name,))[0] or ()
    found = tuple(axis for axis in ((found,) if isinstance(found, str) else found) if mesh.shape[axis] > 1)
    axes[name] = found if fits(found, size) else ()
  heads = axes['heads'] if axes['heads'] == axes['kv_heads'] else ()
  return _Axes(axes['batch'], axes['length'], heads)


def _specs(axes):
  """Of queries, of keys, and of the layout."""
  rows = PartitionSpec(axes.rows)
  stretch = PartitionSpec(axes.rows, axes.length)
  return PartitionSpec(*axes), PartitionSpec(axes.rows, None, axes.heads), Layout(stretch, stretch, rows, rows)


def _forward_on_mesh(statics, axes, *args):
  """Shared out by hand: left to XLA, each device would gather the rows of all and attend for all of them."""
  forward = _vmap_adds_rows(functools.partial(statics.kernels.forward, statics))
  if axes is None:
    return forward(*args)
  queries, keys, layout = _specs(axes)
  return jax.shard_map(forward, in_specs=(queries, keys, keys, layout), out_specs=(queries, queries), check_vma=False)(*args)


def _backward_on_mesh(statics, axes, *args):
  backward = _vmap_adds_rows(functools.partial(statics.kernels.backward, statics))
  if axes is None:
    return backward(*args)
  queries, keys, layout = _specs(axes)

  def add_up(*args):  # each device's queries add to the gradients of all keys
    dq, dk, dv = backward(*args)
    return dq, *(jax.lax.psum((dk, dv), axes.length) if axes.length else (dk, dv))

  return jax.shard_map(
    add_up, in_specs=(queries, keys, keys, layout, queries, queries, queries), out_specs=(queries, keys, keys), check_vma=False
  )(*args)  # fmt: skip
