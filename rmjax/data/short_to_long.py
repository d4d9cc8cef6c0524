"""Long contexts with sure labels: judged on the few chunks that matter, and then padded; and labels that several judges agree on.

Dimensions: M judges.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from jaxtyping import Bool, Float
import numpy as np

from rmjax.errors import InputError


def count_words(text: str) -> int:
  """Words of a text, which for a tokenizer of one token a word is its size."""
  return len(text.split())


def short_to_long(
  critical: Sequence[str],
  distractors: Sequence[str],
  length: int,
  rng: Random,
  *,
  size: Callable[[str], int] = count_words,
  forbidden: Sequence[str] = (),
) -> list[str]:
  """Pads the chunks that a label was given by with others, up to a length; no chunk is ever cut.

  Args:
    critical: the chunks that decide, in their order, which is kept.
    distractors: chunks that say nothing of the question; drawn without replacement, those passed over that would be too long.
    length: most that all chunks together may have.
    rng: draws which distractors, and at which places among them the critical chunks stand: any place is as likely as another.
    size: of a chunk, in the unit of `length`: a tokenizer's count, or words.
    forbidden: texts, such as the answer, that no distractor may contain; those that do are left out.

  Returns:
    All critical chunks, and as many distractors as there is room for.

  Raises:
    InputError: there is no critical chunk, or they alone are longer than `length`.

  Reference: LongRM (2025), section 4, short-to-long synthesis.
  """
  room = length - sum(map(size, critical))
  if not critical or room < 0:
    raise InputError(f'{len(critical)} critical chunks of {length - room} and a length of {length}: there must be some, and they must fit whole')
  chosen = []
  allowed = [chunk for chunk in distractors if not any(text in chunk for text in forbidden)]
  for chunk in rng.sample(allowed, len(allowed)):
    if size(chunk) <= room:
      chosen.append(chunk)
      room -= size(chunk)
  places = set(rng.sample(range(len(chosen) + len(critical)), len(critical)))
  sources = iter(critical), iter(chosen)
  return [next(sources[place not in places]) for place in range(len(chosen) + len(critical))]


class Vote(NamedTuple):
  """What judges agree on.

  Attributes:
    preferred: 0 or 1, the response of the higher consensus score.
    consensus: score of each response that most judges gave.
    agrees: bool[M, 2], whose judgments gave it: an explanation among these may win, one among the others loses.
  """

  preferred: int
  consensus: tuple[float, float]
  agrees: Bool[np.ndarray, 'M 2']


def consistency_vote(scores: Float[np.ndarray, 'M 2']) -> Vote | None:
  """A preference by scores that judges gave to two responses, each by itself.

  Args:
    scores: of each judge; NaN where a judgment could not be read, which agrees with none.

  Returns:
    The vote; None where there is no consensus and the pair is to be dropped: for one of the responses no score has more than half of the
      judges, or both responses have the same.

  Reference: LongRM (2025), consistency majority voting [reconstructed: what counts as a cluster is the same score, and a consensus more than half].
  """
  found = []
  for column in scores.T:
    values, counts = np.unique(column[~np.isnan(column)], return_counts=True)
    if not len(counts) or 2 * counts.max() <= len(column):
      return None
    found.append(float(values[counts.argmax()]))
  if found[0] == found[1]:
    return None
  return Vote(int(found[1] > found[0]), (found[0], found[1]), scores == np.array(found))
