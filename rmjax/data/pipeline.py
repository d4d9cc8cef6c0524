"""Records to packed batches: shuffled, sharded, prefetched, and resumable to the exact batch.

Dimensions: R rows, T length, S slots, N responses.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable, SupportsIndex

import grain
import jax
import numpy as np

from rmjax import trees
from rmjax.data.records import Record
from rmjax.errors import InputError

Encode = Callable[[Record], trees.Tree | str]  # a record's tree with its labels, or why it is refused


@runtime_checkable
class Source(Protocol):
  """Records by number."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: SupportsIndex) -> Record: ...


class Batch(NamedTuple):
  """What one step takes.

  Attributes:
    trees: as numpy arrays; label `index` is the record's number in its source.
    counts: records read for it, and how many of them were `truncated` or `refused`; comparisons taken out as `incompatible`.
  """

  trees: trees.Trees
  counts: dict[str, int]


class Packer:
  """Rows of one batch being filled, first fit."""

  def __init__(self, *, rows: int, length: int, slots: int, responses: int):
    """Empty rows; R, T, S and N of the batch."""
    self.shape = dict(length=length, slots=slots, responses=responses)
    self.rows: list[list[trees.Tree]] = [[] for _ in range(rows)]
    self._room = [length] * rows

  def add(self, tree: trees.Tree) -> tuple[int, int] | None:
    """Puts a tree into the first row that has room.

    Returns:
      Its row and slot; None if no row has room.
    """
    size = trees.size(tree)
    for row, room in enumerate(self._room):
      if size <= room and len(self.rows[row]) < self.shape['slots']:
        self.rows[row].append(tree)
        self._room[row] -= size
        return row, len(self.rows[row]) - 1
    return None

  def pack(self, rows: Sequence[int] | slice = slice(None)) -> trees.Trees:
    """The batch, or some of its rows; these have all of its labels even if they are empty."""
    return jax.tree.map(lambda x: x[rows], trees.pack(self.rows, **self.shape))


def train_batches(
  source: Source,
  encode: Encode,
  *,
  rows: int,
  length: int,
  slots: int,
  responses: int,
  seed: int,
  shard: int = 0,
  shards: int = 1,
  prefetch: int = 2,
) -> grain.DatasetIterator[Batch]:
  """Batches without end, in an order that only the seed decides; every epoch is shuffled anew.

  The iterator's state is small and can be saved (`get_state`, `grain.checkpoint`); set again, it goes on with the very next batch.

  Args:
    source: records. One with `draw(index, rng)` draws a record anew each time that it is read; one with `parts`, see `mixed`, is a mixture.
    encode: record -> tree or reason.
    rows: R.
    length: T.
    slots: S.
    responses: N.
    seed: of the shuffle.
    shard: which share of the records is read,
    shards: of how many.
    prefetch: batches made ahead by a thread.

  Raises:
    InputError: (by the iterator) a tree that no row can hold, a source without records, or records with different labels.
  """
  if len(source) < shards:
    raise InputError(f'the training data has {len(source)} records for data.shards = {shards}: there is nothing to train on')
  shape = dict(rows=rows, length=length, slots=slots, responses=responses)
  encoded = _Encoded(source, encode, **shape)
  shuffled = lambda numbers, seed: numbers.seed(seed % 2**32).shuffle()[shard::shards].repeat()
  numbers = mixed(source, lambda numbers, part: shuffled(numbers, seed + part))
  if hasattr(source, 'draw'):
    dataset = numbers.seed(seed % 2**32).random_map(encoded.draw)
  else:
    dataset = numbers.map(encoded.__getitem__)
  stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=64))
  packed = _PackIterDataset(stream, shape, most_refused=2 * -(-len(source) // shards))  # so many in a row include a whole epoch
  return iter(grain.experimental.ThreadPrefetchIterDataset(packed, prefetch_buffer_size=prefetch))


class ShardedBatches:
  """The batches of several shards of the data, joined row by row; a process holds some of the shards, all processes together hold all.

  The whole batch is the same whatever processes there are, and so is `get_state`, whose shards any processes can go on from.
  """

  def __init__(self, source: Source, encode: Encode, *, rows: int, shards: int, own: Sequence[int], **options: Any):
    """Opens the shards.

    Args:
      source: see `train_batches`.
      encode: likewise.
      rows: R of the whole batch, which all processes make together.
      shards: how many parts the rows have, each filled from its own share of the records.
      own: which of them this process reads; see `rmjax.training.mesh.own_shards`.
      **options: further arguments of `train_batches`.
    """
    self._streams = {shard: train_batches(source, encode, rows=rows // shards, shard=shard, shards=shards, **options) for shard in own}

  def __iter__(self) -> 'ShardedBatches':
    return self

  def __next__(self) -> Batch:
    """The rows of this process, in the order of its shards."""
    parts = [next(stream) for stream in self._streams.values()]
    joined = jax.tree.map(lambda *xs: np.concatenate(xs) if len(xs) > 1 else xs[0], *(part.trees for part in parts))
    return Batch(joined, {name: sum(part.counts[name] for part in parts) for name in parts[0].counts})

  def get_state(self) -> dict[str, Any]:
    """Shard -> where this process is in it; JSON-able."""
    return {str(shard): stream.get_state() for shard, stream in self._streams.items()}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes on from a state; shards of other processes may be in it.

    Raises:
      InputError: one of this process's shards is not in it.
    """
    for shard, stream in self._streams.items():
      if str(shard) not in state:
        raise InputError(f'the checkpoint has read {len(state)} shards of the data, and shard {shard} is not among them: set data.shards to {len(state)} again')
      stream.set_state(state[str(shard)])


def mixed(source: Source, order: Callable[[grain.MapDataset[int], int], grain.MapDataset[int]]) -> grain.MapDataset[int]:
  """Numbers of records without end, of each part of a mixture as often as its weight says.

  Args:
    source: its `parts`, if it has some, are (number of records, weight) of each part, in their order. A part that is read more often than it has
      records begins anew, whatever the others do.
    order: (numbers of a part's records, number of the part) -> these without end, in the order in which they are read.
  """
  parts = getattr(source, 'parts', ())
  if not parts:
    return order(grain.MapDataset.range(len(source)), 0)
  stops = np.cumsum([size for size, _ in parts]).tolist()
  ranges = [grain.MapDataset.range(stop - size, stop) for stop, (size, _) in zip(stops, parts, strict=True)]
  return grain.MapDataset.mix([order(numbers, part) for part, numbers in enumerate(ranges)], [weight for _, weight in parts])


def eval_batches(
  source: Source,
  encode: Encode,
  *,
  rows: int,
  length: int,
  slots: int,
  responses: int,
  own: Sequence[int] | slice = slice(None),
) -> Iterator[Batch]:
  """Every record once, in order; the last batch has empty rows.

  All processes see the same number of batches: each packs the whole batch and keeps its own rows.

  Args:
    source: see `train_batches`.
    encode: likewise.
    rows: R of the whole batch.
    length: T.
    slots: S.
    responses: N.
    own: the rows that this process holds.

  Raises:
    InputError: as `train_batches`, or every record was refused.
  """
  shape = dict(rows=rows, length=length, slots=slots, responses=responses)
  encoded = _Encoded(source, encode, **shape)
  packer, counts, item = Packer(**shape), _no_counts(), 'there is none'
  for index in range(len(source)):
    item = encoded[index]
    if isinstance(item, trees.Tree) and packer.add(item) is None:
      yield Batch(packer.pack(own), counts)
      packer, counts = Packer(**shape), _no_counts()
      packer.add(item)
    _count(counts, item)
  if not any(packer.rows):  # a batch begins with the tree that the one before had no room for
    raise InputError(f'none of the {len(source)} records can be evaluated on, the last one because: {item}')
  yield Batch(packer.pack(own), counts)


class _Encoded:
  """A source's records as trees that fit a row, each with its number."""

  def __init__(self, source: Source, encode: Encode, *, rows: int, length: int, slots: int, responses: int):
    del rows, slots
    self._source, self._encode, self._length, self._responses = source, encode, length, responses
    self._labels: frozenset[str] | None = None

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: SupportsIndex) -> trees.Tree | str:
    return self._fit(self._source[index], index)

  def draw(self, index: SupportsIndex, rng: np.random.Generator) -> trees.Tree | str:
    return self._fit(self._source.draw(index, rng), index)

  def _fit(self, record: Record, index: SupportsIndex) -> trees.Tree | str:
    tree = self._encode(record)
    if isinstance(tree, str):
      return tree
    if len(record.responses) > self._responses:
      raise InputError(f'{record.where}: {len(record.responses)} responses, and config.train.responses is {self._responses}: raise it')
    if trees.size(tree) > self._length:
      raise InputError(
        f'{record.where}: prompt and responses take {trees.size(tree)} tokens, and a row has {self._length}: '
        'raise config.train.length or lower config.data.max_length'
      )
    names = frozenset(tree.labels)
    self._labels = self._labels or names
    if names != self._labels:
      raise InputError(f'{record.where}: labels {sorted(names ^ self._labels)} are not in all records: a batch needs the same ones throughout')
    return tree._replace(labels={**tree.labels, 'index': np.int32(index)})


class _PackIterDataset(grain.IterDataset):
  """Packs a stream of trees into batches; `most_refused` records in a row without a tree are an error."""

  def __init__(self, parent: grain.IterDataset, shape: dict[str, int], *, most_refused: int):
    super().__init__(parent)
    self._shape, self._most_refused = shape, most_refused

  def __iter__(self) -> grain.DatasetIterator:
    return _PackIterator(iter(self._parent), self._shape, self._most_refused)


class _PackIterator(grain.DatasetIterator):
  """Fills rows until a tree fits in none; that one opens the next batch.

  The state is the parent's from before that tree was read, so it is read again after a restore.
  """

  def __init__(self, parent: grain.DatasetIterator, shape: dict[str, int], most_refused: int):
    super().__init__(parent)
    self._shape, self._most_refused = shape, most_refused
    self._waiting: trees.Tree | None = None
    self._state = parent.get_state()

  def __next__(self) -> Batch:
    packer, counts = Packer(**self._shape), _no_counts()
    if self._waiting is not None:
      packer.add(self._waiting)
      _count(counts, self._waiting)
    while True:
      state = self._parent.get_state()
      item = next(self._parent)
      if isinstance(item, trees.Tree) and packer.add(item) is None:
        self._waiting, self._state = item, state
        return Batch(packer.pack(), counts)
      _count(counts, item)
      if counts['refused'] == counts['records'] >= self._most_refused:
        raise InputError(f'every record of the training data was refused, the last one because: {item}')

  def get_state(self) -> dict[str, Any]:
    return self._state

  def set_state(self, state: dict[str, Any]) -> None:
    self._parent.set_state(state)
    self._state, self._waiting = state, None


def _no_counts() -> dict[str, int]:
  return dict(records=0, truncated=0, refused=0, incompatible=0)


def _count(counts: dict[str, int], item: trees.Tree | str) -> None:
  counts['records'] += 1
  counts['refused'] += isinstance(item, str)
  for name in ('truncated', 'incompatible'):
    counts[name] += isinstance(item, trees.Tree) and int(item.labels.get(name, 0))
