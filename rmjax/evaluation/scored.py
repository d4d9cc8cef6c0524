"""What a reward model said of a record, beside what is known of it; and the comparisons of many records as flat arrays.

Dimensions: N responses of a record, P compared pairs.
"""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

from jaxtyping import Float, Int, Shaped
import numpy as np


@dataclasses.dataclass(frozen=True)
class Scored:
  """A record after scoring.

  Attributes:
    index: the record's number in its source.
    rewards: one a response; NaN where the record was refused.
    logits: logits[i, j] is the logit of P(i preferred to j); NaN where refused.
    lengths: tokens of each response as scored; -1 where refused.
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0.
    group: fingerprint of the prompt; records of one prompt are not independent, so standard errors are clustered by it.
    subset: name of the part of the data set it belongs to.
    where: 'file:line'.
    ratings: the data's absolute score of each response, NaN where unknown.
    gold: the true quality of each response, where the data knows it.
    probability: probability[i, j] is the annotator's of preferring i to j, where a world knows it.
    labels: whatever else the record says, by name; `gold` and `probability` come from there.
    scores: what the head said, a pytree of arrays of [N_max, ...] or of the prompt's shape; None where refused.
    truncated: whether tokens were cut off to make it fit.
    refused: why it was not scored, or None.
  """

  index: int
  rewards: Float[np.ndarray, 'N']
  logits: Float[np.ndarray, 'N N']
  lengths: Int[np.ndarray, 'N']
  wins: Float[np.ndarray, 'N N']
  group: int = 0
  subset: str = ''
  where: str = ''
  ratings: Float[np.ndarray, 'N'] | None = None
  gold: Float[np.ndarray, 'N'] | None = None
  probability: Float[np.ndarray, 'N N'] | None = None
  labels: Mapping[str, np.ndarray | np.generic] = dataclasses.field(default_factory=dict)
  scores: Any = None
  truncated: bool = False
  refused: str | None = None


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Every compared pair (i, j), i < j, of the records that were scored; each stands once, so statistics must not depend on its orientation.

  Attributes:
    logits: of P(i preferred to j).
    wins: how much i was preferred to j; 0.5 is a tie.
    lengths: tokens of i and of j.
    gold: gold quality of i less that of j, NaN where unknown.
    probability: the annotator's of preferring i to j, NaN where unknown.
    groups: fingerprint of the prompt.
    subsets: name of the record's subset.
  """

  logits: Float[np.ndarray, 'P']
  wins: Float[np.ndarray, 'P']
  lengths: Int[np.ndarray, 'P 2']
  gold: Float[np.ndarray, 'P']
  probability: Float[np.ndarray, 'P']
  groups: Int[np.ndarray, 'P']
  subsets: Shaped[np.ndarray, 'P']


def compared_pairs(scored: Iterable[Scored]) -> Pairs:
  """The comparisons of all records; those of refused records are left out."""
  logits, wins, lengths, gold, probability, groups, subsets = [], [], [], [], [], [], []
  for record in scored:
    if record.refused:
      continue
    i, j = np.nonzero(np.triu(record.wins + record.wins.T, 1))
    logits.append(record.logits[i, j])
    wins.append(record.wins[i, j])
    lengths.append(np.stack([record.lengths[i], record.lengths[j]], -1))
    gold.append(np.full(len(i), np.nan) if record.gold is None else record.gold[i] - record.gold[j])
    probability.append(np.full(len(i), np.nan) if record.probability is None else record.probability[i, j])
    groups += [record.group] * len(i)
    subsets += [record.subset] * len(i)
  join = lambda parts, dtype, shape=(): np.concatenate([np.empty((0, *shape), dtype), *parts]).astype(dtype)
  return Pairs(
    logits=join(logits, np.float64),
    wins=join(wins, np.float64),
    lengths=join(lengths, np.int64, (2,)),
    gold=join(gold, np.float64),
    probability=join(probability, np.float64),
    groups=np.array(groups, np.int64),
    subsets=np.array(subsets, str),
  )
