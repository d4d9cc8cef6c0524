"""Blockwise against dense attention on packed trees: time, forward and with gradients, and temporary memory.

  python -m benchmarks.attention [--lengths=1024,4096] [--shapes=story] [--trees=pairs] [--blocks=128,256] [--rounds=5]

One JSON line a case. `forward` and `gradient` are medians over rounds of dense / blockwise, the two run in turn, so that what else the machine
does falls on both; above 1, blockwise is the faster. A case is --tokens tokens in rows of T.
"""

from collections.abc import Callable, Sequence
import functools
import json
import time

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from rmjax import trees
from rmjax.backbones import attention, blockwise

SHAPES = {'story': (8, 4, 8), 'base': (6, 6, 64)}  # query heads, key heads, head size: of stories260K, and of a decoder of hidden size 384

_LENGTHS = flags.DEFINE_list('lengths', ['256', '512', '1024', '2048', '4096'], 'T, the columns of a row.')
_TOKENS = flags.DEFINE_integer('tokens', 4096, 'R * T.')
_SHAPES = flags.DEFINE_list('shapes', list(SHAPES), f'Of {", ".join(SHAPES)}.')
_TREES = flags.DEFINE_list('trees', ['pairs', 'eights'], 'pairs: prompts with 2 responses, as many as fit; eights: one prompt with 8 responses fills a row.')
_BLOCKS = flags.DEFINE_list('blocks', [], 'Columns of a block; none for the default.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Times that each is run.')
_DTYPE = flags.DEFINE_string('dtype', 'float32', 'Of queries, keys and values.')


def pairs(rng: np.random.Generator, length: int) -> list[trees.Tree]:
  """Prompts with two responses of lognormal lengths, until the row is full."""
  row, left = [], length
  while True:
    sizes = np.clip(rng.lognormal(4.5, 0.6, 3), 16, 512).astype(int)
    if sizes.sum() > left:
      return row or [trees.branch([0] * (length // 2), [[0] * (length // 4)] * 2)]
    row.append(trees.branch([0] * sizes[0], [[0] * sizes[1], [0] * sizes[2]]))
    left -= sizes.sum()


def eights(rng: np.random.Generator, length: int) -> list[trees.Tree]:
  """One prompt, a ninth of the row, and eight responses of about as much."""
  sizes = rng.multinomial(length, [1 / 9] * 9)
  return [trees.branch([0] * sizes[0], [[0] * size for size in sizes[1:]])]


def seconds(run: Callable[[], object]) -> float:
  """Of one run."""
  start = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - start


def measure(shape: str, kind: str, length: int, block: int | None) -> dict[str, float | str | int]:
  """One case."""
  rng = np.random.default_rng(0)
  rows = max(1, _TOKENS.value // length)
  batch = trees.pack([globals()[kind](rng, length) for _ in range(rows)], length=length, slots=64, responses=8)
  heads, kv_heads, size = SHAPES[shape]
  arrays = [jnp.asarray(rng.normal(size=(rows, length, count, size)), _DTYPE.value) for count in (heads, kv_heads, kv_heads)]
  options = dict(scale=size**-0.5, subtree_end=batch.subtree_end, positions=batch.positions)
  attend = dict(
    dense=functools.partial(attention.tree_attention, implementation='dense', **options),
    blockwise=functools.partial(blockwise.blockwise_attention, **options, **({'block': block} if block else {})),
  )
  alive = (batch.subtree_end > 0)[..., None, None]
  result = dict(shape=shape, trees=kind, length=length, rows=rows, dtype=_DTYPE.value, block=block or 'default', tokens=int(alive.sum()))
  for name, transform in dict(forward=lambda f: f, gradient=lambda f: jax.grad(lambda *x: jnp.where(alive, f(*x), 0).sum(), (0, 1, 2))).items():
    compiled = {way: jax.jit(transform(f)).lower(*arrays).compile() for way, f in attend.items()}
    for f in compiled.values():
      f(*arrays)
    times = np.array([[seconds(lambda f=f: f(*arrays)) for f in compiled.values()] for _ in range(_ROUNDS.value)])
    result[name] = round(float(np.median(times[:, 0] / times[:, 1])), 2)
    for way, median in zip(compiled, np.median(times, 0), strict=True):
      result[f'{name}_{way}_ms'] = round(1e3 * float(median), 2)
      result[f'{name}_{way}_temp_mb'] = round(compiled[way].memory_analysis().temp_size_in_bytes / 1e6, 1)
  return result


def main(argv: Sequence[str]) -> None:
  del argv
  for shape in _SHAPES.value:
    for kind in _TREES.value:
      for length in map(int, _LENGTHS.value):
        for block in map(int, _BLOCKS.value or [0]):
          print(json.dumps(measure(shape, kind, length, block)), flush=True)


if __name__ == '__main__':
  app.run(main)
