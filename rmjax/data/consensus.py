"""Principles that annotators of a response agree on: one that a single person found is noise, or taste.

Reference: RLBFF, Binary Flexible Feedback (2025), the consensus of annotators.

Dimensions: P principles that were named of one response, D embedding.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import SupportsIndex

from jaxtyping import Bool, Num, Shaped
import numpy as np

from rmjax.data.curation import unit
from rmjax.data.ordering import permuted
from rmjax.data.pipeline import Source
from rmjax.data.records import Record
from rmjax.errors import InputError


def consensus_filter(
  embeddings: Num[np.ndarray, 'P D'], annotators: Shaped[np.ndarray, 'P'], labels: Num[np.ndarray, 'P'], threshold: float = 0.8
) -> Bool[np.ndarray, 'P']:
  """Which principles are kept: those that every other annotator of the response confirms by one of theirs, near in meaning and with the same label.

  Args:
    embeddings: of the principles' texts; any length.
    annotators: who named each of them.
    labels: whether the response satisfies it, 1 or 0.
    threshold: of the cosine, which has to be above it.

  Returns:
    Whether each is kept; none where there is one annotator, whom nobody can confirm.

  Reference: RLBFF (2025), consensus at 0.8; that the labels have to agree is reconstructed.
  """
  directions = unit(embeddings)
  confirms = (directions @ directions.T > threshold) & (labels[:, None] == labels[None, :])
  who = np.unique(annotators)
  if len(who) < 2:
    return np.zeros(len(labels), bool)
  by = np.stack([confirms[:, annotators == one].any(1) | (annotators == one) for one in who])  # [annotators, P]
  return by.all(0)


class Agreed:
  """A source of what is left of another one: of each record the (response, principle) pairs that its annotators agree on.

  Records with nothing left are left out; all counts are known.

  Attributes:
    given: pairs in the source.
    kept: pairs in this one.
  """

  def __init__(self, source: Source, embed: Callable[[Sequence[str]], Num[np.ndarray, 'P D']], threshold: float = 0.8):
    """Reads the source once.

    Args:
      source: records of one response each, in which a response stands once for each principle, rated 0 or 1; `columns['principles']` are the
        texts of these, and the label `annotator` [N] says who named them.
      embed: texts to vectors, such as a sentence encoder.
      threshold: see `consensus_filter`.

    Raises:
      InputError: nothing is left.
    """
    self._source = source
    self.bad = getattr(source, 'bad', ())
    self._kept: list[tuple[int, np.ndarray]] = []
    self.given = self.kept = 0
    for number in range(len(source)):
      record = source[number]
      found = consensus_filter(np.asarray(embed(record.columns['principles'])), record.labels['annotator'], record.ratings, threshold)
      self.given, self.kept = self.given + len(found), self.kept + int(found.sum())
      if found.any():
        self._kept.append((number, np.flatnonzero(found)))
    if not self._kept:
      raise InputError(f'consensus at {threshold} kept none of {self.given} principles: lower it, or ask more than one annotator')

  def __len__(self) -> int:
    return len(self._kept)

  def __getitem__(self, index: SupportsIndex) -> Record:
    number, places = self._kept[index]
    record = permuted(self._source[number], places)  # which takes some as well as all
    principles = tuple(record.columns['principles'][n] for n in places)
    return dataclasses.replace(record, columns={**record.columns, 'principles': principles})
