"""Runs a reward model over a stream of records, in order and in bounded memory.

Dimensions: R rows, T length, S slots, N responses.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import functools
import hashlib
import json
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
import numpy as np

from rmjax import trees
from rmjax.data.pipeline import Encode, Packer
from rmjax.data.records import Record
from rmjax.evaluation.scored import Scored
from rmjax.models import RewardModel
from rmjax.training.mesh import batch_sharding, replicated, use_mesh


class _Item(NamedTuple):
  """A record on its way: row and slot of its tree in the batch, or why it has none."""

  index: int
  record: Record
  place: tuple[int, int] | None = None
  truncated: bool = False
  refused: str | None = None


def score_records(
  model: RewardModel,
  params: Any,
  records: Iterable[Record],
  encode: Encode,
  *,
  mesh: Mesh,
  rows: int = 8,
  length: int = 1024,
  slots: int = 8,
  responses: int = 2,
) -> Iterator[Scored]:
  """Scores records.

  Batches have one shape, so that one compile serves the run; a record with more responses or tokens than it has room for doubles that
  dimension from there on. Every process reads all the records and computes its part of each batch.

  Args:
    model: the model.
    params: its parameters, on the mesh.
    records: any number; only a batch or two are held.
    encode: record -> tree, with a `truncated` label; or the reason why it is refused. Called as soon as a record is read.
    mesh: where batches go.
    rows: R of the global batch; raised to a multiple of what the mesh splits it into.
    length: T to start with.
    slots: S.
    responses: N to start with.

  Yields:
    One `Scored` a record, in the order of the records; where `encode` refused one, with NaN for its rewards and the reason.
  """
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  apply = _jitted(model, mesh)
  waiting = None  # the device works on one batch while the host encodes the next
  keep = getattr(model.head, 'reads_labels', ())
  for items, batch in _batches(records, encode, keep, rows=-(-rows // ways) * ways, length=length, slots=slots, responses=responses):
    with use_mesh(mesh):
      result = apply(params, _global(batch, mesh))
    if waiting:
      yield from _read(*waiting)
    waiting = items, result
  if waiting:
    yield from _read(*waiting)


@functools.lru_cache(maxsize=8)  # one compile for all the seeds of a model, and for all the data that it is evaluated on
def _jitted(model: RewardModel, mesh: Mesh) -> Callable[[Any, trees.Trees], dict[str, Any]]:
  def apply(params, batch):
    scores = model.apply({'params': params}, batch)
    return dict(rewards=model.head.reward(scores), logits=model.head.preference_logits(scores), lengths=trees.response_lengths(batch), scores=scores)

  return jax.jit(apply, out_shardings=replicated(mesh))


def _read(items: list[_Item], result: dict[str, Any]) -> Iterator[Scored]:
  result = jax.device_get(result)
  return (_scored(item, result) for item in items)


def _global(batch: trees.Trees, mesh: Mesh) -> trees.Trees:
  """The batch on the mesh; each process holds all of it, and gives its devices their rows."""
  return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, batch_sharding(mesh), lambda index: x[index]), batch)


def _batches(records: Iterable[Record], encode: Encode, keep: Sequence[str], **shape: int) -> Iterator[tuple[list[_Item], trees.Trees]]:
  """Packs trees until one finds no room; that one opens the next batch. Labels are left out but for those to `keep`."""
  items, packer = [], Packer(**shape)
  for index, record in enumerate(records):
    tree = encode(record)
    if isinstance(tree, str):
      items.append(_Item(index, record, refused=tree))
    else:
      truncated = bool(tree.labels['truncated'])
      tree = tree._replace(labels={name: tree.labels[name] for name in keep if name in tree.labels})
      larger = {**shape, 'length': _double(shape['length'], trees.size(tree)), 'responses': _double(shape['responses'], len(record.responses))}
      place = packer.add(tree) if larger == shape else None
      if place is None:
        if items:
          yield items, packer.pack()
        items, packer, shape = [], Packer(**larger), larger
        place = packer.add(tree)
      items.append(_Item(index, record, place, truncated))
    if len(items) == shape['rows'] * shape['slots']:
      yield items, packer.pack()
      items, packer = [], Packer(**shape)
  if items:
    yield items, packer.pack()


def _double(size: int, needed: int) -> int:
  while size < needed:
    size *= 2
  return size


def _scored(item: _Item, result: dict[str, Any]) -> Scored:
  if not item.place:
    return answer(item.record, item.index, refused=item.refused)
  found = {name: result[name][item.place] for name in ('rewards', 'logits', 'lengths')}
  return answer(item.record, item.index, **found, scores=jax.tree.map(lambda x: x[item.place], result['scores']), truncated=item.truncated)


def answer(
  record: Record,
  index: int,
  *,
  rewards: np.ndarray | None = None,
  logits: np.ndarray | None = None,
  lengths: np.ndarray | None = None,
  scores: Any = None,
  truncated: bool = False,
  refused: str | None = None,
) -> Scored:
  """A record with what was said of it, beside what it knows; arrays may be longer than its responses, and None stands for what is unknown."""
  count = len(record.responses)
  return Scored(
    index=index,
    rewards=np.full(count, np.nan) if rewards is None else rewards[:count],
    logits=np.full((count, count), np.nan) if logits is None else logits[:count, :count],
    lengths=np.full(count, -1) if lengths is None else lengths[:count],
    wins=record.wins,
    group=_fingerprint(record, index),
    subset=record.subset,
    where=record.where,
    ratings=record.ratings,
    gold=record.labels.get('gold'),
    probability=record.labels.get('probability'),
    labels=record.labels,
    scores=scores,
    truncated=truncated,
    refused=refused,
  )


def _fingerprint(record: Record, index: int) -> int:
  """The same for records of one prompt; records without a prompt have nothing in common."""
  text = json.dumps(record.prompt) if record.prompt else f'record {index}'
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), 'big')
