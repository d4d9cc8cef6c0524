"""Attention on packed trees on a GPU: three Pallas kernels, lowered to Triton, for values, for gradients of queries and of keys and values.

One program accumulates one block of one head, in a loop over the blocks that the trees make it need; it neither loads nor computes the others.

Dimensions: R rows, T length, N = T / B blocks of B columns, H query heads, K key heads, G = H / K, D head size; here T is filled up to a multiple of B
and D to a power of two.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

from rmjax.backbones.blockwise import Kernels, layout_blocks, needed_blocks


def block(group: int, length: int, width: int) -> int:
  """B for head vectors of `width` bytes: what fits the 99 KiB of shared memory that the smaller GPUs have. Compiled, not measured."""
  del group, length  # each query head is a program of its own, and lists of blocks are in the main memory
  return 64 if width <= 256 else 32 if width <= 512 else 16


def forward(statics, q, k, v, layout, *, interpret=False):
  """See `Kernels`."""
  length, size = q.shape[1], q.shape[3]
  q, k, v = (_fill(x, statics.block) for x in (q, k, v))
  rows, columns, heads, _ = q.shape
  of_queries, of_keys, needed = _marks(statics, layout)
  out, log_sum = _call(
    functools.partial(_forward_kernel, statics=statics),
    needed,
    [q, *of_queries],
    [k, v, *of_keys],
    functools.partial(_shared_head, group=heads // k.shape[2]),
    [jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((rows, heads, columns), jnp.float32)],
    interpret,
  )
  return out[:, :length, :, :size], log_sum.swapaxes(1, 2)[:, :length]


def backward(statics, q, k, v, layout, log_sum, offset, gradient, *, interpret=False):
  """See `Kernels`; the weights are computed again, block by block, once for the queries and once for the keys."""
  group = q.shape[2] // k.shape[2]
  filled = [_fill(x, statics.block) for x in (q, gradient, k, v)]
  sums = [jnp.pad(x, ((0, 0), (0, filled[0].shape[1] - x.shape[1]), (0, 0))).swapaxes(1, 2) for x in (log_sum, offset)]
  of_queries, of_keys, needed = _marks(statics, layout)
  of_queries, of_keys = [*filled[:2], *sums, *of_queries], [*filled[2:], *of_keys]
  like = lambda arrays: [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
  query_kernel, key_kernel = (functools.partial(kernel, statics=statics) for kernel in (_query_gradient_kernel, _key_gradient_kernel))
  dq = _call(query_kernel, needed, of_queries, of_keys, functools.partial(_shared_head, group=group), like(of_queries[:1]), interpret)
  dkv = _call(key_kernel, needed.swapaxes(1, 2), of_keys, of_queries, functools.partial(_own_heads, group=group), like(of_keys[:2]), interpret)
  return tuple(x[:, : like.shape[1], :, : like.shape[3]] for x, like in zip((*dq, *dkv), (q, k, v), strict=True))


KERNELS = Kernels(forward, backward)


# --- kernels ---


def _forward_kernel(q, columns, shallowest, k, v, ends, positions, listed, out, log_sum, *, statics):
  q, columns, shallowest = q[...], columns[...], shallowest[...]

  def step(s, carry):
    highest, total, attended = carry
    keys, key_columns = _stretch(statics, listed[s + 1])
    seen = _seen(statics, columns[:, None], shallowest[:, None], key_columns[None], ends[keys][None], positions[keys][None])
    logits, _ = _logits(statics, _dot(q, k[keys, :], 1, 1), seen)
    new = jnp.maximum(highest, logits.max(1))
    weights, shrink = jnp.exp(logits - new[:, None]), jnp.exp(highest - new)
    return new, total * shrink + weights.sum(1), attended * shrink[:, None] + _dot(weights.astype(v.dtype), v[keys, :], 1, 0)

  # The highest logit starts at a finite number: a query that sees nothing has logits of -inf alone, and -inf - -inf is NaN.
  start = jnp.full(len(columns), jnp.finfo(jnp.float32).min), jnp.zeros(len(columns)), jnp.zeros(q.shape)
  highest, total, attended = jax.lax.fori_loop(0, listed[0], step, start)
  total_or_1 = jnp.where(total > 0, total, 1.0)
  out[...] = (attended / total_or_1[:, None]).astype(out.dtype)
  log_sum[...] = jnp.where(total > 0, highest + jnp.log(total_or_1), 0.0)


def _query_gradient_kernel(q, gradient, log_sum, offset, columns, shallowest, k, v, ends, positions, listed, dq, *, statics):
  q, gradient, log_sum, offset, columns, shallowest = (x[...] for x in (q, gradient, log_sum, offset, columns, shallowest))

  def step(s, total):
    keys, key_columns = _stretch(statics, listed[s + 1])
    seen = _seen(statics, columns[:, None], shallowest[:, None], key_columns[None], ends[keys][None], positions[keys][None])
    logits, slope = _logits(statics, _dot(q, k[keys, :], 1, 1), seen)
    weights = jnp.exp(logits - log_sum[:, None])
    d_logits = weights * (_dot(gradient, v[keys, :], 1, 1) - offset[:, None]) * slope
    return total + _dot(d_logits.astype(k.dtype), k[keys, :], 1, 0)

  total = jax.lax.fori_loop(0, listed[0], step, jnp.zeros(q.shape))
  dq[...] = (statics.scale * total).astype(dq.dtype)


def _key_gradient_kernel(k, v, ends, positions, q, gradient, log_sum, offset, columns, shallowest, listed, dk, dv, *, statics):
  """Logits are [keys, queries] here. All G query heads of the key head add up."""
  k, v, ends, positions = (x[...] for x in (k, v, ends, positions))
  _, key_columns = _stretch(statics, pl.program_id(0))
  group = q.shape[1]

  def step(s, totals):
    total_k, total_v = totals
    queries, _ = _stretch(statics, listed[jax.lax.div(s, group) + 1])
    head = jax.lax.rem(s, group)
    q_block, gradient_block = q[queries, head, :], gradient[queries, head, :]
    seen = _seen(statics, columns[queries][None], shallowest[queries][None], key_columns[:, None], ends[:, None], positions[:, None])
    logits, slope = _logits(statics, _dot(k, q_block, 1, 1), seen)
    weights = jnp.exp(logits - log_sum[head, queries][None])
    d_logits = weights * (_dot(v, gradient_block, 1, 1) - offset[head, queries][None]) * slope
    total_v += _dot(weights.astype(gradient.dtype), gradient_block, 1, 0)
    return total_k + _dot(d_logits.astype(q.dtype), q_block, 1, 0), total_v

  total_k, total_v = jax.lax.fori_loop(0, listed[0] * group, step, (jnp.zeros(k.shape), jnp.zeros(v.shape)))
  dk[...] = (statics.scale * total_k).astype(dk.dtype)
  dv[...] = total_v.astype(dv.dtype)


def _stretch(statics, i):
  """Block i of columns: the slice that reads them, and their numbers."""
  return pl.ds(i * statics.block, statics.block), i * statics.block + jnp.arange(statics.block)


def _seen(statics, columns, shallowest, key_columns, ends, positions):
  seen = (key_columns <= columns) & (columns < ends)
  return seen & (positions >= shallowest) if statics.windowed else seen


def _logits(statics, products, seen):
  """Logits, -inf where unseen; and their slope in the scaled products."""
  logits = products * statics.scale
  slope = 1.0
  if statics.softcap is not None:
    bent = jnp.tanh(logits / statics.softcap)
    logits, slope = statics.softcap * bent, 1 - bent * bent
  return jnp.where(seen, logits, -jnp.inf), slope


def _dot(a, b, axis_a, axis_b):
  return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=jnp.float32)


# --- what runs them ---


def _fill(x, block):
  """Zeros after the last column and the last element of the heads; Triton multiplies 16 at least."""
  return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, max(16, pl.next_power_of_2(x.shape[3])) - x.shape[3])))


def _marks(statics, layout):
  """Columns and shallowest positions [R T] of queries, ends and positions [R T] of keys, and bool[R N N] which blocks need which."""
  blocks = layout_blocks(statics, layout)
  needed = needed_blocks(statics, blocks)
  columns, shallowest, ends, positions = (x.reshape(len(x), -1) for x in blocks)
  return [columns, shallowest], [ends, positions], needed


def _call(kernel, needed, of_lines, of_others, other_spec, outputs, interpret):
  """Runs a program for each line, a block that accumulates, of each head and row.

  Args:
    kernel: takes a line's block of each array, all columns of each of the others, the list of the others' blocks that the line needs with its
      length in front, and the line's block of each output.
    needed: bool[R lines others].
    of_lines: arrays [R T heads D], [R heads T] or [R T].
    of_others: the same.
    other_spec: `_shared_head` or `_own_heads`.
    outputs: shapes and dtypes, as of lines.
    interpret: run on a CPU, for tests.
  """
  rows, lines, others = needed.shape
  _, length, heads, size = of_lines[0].shape
  block = length // lines
  counts, order = _in_front(needed)
  listed = jnp.concatenate([counts[..., None], order], -1, dtype=jnp.int32)
  line_specs = {
    4: pl.BlockSpec((None, block, None, size), lambda i, h, r: (r, i, h, 0)),
    3: pl.BlockSpec((None, None, block), lambda i, h, r: (r, h, i)),
    2: pl.BlockSpec((None, block), lambda i, h, r: (r, i)),
  }
  line_spec = lambda x: line_specs[len(x.shape)]
  return pl.pallas_call(
    kernel,
    grid=(lines, heads, rows),  # the heads of a row in turn, for the columns that they share to stay in the cache
    in_specs=[*map(line_spec, of_lines), *map(other_spec, of_others), pl.BlockSpec((None, None, 1 + others), lambda i, h, r: (r, i, 0))],
    out_specs=[*map(line_spec, outputs)],
    out_shape=outputs,
    compiler_params=triton.CompilerParams(num_warps=4 if size <= 64 else 8, num_stages=2),
    interpret=interpret,
    name=kernel.func.__name__.strip('_'),
  )(*of_lines, *of_others, listed)


def _shared_head(x, group):
  """All columns of the key head that a query head shares."""
  if x.ndim == 2:
    return pl.BlockSpec((None, x.shape[1]), lambda i, h, r: (r, 0))
  return pl.BlockSpec((None, x.shape[1], None, x.shape[3]), lambda i, h, r: (r, 0, h // group, 0))


def _own_heads(x, group):
  """All columns of the query heads that share a key head."""
  if x.ndim == 2:
    return pl.BlockSpec((None, x.shape[1]), lambda i, h, r: (r, 0))
  if x.ndim == 3:
    return pl.BlockSpec((None, group, x.shape[2]), lambda i, h, r: (r, h, 0))
  return pl.BlockSpec((None, x.shape[1], group, x.shape[3]), lambda i, h, r: (r, 0, h, 0))


def _in_front(needed):
  """How many are needed in each line, and their indices, in order, before the others'."""
  return needed.sum(-1), jnp.argsort(~needed, axis=-1, stable=True)
