"""Log-probabilities of a reference model, computed once and kept beside the records.

Dimensions: N responses of the record.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, SupportsIndex

from jax.sharding import Mesh
import numpy as np

from rmjax.backbones.decoder import Decoder
from rmjax.data.pipeline import Encode, Source
from rmjax.data.records import Record
from rmjax.errors import InputError
from rmjax.evaluation.scoring import score_records
from rmjax.heads.implicit import ImplicitRewardHead
from rmjax.models import RewardModel


class Labelled:
  """A source with a further label: `values[i]` of record i, by `name`."""

  def __init__(self, source: Source, name: str, values: Sequence[np.ndarray]):
    """Wraps a source; there is one value a record."""
    self._source, self._name, self._values = source, name, values
    self.bad, self.parts = getattr(source, 'bad', ()), getattr(source, 'parts', ())

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: SupportsIndex) -> Record:
    record = self._source[index]
    return dataclasses.replace(record, labels={**record.labels, self._name: self._values[int(index)]})


def add_reference(source: Source, decoder: Decoder, params: Any, encode: Encode, *, mesh: Mesh, **shape: int) -> Source:
  """Adds the label `ref_log_probs` float32[N]: the reference's log-probability of each response, summed over its tokens; NaN where refused.

  The reference reads every record once, and then never again. Records are cut by `encode`: training and evaluation must use the same.

  Args:
    source: records.
    decoder: the reference.
    params: its parameters, on the mesh.
    encode: record -> tree or reason.
    mesh: where batches go.
    **shape: rows, length, slots and responses of a batch.

  Raises:
    InputError: a log-probability is not finite.
  """
  model = RewardModel(decoder, ImplicitRewardHead(reference='none'))
  values = []
  for item in score_records(model, {'backbone': params}, (source[i] for i in range(len(source))), encode, mesh=mesh, **shape):
    count = len(item.rewards)
    value = np.full(count, np.nan, np.float32) if item.refused else item.scores.log_probs[:count]
    if not item.refused and not np.isfinite(value).all():
      raise InputError(f"{item.where or f'record {item.index}'}: the reference's log-probabilities are {value}; check config.model.path")
    values.append(value)
  return Labelled(source, 'ref_log_probs', values)
