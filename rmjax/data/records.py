"""What is known of one prompt: a text record, before it is tokenised.

Dimensions: N responses of the record.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from rmjax.errors import InputError

Messages = Sequence[Mapping[str, str]]  # {'role': 'user' | 'assistant' | 'system', 'content': text}


class BadRecord(InputError):
  """A row that cannot be used. The message is one line: file, line, column, reason."""


@dataclasses.dataclass(frozen=True)
class Record:
  """A prompt, its responses and what people, judges or a world's gold say of them.

  Attributes:
    prompt: text, or the messages so far. Empty for text without a prompt.
    responses: N texts; where `prompt` is messages, each is the assistant's next turn.
    wins: float32[N, N]; wins[i, j] is how much i was preferred to j, wins[i, j] + wins[j, i] = 1 where they were compared, else 0.
    ratings: float32[N]; absolute scores or 0/1 labels, NaN where unknown.
    weight: how much the record counts.
    margin: reward gap that the winner owes (TRL's `margin`).
    subset: name of the part of the data set it belongs to, for reports.
    where: 'file:line', for messages.
    labels: further numbers, each of shape [], [N] or [N, N]; a data set has the same names throughout (a world's `gold` [N], ...).
    columns: the row that it was read from, for benchmarks (id, language) and for functions of text.
    critiques: N texts, what is to be said of each response, '' where nothing is known; () in data without any.
  """

  prompt: str | Messages
  responses: tuple[str, ...]
  wins: np.ndarray
  ratings: np.ndarray
  weight: float = 1.0
  margin: float = 0.0
  subset: str = ''
  where: str = ''
  labels: Mapping[str, np.ndarray | np.generic] = dataclasses.field(default_factory=dict)
  columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  critiques: tuple[str, ...] = ()


def pairwise_wins(num_responses: int, pairs: Sequence[tuple[int, int, float]]) -> np.ndarray:
  """float32[N, N] wins from (i, j, probability that i is preferred to j)."""
  wins = np.zeros((num_responses, num_responses), np.float32)
  for i, j, probability in pairs:
    wins[i, j], wins[j, i] = probability, 1.0 - probability
  return wins


def wins_from_ratings(ratings: Sequence[float] | np.ndarray) -> np.ndarray:
  """float32[N, N] wins of all pairs whose ratings are known: the higher one wins, equal ones tie (0.5 each)."""
  ratings = np.asarray(ratings, np.float32)
  known = ~np.isnan(ratings)
  compared = known[:, None] & known[None, :] & ~np.eye(len(ratings), dtype=bool)
  with np.errstate(invalid='ignore'):
    wins = 0.5 + 0.5 * np.sign(ratings[:, None] - ratings[None, :])
  return np.where(compared, wins, 0.0).astype(np.float32)
