"""Records for losses on single responses that are desirable or not (KTO): each with a rating, beside a response that belongs to another prompt.

Dimensions: N responses of the record.
"""

import dataclasses
from typing import SupportsIndex

import numpy as np

from rmjax.data.pipeline import Source
from rmjax.data.records import Record
from rmjax.errors import InputError


class Unpaired:
  """A source whose record i gains the first response of the nearest record before it (going round) that has another prompt.

  It comes last, was compared with none and has no rating; label `mismatched` [N] is 1 for it and 0 for the others. Where no response of a record is
  rated, those that won more than half of their comparisons get 1, and those that won less get 0. The records' other labels are unknown for it.

  Reference: Ethayarajh et al., KTO (2024), section 4.1: the baseline is estimated from prompts with the responses of others.
  """

  def __init__(self, source: Source):
    """Wraps a source.

    Raises:
      InputError: it has fewer than two records.
    """
    if len(source) < 2:
      raise InputError(f'the data has {len(source)} record, and a response to another prompt is needed beside each: give two or more')
    self._source = source
    self.bad, self.parts = getattr(source, 'bad', ()), getattr(source, 'parts', ())

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: SupportsIndex) -> Record:
    index = int(index)
    record = self._source[index]
    before = (self._source[(index - back) % len(self)] for back in range(1, len(self)))
    other = next((other for other in before if other.prompt != record.prompt), None)
    if other is None:
      raise InputError(f'{record.where}: all records have one prompt, and a response to another is needed beside each')
    labels = {name: _extend(np.asarray(value)) for name, value in record.labels.items()}
    mismatched = np.zeros(len(record.responses) + 1, np.int32)
    mismatched[-1] = 1
    return dataclasses.replace(
      record,
      responses=(*record.responses, other.responses[0]),
      wins=np.pad(record.wins, (0, 1)),
      ratings=_extend(_ratings(record)),
      labels={**labels, 'mismatched': mismatched},
    )


def _ratings(record: Record) -> np.ndarray:
  if not np.isnan(record.ratings).all():
    return record.ratings
  compared = (record.wins + record.wins.T).sum(-1)
  share = np.divide(record.wins.sum(-1), compared, out=np.full(len(compared), 0.5), where=compared > 0)
  return np.select([share > 0.5, share < 0.5], [1.0, 0.0], np.nan).astype(np.float32)


def _extend(values: np.ndarray) -> np.ndarray:
  """One more response along every axis, of which nothing is known."""
  return np.pad(values, (0, 1), constant_values=np.nan if np.issubdtype(values.dtype, np.floating) else -1) if values.ndim else values
