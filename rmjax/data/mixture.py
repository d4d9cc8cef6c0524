"""Several sources as one, each read as often as its weight says."""

from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np

from rmjax.data.pipeline import Source
from rmjax.data.records import Record
from rmjax.errors import InputError


class Mixture:
  """Records of several sources, one source after the other; `rmjax.data.pipeline.train_batches` draws from them by weight.

  Weights are per record read: of weights 3 and 1, three of four records are of the first source, however large both are. A source that runs out
  begins anew, in another order, while the others go on.

  Attributes:
    parts: (number of records, weight) of each.
    bad: the lines of all of them.

  Reference: data mixtures as in BaseReward (2025), section on data selection.
  """

  def __init__(self, sources: Sequence[Source], weights: Sequence[float]):
    """Mixes sources.

    Raises:
      InputError: there is not one positive weight for each.
    """
    if len(sources) != len(weights) or not all(0 < weight < np.inf for weight in weights):
      raise InputError(f'data.mixture = {tuple(weights)}: give one positive weight for each of the {len(sources)} parts of data.train')
    self._sources, self._starts = sources, np.cumsum([0, *map(len, sources)])
    self.parts = [(len(source), float(weight)) for source, weight in zip(sources, weights, strict=True)]
    self.bad = [line for source in sources for line in getattr(source, 'bad', ())]

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, index: SupportsIndex) -> Record:
    part = int(np.searchsorted(self._starts, int(index), side='right')) - 1
    return self._sources[part][int(index) - int(self._starts[part])]
