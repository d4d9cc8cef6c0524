"""A TFDS builder of preference records, prepared and read without tensorflow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rmjax.data.pipeline import Source
from rmjax.data.records import Record


class Preferences(tfds.core.GeneratorBasedBuilder):
  """Records of any sources, in ArrayRecord files."""

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, *, sources: Mapping[str, Source], **kwargs: Any):
    """sources: split -> records."""
    self._sources = sources
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    number = lambda *shape: tfds.features.Tensor(shape=shape, dtype=np.float32, encoding='bytes' if len(shape) > 1 else 'none')
    features = dict(
      prompt=tfds.features.Text(),
      messages=tfds.features.Sequence({'role': tfds.features.Text(), 'content': tfds.features.Text()}),  # or these, if the prompt is messages
      responses=tfds.features.Sequence(tfds.features.Text()),
      wins=number(None, None),
      ratings=number(None),
      weight=number(),
      margin=number(),
      subset=tfds.features.Text(),
    )
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features), description=__doc__)

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    return {split: self._generate_examples(source) for split, source in self._sources.items()}

  def _generate_examples(self, source: Source):
    for index in range(len(source)):
      record: Record = source[index]
      is_text = isinstance(record.prompt, str)
      yield index, dict(
        prompt=record.prompt if is_text else '', messages=[] if is_text else list(record.prompt), responses=list(record.responses),
        wins=record.wins, ratings=record.ratings, weight=np.float32(record.weight), margin=np.float32(record.margin), subset=record.subset,
      )  # fmt: skip


def prepare(sources: Mapping[str, Source], data_dir: Path | str) -> Path:
  """Writes sources as a TFDS data set.

  Args:
    sources: split -> records, such as `open_source(...)`'s or a world.
    data_dir: where TFDS keeps data sets.

  Returns:
    The prepared directory; `open_source(f'tfds:{directory}:{split}')` reads it.
  """
  builder = Preferences(sources=sources, data_dir=str(data_dir), file_format='array_record')
  builder.download_and_prepare()
  return Path(builder.data_dir)
