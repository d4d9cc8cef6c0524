"""Forests, arrays and comparisons for tests of attention in blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rmjax import trees
from rmjax.backbones import attention

ROWS, LENGTH, BLOCK = 3, 43, 8  # the last block is not full
SIZE = 4

# Two trees, of 2 and 3 blocks: a prompt of a block with a response of one; a prompt of a block with two responses.
ALIGNED = trees.pack([[trees.branch([0] * 8, [[0] * 8]), trees.branch([0] * 8, [[0] * 8] * 2)]] * 2, length=40, slots=2, responses=2)

dense = functools.partial(attention.tree_attention, implementation='dense', scale=0.6)


def layout(seed, rows=ROWS, length=LENGTH):
  """Subtree ends and positions of random forests with padding anywhere, some of it blocks long; positions of padding are rubbish."""
  rng = np.random.default_rng(seed)
  packed = []
  for _ in range(rows):
    row, left = [], length - rng.integers(length // 2)
    while True:
      segments = [trees.Segment([0] * rng.integers(1, 12))]
      for _ in range(rng.integers(4)):
        segments.append(trees.Segment([0] * rng.integers(1, 12), rng.integers(len(segments))))
      if trees.size(trees.Tree(segments)) > left:
        break
      row.append(trees.Tree(segments))
      left -= trees.size(row[-1])
    packed.append(row)
  batch = trees.pack(packed, length=length, slots=length, responses=1)
  ends, positions = np.zeros((rows, length), np.int32), rng.integers(0, length, (rows, length)).astype(np.int32)
  for r in range(rows):
    count = np.count_nonzero(batch.subtree_end[r])
    columns = np.sort(rng.choice(length, count, replace=False) if rng.integers(2) else np.arange(length - count, length))
    ends[r, columns] = columns[batch.subtree_end[r, :count] - 1] + 1
    positions[r, columns] = batch.positions[r, :count]
  return ends, positions


def arrays(heads=4, kv_heads=2, *, rows=ROWS, length=LENGTH, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.normal(size=(rows, length, count, SIZE)), dtype) for count in (heads, kv_heads, kv_heads)]


def values_and_gradients(attend, **options):
  """Of a weighted sum over tokens that are not padding; the values of padding are 0."""

  def run(q, k, v, ends, positions, **traced):
    def loss(q, k, v):
      y = jnp.where((ends > 0)[..., None, None], attend(q, k, v, ends, positions, **options, **traced), 0.0)
      return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape)), dtype=jnp.float32), y

    gradients, y = jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
    return y, *gradients

  return run


def check(ours, theirs, atol=1e-5):
  for one, other in zip(ours, theirs, strict=True):
    assert one.dtype == other.dtype
    np.testing.assert_allclose(np.float32(one), np.float32(other), atol=atol, rtol=atol)
