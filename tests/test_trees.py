"""The layout itself: what a pack says of its trees, on trees drawn at random."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import trees


@st.composite
def forests(draw):
  """Rows of random trees: prompts, branches, chains and whatever else parents allow."""
  text = st.lists(st.integers(1, 99), min_size=1, max_size=4)
  rows = []
  for _ in range(draw(st.integers(1, 3))):
    row = []
    for _ in range(draw(st.integers(0, 3))):
      segments = [trees.Segment(draw(text))]
      for n in range(draw(st.integers(0, 4))):
        segments.append(trees.Segment(draw(text), draw(st.integers(0, len(segments) - 1)), n))
      row.append(trees.Tree(segments, {'wins': np.zeros((len(segments) - 1,) * 2, np.float32)}))
    rows.append(row)
  return rows


def paths(tree):
  """(response, tokens of its path, how many of them are its own) by following parents, without any layout."""
  for segment in tree.segments[1:]:
    tokens, parent = list(segment.tokens), segment.parent
    while parent >= 0:
      tokens = list(tree.segments[parent].tokens) + tokens
      parent = tree.segments[parent].parent
    yield segment.response, tokens, len(segment.tokens)


@settings(deadline=None)
@given(forests())
def test_every_path_can_be_read_back(rows):
  batch = trees.pack(rows, length=64, slots=3, responses=4)
  for r, row in enumerate(rows):
    for slot, tree in enumerate(row):
      for n, tokens, own in paths(tree):
        column, columns = batch.response_ends[r, slot, n], []
        while column >= 0:
          columns.append(column)
          column = batch.parents[r, column]
        columns.reverse()
        np.testing.assert_array_equal(batch.tokens[r, columns], tokens)
        np.testing.assert_array_equal(batch.positions[r, columns], np.arange(len(tokens)))
        np.testing.assert_array_equal(batch.response_ids[r, columns[-own:]], slot * 4 + n)
        assert np.sum(batch.response_ids[r] == slot * 4 + n) == own


@settings(deadline=None)
@given(forests())
def test_the_mask_is_ancestry(rows):
  batch = trees.pack(rows, length=64, slots=3, responses=4)
  mask = np.asarray(trees.attention_mask(jnp.asarray(batch.subtree_end)))
  for r in range(len(rows)):
    for query in range(64):
      ancestors, column = set(), query
      while column >= 0 and batch.subtree_end[r, query]:
        ancestors.add(column)
        column = batch.parents[r, column]
      assert set(np.flatnonzero(mask[r, query])) == ancestors


def test_prompt_ends_and_labels_of_absent_slots():
  wins = np.array([[0.0, 1.0], [0.0, 0.0]], np.float32)
  labels = {'wins': wins, 'ratings': np.array([1.0, 2.0]), 'weights': np.array(0.5), 'index': np.array(7)}
  batch = trees.pack([[trees.branch([1, 2], [[3], [4, 5]], labels)], []], length=6, slots=2, responses=3)
  np.testing.assert_array_equal(batch.prompt_ends, [[1, -1], [-1, -1]])
  np.testing.assert_array_equal(batch.response_ends[0], [[2, 4, -1], [-1, -1, -1]])
  np.testing.assert_array_equal(batch.labels['wins'][0, 0, :2, :2], wins)
  assert batch.labels['wins'].sum() == 1
  np.testing.assert_array_equal(batch.labels['ratings'][0, 0], [1, 2, np.nan])
  np.testing.assert_array_equal(batch.labels['index'], [[7, -1], [-1, -1]])
  np.testing.assert_array_equal(batch.labels['weights'][0], [0.5, np.nan])


def test_a_chain_sees_what_came_before_and_a_branch_does_not():
  branch, chain = (trees.pack([[make([1], [[2], [3]])]], length=3, slots=1, responses=2) for make in (trees.branch, trees.chain))
  assert not trees.attention_mask(branch.subtree_end)[0, 2, 1]
  assert trees.attention_mask(chain.subtree_end)[0, 2, 1]
  np.testing.assert_array_equal(chain.positions, [[0, 1, 2]])
  np.testing.assert_array_equal(branch.positions, [[0, 1, 1]])


def test_log_probs_follow_parents_and_sums_stay_in_their_response():
  batch = trees.pack([[trees.branch([1, 2], [[3], [0, 3]])]], length=6, slots=1, responses=2)
  logits = np.random.default_rng(0).normal(size=(1, 6, 4)).astype(np.float32)
  log_p = logits[0] - np.log(np.exp(logits[0]).sum(-1, keepdims=True))
  picked = trees.path_log_probs(logits, batch)[0]
  np.testing.assert_allclose(picked, [0, log_p[0, 2], log_p[1, 3], log_p[1, 0], log_p[3, 3], 0], rtol=1e-5)
  sums = trees.response_sums(picked[None], batch)
  np.testing.assert_allclose(sums[0, 0], [log_p[1, 3], log_p[1, 0] + log_p[3, 3]], rtol=1e-5)
  np.testing.assert_array_equal(trees.response_lengths(batch)[0, 0], [1, 2])


def test_log_probs_are_float32_whatever_the_logits():
  batch = trees.pack([[trees.branch([1], [[2]])]], length=2, slots=1, responses=1)
  assert trees.path_log_probs(jnp.zeros((1, 2, 4), jnp.bfloat16), batch).dtype == jnp.float32


def test_trees_are_frozen():
  batch = trees.pack([[]], length=2, slots=1, responses=1)
  with pytest.raises(dataclasses.FrozenInstanceError):
    batch.tokens = batch.positions


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    ([[trees.branch([1], [[2]])], [trees.branch([1, 2], [[3, 4, 5]])]], 'row 1 needs 5 columns and 1 slots; there are 4 and 1'),
    ([[trees.branch([1], [[2]]), trees.branch([1], [[2]])]], 'row 0 needs 4 columns and 2 slots; there are 4 and 1'),
    ([[trees.branch([1], [[2], []])]], 'row 0, slot 0, segment 2: 0 tokens'),
    ([[trees.branch([1], [[2], [3], [4]])]], 'segment 3: .* response 2; .* its response is below 2'),
    ([[trees.Tree((trees.Segment([1]), trees.Segment([2], 1, 0)))]], 'segment 1: .* parent 1'),
  ],
)
def test_what_cannot_be_packed_is_named(rows, message):
  with pytest.raises(ValueError, match=message):
    trees.pack(rows, length=4, slots=1, responses=2)


@settings(deadline=None)
@given(forests())
def test_values_of_responses_reach_their_tokens_alone(rows):
  batch = trees.pack(rows, length=64, slots=3, responses=4)
  values = np.random.default_rng(0).normal(size=batch.response_ends.shape).astype(np.float32)
  values[batch.response_ends < 0] = np.nan
  spread = trees.to_tokens(values, batch)
  for r, column in np.ndindex(batch.tokens.shape):
    response = batch.response_ids[r, column]
    assert spread[r, column] == (values[r].reshape(-1)[response] if response >= 0 else 0)
  present = batch.response_ends >= 0
  totals = np.where(present, np.where(present, values, 0) * trees.response_lengths(batch), 0)
  np.testing.assert_allclose(trees.response_sums(spread, batch), totals, rtol=1e-5)
