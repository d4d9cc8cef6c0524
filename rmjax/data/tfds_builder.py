"""A TFDS builder of preference records, prepared and read without tensorflow."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rmjax.data.pipeline import Source
from rmjax.errors import InputError


class Preferences(tfds.core.GeneratorBasedBuilder):
  """Records of any sources, in ArrayRecord files, their order kept."""

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, *, sources: Mapping[str, Source], **kwargs: Any):
    """sources: split -> records."""
    self._sources = sources
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    labels = next(iter(self._sources.values()))[0].labels
    features = dict(
      prompt=tfds.features.Text(),
      prompt_messages=tfds.features.Sequence({'role': tfds.features.Text(), 'content': tfds.features.Text()}),  # instead, if it is messages
      responses=tfds.features.Sequence(tfds.features.Text()),
      wins=_numbers(2),
      ratings=_numbers(1),
      weight=_numbers(0, np.float64),
      margin=_numbers(0, np.float64),
      subset=tfds.features.Text(),
      labels={name: _numbers(np.ndim(value), np.asarray(value).dtype) for name, value in labels.items()},
    )
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), description=__doc__, disable_shuffling=True)

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    return {split: self._generate_examples(source) for split, source in self._sources.items()}

  def _generate_examples(self, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    names = set(self.info.features['labels'])
    for index in range(len(source)):
      record = source[index]
      if set(record.labels) != names:
        raise InputError(f'{record.where}: labels {sorted(set(record.labels) ^ names)} are not in all records: a data set has the same ones throughout')
      is_text = isinstance(record.prompt, str)
      yield (
        index,
        dict(
          prompt=record.prompt if is_text else '',
          prompt_messages=[] if is_text else list(record.prompt),
          responses=list(record.responses),
          wins=record.wins,
          ratings=record.ratings,
          weight=record.weight,
          margin=record.margin,
          subset=record.subset,
          labels=dict(record.labels),
        ),
      )


def prepare(sources: Mapping[str, Source], data_dir: Path | str, *, name: str = 'preferences') -> Path:
  """Writes sources as a TFDS data set.

  Args:
    sources: split -> records, such as `open_source(...)`'s or a world.
    data_dir: where TFDS keeps data sets.
    name: of the data set.

  Returns:
    The prepared directory; `open_source(f'tfds:{directory}:{split}')` gives the records back, `where` excepted.

  Raises:
    InputError: there is a data set of that name already, a split has no records, or records have different labels.
  """
  for split, source in sources.items():
    if not len(source):
      raise InputError(f"split '{split}' has no records: there is nothing to prepare")
  directory = Path(data_dir) / name / str(Preferences.VERSION)
  if directory.exists():  # TFDS would keep it and write nothing
    raise InputError(f'{directory} exists: remove it, or choose another name or data_dir')
  named = type(name, (Preferences,), {'name': name, '__module__': __name__}, skip_registration=True)
  named(sources=sources, data_dir=str(data_dir), file_format='array_record').download_and_prepare()
  return directory


def _numbers(rank: int, dtype: Any = np.float32) -> tfds.features.Tensor:
  # Only as bytes does TFDS keep float64, or several dimensions of unknown size.
  return tfds.features.Tensor(shape=(None,) * rank, dtype=dtype, encoding='bytes')
