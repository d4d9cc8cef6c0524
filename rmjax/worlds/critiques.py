"""The world of traits with critiques: what makes a response good is hard to see in it, and its critique says it step by step.

Gold depends on how pairs of traits go together (`interactions` of `traits`), each told noisily by words that stand anywhere in the response. The
critique of a response takes these pairs one after the other: it names both traits by their true levels, and says whether the pair goes together.

Dimensions: N responses.
"""

import dataclasses
from random import Random

from jaxtyping import Float
import numpy as np

from rmjax.data.records import Record
from rmjax.errors import InputError
from rmjax.worlds import traits
from rmjax.worlds.traits import PLACES_OF_A_SCALE, SCALES, Traits

TOGETHER, APART = 'plus', 'minus'


class Critiques:
  """Records of `Traits` with critiques; see there for settings and labels. `rmjax.heads.critique` reads them."""

  tokenizer_path = traits.TOKENIZER
  bad = ()  # no row of a world is bad

  def __init__(self, *, split: str, seed: int = 0, size: int = 10_000, critiqued: float = 1.0, tie: float = 0.0, **settings):
    """A view of the world.

    Args:
      split: 'train' or 'eval'.
      seed: another seed, other records.
      size: how many records there are; the first ones are the same for any size.
      critiqued: share of the responses that have a critique, drawn alike; with 0 no record has any.
      tie: comparisons of responses whose gold differs by less are ties, whatever the annotator would say; 0 for none.
      **settings: fields of `traits.Settings`, with interactions.

    Raises:
      InputError: a setting or split that there is not.
    """
    self._traits = Traits(split=split, seed=seed, size=size, **settings)
    self._critiqued, self._tie, self._name = critiqued, tie, f'{seed} {split}'
    if not 0 <= critiqued <= 1:
      raise InputError(f'world.critiqued = {critiqued}: it must be from 0 to 1')
    if not tie >= 0:
      raise InputError(f'world.tie = {tie}: it must not be below 0')
    if not self._traits.settings.interactions:
      raise InputError('world.interactions is empty: there would be nothing to say in a critique')

  def __len__(self) -> int:
    return len(self._traits)

  def __getitem__(self, index: int) -> Record:
    """Record number `index`."""
    record, s = self._traits[index], self._traits.settings
    gold = record.labels['gold']
    compared = record.wins + record.wins.T > 0
    tied = compared & (np.abs(gold[:, None] - gold[None, :]) < self._tie)
    record = dataclasses.replace(record, wins=np.where(tied, np.float32(0.5), record.wins))
    if not self._critiqued:
      return record
    rng = Random(f'{self._name} {index} critiques')
    levels = np.stack([record.labels[f'trait_{j}'] for j in range(s.traits)], -1)
    texts = [critique(one, s) for one in levels]
    return dataclasses.replace(record, critiques=tuple(text if rng.random() < self._critiqued else '' for text in texts))


def critique(levels: Float[np.ndarray, 'J'], s: traits.Settings) -> str:
  """What is to be said of a response with these levels: for each interaction the words for both, and whether they go together."""
  said = []
  for j, k, _ in s.interactions:
    words = [SCALES[i][round((PLACES_OF_A_SCALE - 1) * float(levels[i]))] for i in (j, k)]
    said += [*words, TOGETHER if (2 * levels[j] - 1) * (2 * levels[k] - 1) > 0 else APART]
  return ' '.join([*said, '.'])
