"""Attention on packed trees on a TPU: three Pallas kernels, for values, for gradients of queries and for gradients of keys and values.

The grid's inner dimension runs through a list of the pairs of blocks that the trees need and is as long as that list: a pair that is not needed is
neither computed nor loaded, and no step is spent on it. The list is in scalar memory, from where the next step's blocks are fetched ahead.

Logits are laid out [B, Q], queries along lanes, so that what there is one of a query (its highest logit, its log-sum-exp) fills vector registers.

Dimensions: R rows, N blocks, B columns of a block, K key heads, G query heads that share one, Q = G * B, D head size.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from rmjax.backbones.blockwise import from_blocks, Kernels, layout_blocks, needed_blocks, to_blocks

# Pairs of blocks of one call: two int32 of each take half of the 1 MiB of scalar memory. More rows than that are done in several calls.
PAIRS = 1 << 16


def block(group: int, length: int, width: int) -> int:
  """B for `group` query heads a key head and head vectors of `width` bytes, in rows of `length`.

  About 1,024 queries a step, for a step costs some hundred nanoseconds whatever it does; up to 512 columns, since larger blocks skip less; more
  where rows are so long that the list of pairs would not fit. Reasoned, not measured.
  """
  del width  # logits and float32 sums outweigh the vectors
  size = min(max(1024 // pl.next_power_of_2(group), 32), 512, max(pl.next_power_of_2(length), 32))
  while (length // size) ** 2 > PAIRS:
    size *= 2
  return size


def forward(statics, q, k, v, layout, *, interpret=False):
  """See `Kernels`."""
  blocks = functools.partial(to_blocks, block=statics.block, kv_heads=k.shape[2])

  def attend(q, k, v, layout):
    rows, count, kv_heads, queries, size = q.shape
    return _over_pairs(
      functools.partial(_forward_kernel, statics=statics),
      needed_blocks(statics, layout),
      [q, _query_marks(layout, queries)],
      [k, v, _key_marks(layout)],
      [jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((rows, count, kv_heads, 1, queries), jnp.float32)],
      [(1, queries), (1, queries), (size, queries)],
      products=2,
      interpret=interpret,
    )

  out, log_sum = _in_calls(attend, blocks(q), blocks(k), blocks(v), layout_blocks(statics, layout))
  back = functools.partial(from_blocks, length=q.shape[1], heads=q.shape[2])
  return back(out), back(log_sum.swapaxes(-1, -2))[..., 0]


def backward(statics, q, k, v, layout, log_sum, offset, gradient, *, interpret=False):
  """See `Kernels`; the weights are computed again, pair by pair, once for the queries and once for the keys."""
  blocks = functools.partial(to_blocks, block=statics.block, kv_heads=k.shape[2])

  def attend(q, k, v, layout, sums, gradient):
    queries, size = q.shape[3:]
    needed = needed_blocks(statics, layout)
    of_queries = [q, gradient, sums, _query_marks(layout, queries)]
    of_keys = [k, v, _key_marks(layout)]
    like = lambda *arrays: [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    run = functools.partial(_over_pairs, interpret=interpret)
    query_kernel, key_kernel = (functools.partial(kernel, statics=statics) for kernel in (_query_gradient_kernel, _key_gradient_kernel))
    (dq,) = run(query_kernel, needed, of_queries, of_keys, like(q), [(size, queries)], products=3)
    dk, dv = run(key_kernel, needed.swapaxes(1, 2), of_keys, of_queries, like(k, v), [(statics.block, size)] * 2, products=4)
    return dq, dk, dv

  sums = blocks(jnp.stack([log_sum, offset], -1)).swapaxes(-1, -2)
  dq, dk, dv = _in_calls(attend, blocks(q), blocks(k), blocks(v), layout_blocks(statics, layout), sums, blocks(gradient))
  back = lambda x, like: from_blocks(x, length=like.shape[1], heads=like.shape[2])
  return back(dq, q), back(dk, k), back(dv, v)


KERNELS = Kernels(forward, backward)


# --- kernels; each sees one pair of blocks, and accumulates over the pairs of one line ---


def _forward_kernel(lines, others, counts, q, queries, k, v, keys, out, log_sum, highest, total, attended, *, statics):
  first, last, needed = _place(lines, counts)

  @pl.when(first)
  def _():
    # A finite number: a query that sees nothing has logits of -inf alone, and -inf - -inf is NaN.
    highest[...] = jnp.full_like(highest, jnp.finfo(jnp.float32).min)
    total[...] = jnp.zeros_like(total)
    attended[...] = jnp.zeros_like(attended)

  @pl.when(needed)
  def _():
    logits, _ = _logits(statics, q[...], k[...], queries[...], keys[...])
    new = jnp.maximum(highest[...], logits.max(0, keepdims=True))
    weights, shrink = jnp.exp(logits - new), jnp.exp(highest[...] - new)
    total[...] = total[...] * shrink + weights.sum(0, keepdims=True)
    attended[...] = attended[...] * shrink + _dot(v[...], weights.astype(v.dtype), 0, 0)
    highest[...] = new

  @pl.when(last)
  def _():
    seen = total[...] > 0
    divisor = jnp.where(seen, total[...], 1.0)
    out[...] = (attended[...] / divisor).T.astype(out.dtype)
    log_sum[...] = jnp.where(seen, highest[...] + jnp.log(divisor), 0.0)


def _query_gradient_kernel(lines, others, counts, q, gradient, sums, queries, k, v, keys, dq, total, *, statics):
  first, last, needed = _place(lines, counts)

  @pl.when(first)
  def _():
    total[...] = jnp.zeros_like(total)

  @pl.when(needed)
  def _():
    _, d_logits = _weights_again(statics, q, gradient, sums, queries, k, v, keys)
    total[...] += _dot(k[...], d_logits.astype(k.dtype), 0, 0)

  @pl.when(last)
  def _():
    dq[...] = (statics.scale * total[...]).T.astype(dq.dtype)


def _key_gradient_kernel(lines, others, counts, k, v, keys, q, gradient, sums, queries, dk, dv, total_k, total_v, *, statics):
  first, last, needed = _place(lines, counts)

  @pl.when(first)
  def _():
    total_k[...] = jnp.zeros_like(total_k)
    total_v[...] = jnp.zeros_like(total_v)

  @pl.when(needed)
  def _():
    weights, d_logits = _weights_again(statics, q, gradient, sums, queries, k, v, keys)
    total_v[...] += _dot(weights.astype(gradient.dtype), gradient[...], 1, 0)
    total_k[...] += _dot(d_logits.astype(q.dtype), q[...], 1, 0)

  @pl.when(last)
  def _():
    dk[...] = (statics.scale * total_k[...]).astype(dk.dtype)
    dv[...] = total_v[...].astype(dv.dtype)


def _place(lines, counts):
  """Whether this step is the first of its line, the last, and of a pair that is needed."""
  step = pl.program_id(1)
  line = lines[step]
  return (step == 0) | (lines[jnp.maximum(step - 1, 0)] != line), lines[step + 1] != line, counts[line] > 0


def _logits(statics, q, k, queries, keys):
  """Logits [B, Q], -inf where unseen; and their slope in the scaled products."""
  logits = _dot(k, q, 1, 1) * statics.scale
  slope = 1.0
  if statics.softcap is not None:
    bent = jnp.tanh(logits / statics.softcap)
    logits, slope = statics.softcap * bent, 1 - bent**2
  keys = keys.T
  seen = (keys[:, 0:1] <= queries[0:1]) & (queries[0:1] < keys[:, 1:2])
  if statics.windowed:
    seen &= keys[:, 2:3] >= queries[1:2]
  return jnp.where(seen, logits, -jnp.inf), slope


def _weights_again(statics, q, gradient, sums, queries, k, v, keys):
  """Weights [B, Q] of the forward pass, and gradients of the logits before the scale."""
  logits, slope = _logits(statics, q[...], k[...], queries[...], keys[...])
  weights = jnp.exp(logits - sums[0:1])
  return weights, weights * (_dot(v[...], gradient[...], 1, 1) - sums[1:2]) * slope


def _dot(a, b, axis_a, axis_b):
  return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=jnp.float32)


# --- what runs them ---


def _query_marks(layout, queries):
  """int32[R N 1 2 Q]: a query's column and the shallowest position it sees."""
  marks = jnp.stack([layout.columns, layout.shallowest], -2)[:, :, None]
  return jnp.tile(marks, queries // marks.shape[-1])


def _key_marks(layout):
  """int32[R N 1 3 B]: a key's column, the end of its subtree and its position."""
  columns = jnp.broadcast_to(jnp.arange(layout.key_ends[0].size).reshape(layout.key_ends.shape[1:]), layout.key_ends.shape)
  return jnp.stack([columns, layout.key_ends, layout.key_positions], -2)[:, :, None]


def _over_pairs(kernel, needed, of_lines, of_others, outputs, scratch, *, products, interpret):
  """Runs a kernel on each pair of blocks that is needed, line by line.

  Args:
    kernel: takes the tables, a block of each of the arrays, of each output, and the scratch.
    needed: bool[R L O] which lines (blocks that are kept while accumulating) need which others.
    of_lines: arrays [R L K or 1 . .].
    of_others: arrays [R O K or 1 . .].
    outputs: shapes and dtypes [R L K . .], one block a line.
    scratch: shapes of float32 scratch memory.
    products: matrix products of the kernel, for XLA to know what it costs.
    interpret: run on a CPU, for tests.
  """
  rows, lines, others = needed.shape
  tables, steps = _pairs(needed)
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  head = lambda x, h: h if x.shape[2] > 1 else 0
  line_spec = lambda x: pl.BlockSpec((None, None, *x.shape[3:]), lambda h, step, lines, others, counts: (lines[step], head(x, h), 0, 0))
  other_spec = lambda x: pl.BlockSpec((None, None, *x.shape[3:]), lambda h, step, lines, others, counts: (others[step], head(x, h), 0, 0))
  kv_heads, _, size = of_lines[0].shape[2:]
  logits = rows * lines * others * kv_heads * of_lines[0].shape[3] * of_others[0].shape[3] // 2  # of rows that are one path each: an upper bound
  read = sum(x.size * x.dtype.itemsize * times for arrays, times in ((of_lines, 1), (of_others, lines / 2), (outputs, 1)) for x in arrays)
  out = pl.pallas_call(
    kernel,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(tables),
      grid=(kv_heads, steps),
      in_specs=[*map(line_spec, of_lines), *map(other_spec, of_others)],
      out_specs=[*map(line_spec, outputs)],
      scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
    ),
    out_shape=[jax.ShapeDtypeStruct((rows * lines, *x.shape[2:]), x.dtype) for x in outputs],
    compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary')),
    cost_estimate=pl.CostEstimate(flops=2 * products * size * logits, transcendentals=logits, bytes_accessed=int(read)),
    interpret=interpret,
    name=kernel.func.__name__.strip('_'),
  )(*tables, *map(flat, of_lines), *map(flat, of_others))
  return [x.reshape(rows, lines, *x.shape[1:]) for x in out]


def _pairs(needed):
  """Tables of the pairs of blocks that are needed, line by line, and how many they are.

  A line that needs nothing has one pair all the same, for its output to be written, but a count of 0.
  """
  _, lines, others = needed.shape
  counts = needed.sum(-1, dtype=jnp.int32)
  listed = needed.at[..., 0].set(needed[..., 0] | (counts == 0))
  found = jnp.nonzero(listed.ravel(), size=listed.size + 1, fill_value=-1)[0].astype(jnp.int32)
  line = found // others  # -1 after the last pair, which ends the last line
  return (line, line // lines * others + found % others, counts.ravel()), listed.sum(dtype=jnp.int32)


def _in_calls(function, *args):
  """As many rows at a time as have room for their list of pairs."""
  q, k = args[:2]
  rows = len(q)
  at_once = max(1, min(rows, PAIRS // (q.shape[1] * k.shape[1])))
  while rows % at_once:
    at_once -= 1
  if at_once == rows:
    return function(*args)
  fold = lambda x: x.reshape(-1, at_once, *x.shape[1:])
  out = jax.lax.map(lambda xs: function(*xs), jax.tree.map(fold, args))
  return jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), out)
