"""The order of a record's responses, for layouts in which later ones see earlier ones.

Dimensions: N responses of a record.
"""

import dataclasses
from typing import SupportsIndex

from jaxtyping import Int
import numpy as np

from rmjax.data.pipeline import Source
from rmjax.data.records import Record
from rmjax.errors import InputError


def permuted(record: Record, order: Int[np.ndarray, 'N']) -> Record:
  """The record with response order[n] in place n; its comparisons, ratings, labels and critiques go along."""
  take = lambda values: values[np.ix_(*(order,) * np.ndim(values))] if np.ndim(values) else values
  return dataclasses.replace(
    record,
    responses=tuple(record.responses[n] for n in order),
    critiques=tuple(record.critiques[n] for n in order) if record.critiques else (),
    wins=take(record.wins),
    ratings=take(record.ratings),
    labels={name: take(value) for name, value in record.labels.items()},
  )


class ShuffledResponses:
  """A source whose records have their responses in another order each time that one is read to be trained on; `source[i]` has them as they are.

  Reference: YOJO (2026); each epoch anew [reconstructed].
  """

  def __init__(self, source: Source):
    """Wraps a source."""
    self._source = source
    self.bad, self.parts = getattr(source, 'bad', ()), getattr(source, 'parts', ())

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: SupportsIndex) -> Record:
    return self._source[index]

  def draw(self, index: int, rng: np.random.Generator) -> Record:
    """Record number `index` as an epoch reads it; see `rmjax.data.pipeline.train_batches`."""
    record = self._source[index]
    return permuted(record, rng.permutation(len(record.responses)))


class Orders:
  """A source that has every record in `count` orders of its responses, one after the other.

  The first N are rotations of a random order, so that every response stands once in every place; the next N are of another one. Label
  `record` is the record's number in the source that is wrapped, and `order` [N] says which of its responses stands where.
  """

  def __init__(self, source: Source, count: int):
    """Wraps a source.

    Raises:
      InputError: there is no order to have.
    """
    if count < 1:
      raise InputError(f'data.orders = {count}: give 1 or more')
    self._source, self._count = source, count
    self.bad = getattr(source, 'bad', ())

  def __len__(self) -> int:
    return len(self._source) * self._count

  def __getitem__(self, index: SupportsIndex) -> Record:
    number, turn = divmod(int(index), self._count)
    record = self._source[number]
    places = len(record.responses)
    order = np.roll(np.random.default_rng((number, turn // places)).permutation(places), turn % places)
    return dataclasses.replace(moved := permuted(record, order), labels={**moved.labels, 'record': np.int32(number), 'order': order.astype(np.int32)})
