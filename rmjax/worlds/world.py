"""What all worlds of records are: settings, and records by number."""

from abc import ABC, abstractmethod
import dataclasses
from pathlib import Path
from random import Random
from typing import Any

from jaxtyping import Num
import numpy as np

from rmjax.data.records import Record
from rmjax.errors import InputError


class World(ABC):
  """Records by number, each a pure function of (settings, seed, split, number); a `rmjax.data.pipeline.Source`.

  Attributes:
    Settings: dataclass of what can be set, which refuses what cannot be.
    tokenizer_path: of the world's texts.
    settings: those of this view.
    bad: no row of a world is bad.
  """

  Settings: type
  tokenizer_path: Path
  bad = ()

  def __init__(self, *, split: str, seed: int = 0, size: int = 10_000, **settings):
    """A view of the world.

    Args:
      split: 'train' or 'eval'.
      seed: another seed, other records.
      size: how many records there are; the first ones are the same for any size.
      **settings: fields of `Settings`.

    Raises:
      InputError: a setting or split that there is not.
    """
    if split not in ('train', 'eval'):
      raise InputError(f"split '{split}': there are 'train' and 'eval'")
    names = [field.name for field in dataclasses.fields(self.Settings)]
    if unknown := sorted(settings.keys() - set(names)):
      raise InputError(f'world.{unknown[0]}: there is no such setting; there are {", ".join(names)}')
    self.settings = self.Settings(**{name: _tuples(value) for name, value in settings.items()})
    self._split, self._seed, self._size = split, seed, size

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Record:
    if not 0 <= index < self._size:
      raise IndexError(f'record {index} of {self._size}')
    return self._draw(Random(f'{self._seed} {self._split} {index}'), f'{self._split}:{index}')

  @abstractmethod
  def _draw(self, rng: Random, where: str) -> Record:
    """The record that `rng` draws."""


def sigmoid(x: Num[np.ndarray, '*D'] | float) -> Num[np.ndarray, '*D'] | float:
  """1 / (1 + exp(-x)), which cannot overflow this way."""
  return 0.5 + 0.5 * np.tanh(x / 2)


def _tuples(value: Any) -> Any:
  """Lists as tuples, which settings are: JSON has no others."""
  return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value
