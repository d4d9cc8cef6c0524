"""Packed token trees: the one data layout.

A row holds trees of tokens in depth-first order. A query sees a key iff `key <= query < subtree_end[key]`, which is causality,
packing, shared prompts and blind siblings in one comparison.

Dimensions: R rows, T length, S slots (trees in a row), N responses.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import NamedTuple, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Shaped
import numpy as np

Array = jax.Array | np.ndarray  # what functions of arrays take, under jit or not


@no_type_check  # jax builds it around whatever a tree map gives
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Trees:
  """A batch of packed trees; every field has rows first, so rows can be sharded.

  Padding may lie anywhere; its `subtree_end` is 0, so nothing sees it and what it computes is never read.
  """

  tokens: Int[Array, 'R T']
  positions: Int[Array, 'R T']  # depth in the tree: the position the network sees
  subtree_end: Int[Array, 'R T']  # one past the last column of the token's subtree; 0 for padding
  parents: Int[Array, 'R T']  # column of the token before on the path; -1 at a root and for padding
  response_ids: Int[Array, 'R T']  # slot * N + n; -1 for prompts and padding
  prompt_ends: Int[Array, 'R S']  # column of the last prompt token; -1 if the slot is empty
  response_ends: Int[Array, 'R S N']  # column of the last response token; -1 if absent
  labels: dict[str, Shaped[Array, 'R ...']] = dataclasses.field(default_factory=dict)
  # wins [R S N N] and whatever else is known of a tree, [R S ...], or of a token, [R T]


class Segment(NamedTuple):
  """A run of tokens that continues the last token of another segment of its tree."""

  tokens: Sequence[int]
  parent: int = -1  # index of the segment it continues, in its tree; -1 for a root
  response: int = -1  # the response its tokens belong to; -1 for a prompt


class Tree(NamedTuple):
  """A prompt with its responses, or any other tree of text, and what is known about it.

  The first segment is the prompt, and a segment comes after the one that it continues. Siblings cannot see one another.
  """

  segments: Sequence[Segment]
  labels: Mapping[str, np.ndarray | np.generic] = {}  # each of shape [...]; an axis that counts responses has N entries


def branch(prompt: Sequence[int], responses: Sequence[Sequence[int]], labels: Mapping[str, np.ndarray | np.generic] | None = None) -> Tree:
  """A prompt and N responses that are blind to one another."""
  return Tree((Segment(prompt), *(Segment(tokens, 0, n) for n, tokens in enumerate(responses))), labels or {})


def chain(prompt: Sequence[int], responses: Sequence[Sequence[int]], labels: Mapping[str, np.ndarray | np.generic] | None = None) -> Tree:
  """A prompt and N responses of which each sees the ones before it, as in a judge of several responses in one pass (YOJO)."""
  return Tree((Segment(prompt), *(Segment(tokens, n, n) for n, tokens in enumerate(responses))), labels or {})


def size(tree: Tree) -> int:
  """Number of columns that a tree takes."""
  return sum(len(segment.tokens) for segment in tree.segments)


def pack(rows: Sequence[Sequence[Tree]], *, length: int, slots: int, responses: int) -> Trees:
  """Lays out rows of trees.

  Args:
    rows: rows[r] lists the trees of row r; every segment has a token, and all trees have the same labels.
    length: T, columns of a row.
    slots: S, most trees in a row.
    responses: N, most responses in a tree.

  Returns:
    A batch of numpy arrays. Labels of absent trees and responses are 0 for `wins`, else NaN if floating and -1 if integer.

  Raises:
    ValueError: a row does not fit, a segment is empty or continues a later one; the message names it.
  """
  shape, slot_shape = (len(rows), length), (len(rows), slots)
  out = Trees(
    tokens=np.zeros(shape, np.int32),
    positions=np.zeros(shape, np.int32),
    subtree_end=np.zeros(shape, np.int32),
    parents=np.full(shape, -1, np.int32),
    response_ids=np.full(shape, -1, np.int32),
    prompt_ends=np.full(slot_shape, -1, np.int32),
    response_ends=np.full((*slot_shape, responses), -1, np.int32),
    labels=_empty_labels(rows, slot_shape, responses),
  )
  for r, row in enumerate(rows):
    needed = sum(map(size, row))
    if needed > length or len(row) > slots:
      raise ValueError(f'row {r} needs {needed} columns and {len(row)} slots; there are {length} and {slots}')
    column = 0
    for slot, tree in enumerate(row):
      column = _lay_out(out, r, slot, tree, column)
      for name, value in tree.labels.items():
        value = np.asarray(value)
        out.labels[name][(r, slot, *map(slice, value.shape))] = value
  return out


def _empty_labels(rows: Sequence[Sequence[Tree]], slot_shape: tuple[int, int], responses: int) -> dict[str, np.ndarray]:
  first = next((tree for row in rows for tree in row), None)
  labels = {}
  for name, value in (first.labels if first else {}).items():
    value = np.asarray(value)
    fill = 0 if name == 'wins' else np.nan if np.issubdtype(value.dtype, np.floating) else -1
    dtype = np.float32 if np.issubdtype(value.dtype, np.floating) else np.int32
    labels[name] = np.full(slot_shape + (responses,) * value.ndim, fill, dtype)
  return labels


def _lay_out(out: Trees, r: int, slot: int, tree: Tree, column: int) -> int:
  """Writes one tree into row r from `column` on; returns the column after it."""
  responses = out.response_ends.shape[-1]
  children = {}
  for index, segment in enumerate(tree.segments):
    if not len(segment.tokens) or segment.parent >= index or segment.response >= responses:
      raise ValueError(
        f'row {r}, slot {slot}, segment {index}: {len(segment.tokens)} tokens, parent {segment.parent}, response {segment.response}; '
        f'a segment has tokens, continues an earlier one, and its response is below {responses}'
      )
    children.setdefault(segment.parent, []).append(index)

  last_column = {-1: -1}  # segment -> column of its last token
  stack = [(index, False) for index in reversed(children[-1])]
  spans = {}
  while stack:  # depth first; a second visit closes the subtree
    index, closing = stack.pop()
    if closing:
      out.subtree_end[r, spans[index]] = column
      continue
    segment = tree.segments[index]
    parent = last_column[segment.parent]
    span = slice(column, column + len(segment.tokens))
    out.tokens[r, span] = segment.tokens
    out.parents[r, span] = [parent, *range(column, span.stop - 1)]
    depth = out.positions[r, parent] + 1 if parent >= 0 else 0
    out.positions[r, span] = depth + np.arange(len(segment.tokens))
    if segment.response >= 0:
      out.response_ids[r, span] = slot * responses + segment.response
      out.response_ends[r, slot, segment.response] = span.stop - 1  # the deepest segment comes last
    elif segment.parent == -1:
      out.prompt_ends[r, slot] = span.stop - 1
    spans[index], last_column[index], column = span, span.stop - 1, span.stop
    stack += [(index, True), *((child, False) for child in reversed(children.get(index, [])))]
  return column


def attention_mask(subtree_end: Int[Array, 'R T']) -> Bool[Array, 'R T T']:
  """Dense mask [row, query, key]: the key is the query itself or one of its ancestors."""
  column = jnp.arange(subtree_end.shape[-1])
  return (column[None, :] <= column[:, None]) & (column[:, None] < subtree_end[:, None, :])


def gather(values: Shaped[Array, 'R T *D'], columns: Int[Array, 'R *S']) -> Shaped[Array, 'R ...']:
  """values[r, columns[r]]; absent columns (-1) read column 0, so mask by `columns >= 0`."""
  return jax.vmap(lambda v, c: v[jnp.maximum(c, 0)])(values, columns)


def path_log_probs(logits: Float[Array, 'R T V'], trees: Trees) -> Float[Array, 'R T']:
  """Log-probability of every token given its path, in float32 nats; 0 where there is none (roots, padding).

  A token is predicted at its parent, which for a response's first token is the prompt's last one.
  """
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  picked = jax.vmap(lambda row, p, t: row[jnp.maximum(p, 0), t])(log_p, trees.parents, trees.tokens)
  return jnp.where(trees.parents >= 0, picked, 0.0)


def response_sums(values: Float[Array, 'R T'], trees: Trees) -> Float[Array, 'R S N']:
  """Sums token values over each response, e.g. log-probs into sequence log-probs, in float32."""
  shape = trees.response_ends.shape
  ids = jnp.where(trees.response_ids >= 0, trees.response_ids, shape[1] * shape[2])
  sums = jax.vmap(lambda v, i: jax.ops.segment_sum(v, i, shape[1] * shape[2] + 1))(values.astype(jnp.float32), ids)
  return sums[:, :-1].reshape(shape)


def response_lengths(trees: Trees) -> Int[Array, 'R S N']:
  """Number of tokens of each response; 0 where absent."""
  return response_sums(jnp.ones(trees.tokens.shape, jnp.float32), trees).astype(jnp.int32)


def to_tokens(values: Shaped[Array, 'R S N'], trees: Trees) -> Shaped[Array, 'R T']:
  """Gives each token of a response its response's value, e.g. an advantage; 0 to prompts and padding."""
  flat = jnp.asarray(values).reshape(len(values), -1)
  picked = jnp.take_along_axis(flat, jnp.maximum(trees.response_ids, 0), -1)
  return jnp.where(trees.response_ids >= 0, picked, jnp.zeros((), flat.dtype))
