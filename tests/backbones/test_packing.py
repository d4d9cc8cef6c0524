"""A packed row computes what every path computes alone, for every family, windows on; tests/goldens has the random networks."""

import dataclasses
import functools
from pathlib import Path

import flax.linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import trees
from rmjax.backbones import pretrained
from rmjax.backbones.decoder import Decoder

GOLDENS = Path(__file__).parents[1] / 'goldens' / 'decoders'
FAMILIES = ['llama', 'mistral', 'qwen2', 'qwen3', 'gemma2', 'gemma3']
ROWS, LENGTH, VOCAB = 12, 40, 48  # one shape, hence one compilation a family


@functools.cache
def network(family):
  decoder = Decoder(pretrained.read_config(GOLDENS / family))
  example = jnp.zeros((1, 4), jnp.int32)
  abstract = nn.unbox(jax.eval_shape(lambda key: decoder.init(key, example, example, example, method=decoder.logits), jax.random.key(0)))['params']
  return decoder, pretrained.load_decoder(GOLDENS / family, abstract)


@functools.cache
def forward(family):
  """Jitted: batch -> hidden states, log-probabilities of tokens."""
  decoder, params = network(family)

  def both(decoder, layout):
    return decoder(*layout), decoder.logits(*layout)

  @jax.jit
  def run(batch):
    hidden, logits = decoder.apply({'params': params}, (batch.tokens, batch.positions, batch.subtree_end), method=both)
    return hidden, trees.path_log_probs(logits, batch)

  return lambda batch: jax.tree.map(np.asarray, run(batch))


@st.composite
def forests(draw):
  """Two rows of random trees, and the columns before which padding stands."""
  text = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4)
  rows = []
  for _ in range(2):
    row = []
    for _ in range(draw(st.integers(1, 2))):
      segments = [trees.Segment(draw(text))]
      for n in range(draw(st.integers(0, 3))):
        segments.append(trees.Segment(draw(text), draw(st.integers(0, len(segments) - 1)), n))
      row.append(trees.Tree(segments))
    rows.append(row)
  return rows, draw(st.sets(st.integers(0, 31), max_size=LENGTH - 32))


def pack(rows):
  return trees.pack([*rows, *[[]] * (ROWS - len(rows))], length=LENGTH, slots=2, responses=3)


def paths(tree):
  """The token ids of every path from the root to the end of a segment."""
  found = []
  for segment in tree.segments:
    found.append((found[segment.parent] if segment.parent >= 0 else []) + list(segment.tokens))
  return found


def spread(batch, gaps):
  """The same trees with a column of padding, full of rubbish, before each column of `gaps`."""
  new = np.arange(32) + np.cumsum(np.isin(np.arange(32), list(gaps)))
  rng = np.random.default_rng(0)

  def move(values, rubbish):
    moved = np.broadcast_to(rubbish, values.shape).astype(np.int32)
    moved[:, new] = values[:, :32]
    return moved

  return dataclasses.replace(
    batch,
    tokens=move(batch.tokens, rng.integers(0, VOCAB, batch.tokens.shape)),
    positions=move(batch.positions, rng.integers(0, LENGTH, batch.positions.shape)),
    subtree_end=move(np.where(batch.subtree_end > 0, new[batch.subtree_end - 1] + 1, 0), 0),
    parents=move(np.where(batch.parents >= 0, new[batch.parents], -1), -1),
  )


@pytest.mark.parametrize('family', FAMILIES)
@settings(deadline=None, max_examples=15)
@given(forests())
def test_packed_equals_every_path_alone(family, drawn):
  rows, gaps = drawn
  run = forward(family)
  packed = spread(pack(rows), gaps)
  hidden, log_p = run(packed)
  alone = [path for row in rows for tree in row for path in paths(tree)]
  where = []  # of each path: its row, and the columns it has there
  for r, row in enumerate(rows):
    ends = iter(_segment_ends(packed, r, row))
    where += [(r, next(ends)) for tree in row for _ in tree.segments]
  for start in range(0, len(alone), ROWS):
    some = alone[start : start + ROWS]
    alone_hidden, alone_log_p = run(pack([[trees.Tree((trees.Segment(path),))] for path in some]))
    for i, path in enumerate(some):
      r, columns = where[start + i]
      np.testing.assert_array_equal(packed.tokens[r, columns], path)
      np.testing.assert_allclose(hidden[r, columns], alone_hidden[i, : len(path)], atol=1e-5)
      np.testing.assert_allclose(log_p[r, columns], alone_log_p[i, : len(path)], atol=1e-5)


def _segment_ends(batch, r, row):
  """Columns of every segment's path in row r, found by walking each segment's tokens in depth-first order."""
  columns = iter(np.flatnonzero(batch.subtree_end[r]))
  for tree in row:
    found = {}

    def visit(index, before, tree=tree, found=found):
      found[index] = before + [next(columns) for _ in tree.segments[index].tokens]
      for child, segment in enumerate(tree.segments):
        if segment.parent == index:
          visit(child, found[index])

    visit(0, [])
    yield from (found[index] for index in range(len(tree.segments)))


def test_changing_a_response_moves_no_other():
  run = forward('gemma2')
  prompt, one, two, other = [1, 2, 3], [4, 5, 6], [7, 8, 9, 10], trees.branch([11, 12], [[13]])
  hidden, log_p = run(pack([[trees.branch(prompt, [one, two]), other]]))
  changed, changed_log_p = run(pack([[trees.branch(prompt, [[40, 41, 42], two]), other]]))
  same = np.r_[0:3, 6:13]
  np.testing.assert_array_equal(hidden[0, same], changed[0, same])
  np.testing.assert_array_equal(log_p[0, same], changed_log_p[0, same])
  assert np.abs(hidden[0, 3:6] - changed[0, 3:6]).min(-1).max() > 0


@pytest.mark.parametrize('family', ['llama', 'qwen2', 'gemma2'])
def test_gradients_follow_paths_alone(family):
  """Every column has a token of its own, so the embedding's gradient tells from where a column's output comes."""
  decoder, params = network(family)
  deep = (trees.Segment([1, 2]), trees.Segment([3, 4, 5], 0, 0), trees.Segment([6], 1, 1), trees.Segment([7, 8], 1, 2))
  batch = trees.pack([[trees.Tree(deep), trees.chain([9], [[10, 11], [12]])]], length=16, slots=2, responses=3)
  batch.tokens[0, 12:] = np.arange(13, 17)  # padding
  weights = jax.random.normal(jax.random.key(0), (decoder.config.hidden_size,))

  def output(embedding, column):
    hidden = decoder.apply({'params': {**params, 'embedding': {'embedding': embedding}}}, batch.tokens, batch.positions, batch.subtree_end)
    return hidden[0, column] @ weights

  gradients = jax.jit(jax.vmap(jax.grad(output), (None, 0)))(params['embedding']['embedding'], jnp.arange(16))
  assert np.isfinite(gradients).all()
  reaches = np.any(gradients[:, batch.tokens[0]] != 0, -1)
  np.testing.assert_array_equal(reaches[:12, :], trees.attention_mask(batch.subtree_end)[0, :12])
