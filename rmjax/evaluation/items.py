"""What benchmarks share: items with their scores, and what they report.

Dimensions: N responses of an item, M items.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float, Num, Shaped
import numpy as np

from rmjax import trees
from rmjax.data.formats import to_record
from rmjax.data.records import BadRecord, Record
from rmjax.data.sources import open_tables
from rmjax.errors import InputError
from rmjax.evaluation import bootstrap
from rmjax.evaluation.scored import Scored

Facts = Mapping[str, Any]  # what a benchmark must know of a record; always `id` and `subset`


@dataclasses.dataclass(frozen=True)
class Answer:
  """An item of a benchmark and what a model said of it.

  Attributes:
    facts: of the benchmark's `facts`.
    rewards: one a response; NaN where there is none.
    logits: of P(i preferred to j); NaN likewise.
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0.
    ratings: the data's score of each response, NaN where unknown.
    group: items of one group (a prompt) are not independent: they are drawn together.
    tokens: of the longest prompt and response.
    truncated: whether tokens were cut off.
  """

  facts: Facts
  rewards: Float[np.ndarray, 'N']
  logits: Float[np.ndarray, 'N N']
  wins: Float[np.ndarray, 'N N']
  ratings: Float[np.ndarray, 'N']
  group: str = ''
  tokens: int = -1
  truncated: bool = False


class Items(NamedTuple):
  """Results by item, for intervals and for paired tests of two models."""

  ids: Shaped[np.ndarray, 'M']
  groups: Shaped[np.ndarray, 'M']
  subsets: Shaped[np.ndarray, 'M']
  correct: Float[np.ndarray, 'M']  # in [0, 1]; NaN where the data has no right answer


class Report(NamedTuple):
  """What came of a benchmark.

  Attributes:
    figures: flat; `<name>_low<suffix>` and `<name>_high<suffix>` are the 95 % interval of `<name><suffix>`.
    items: results by item.
    columns: (heading, name of the figure) of the table.
    lines: (label, suffix of the figures) of the table.
    notes: what a reader must know, such as sections that the data lacks.
    results: accuracy by subset, as RewardBench writes it; empty where it has no such format.
    draw: writes the figure, if there is one.
  """

  figures: dict[str, float]
  items: Items
  columns: Sequence[tuple[str, str]]
  lines: Sequence[tuple[str, str]]
  notes: Sequence[str] = ()
  results: Mapping[str, float] = {}
  draw: Callable[[Path], Any] | None = None


class Benchmark(NamedTuple):
  """A benchmark: how a record is one of its items, and what scores of all items make.

  Attributes:
    facts: record -> what must be known of it. Raises BadRecord if it is no row of this benchmark.
    measure: answers -> report. Raises InputError if they cannot make one.
    skip: row -> whether it is left out (there is nothing to prefer in it), together with all rows of the same `id`, if it has one.
  """

  facts: Callable[[Record], Facts]
  measure: Callable[[Sequence[Answer]], Report]
  skip: Callable[[Mapping[str, Any]], bool] = lambda row: False


def read(benchmark: Benchmark, spec: str, *, columns: Mapping[str, str] | None = None, bad_rows: str = 'strict') -> tuple[list[Record], list[str], int]:
  """Reads the items of a benchmark; all the data that `spec` names is one benchmark.

  Args:
    benchmark: whose rows they are.
    spec: as for `rmjax.data.sources.open_source`.
    columns: our column -> the data's.
    bad_rows: 'strict' stops at the first row that cannot be used, 'lenient' leaves such rows out.

  Returns:
    Records, a line for each bad row, and how many rows were skipped.

  Raises:
    BadRecord: a bad row, if strict.
    InputError: no row can be used.
  """
  records, bad, skipped, num_rows = [], [], set(), 0
  for table in open_tables(spec):
    for number in range(len(table)):
      num_rows += 1
      try:
        where, row = table.row(number)
        if isinstance(row, Mapping):
          row = row if row.get('subset') else {**row, 'subset': table.name}
          if benchmark.skip(row):
            skipped |= {str(row['id'])} if row.get('id') is not None else set()
            continue
        record = to_record(row, where=where, columns=columns)
        benchmark.facts(record)
      except BadRecord as e:
        if bad_rows == 'strict':
          raise
        bad.append(str(e))
      else:
        records.append(record)
  kept = [record for record in records if str(record.columns.get('id')) not in skipped] if skipped else records
  if not kept:
    raise InputError(f"'{spec}' has no row that can be used: {bad[0] if bad else 'it is empty'}")
  return kept, bad, num_rows - len(bad) - len(kept)


def answers(benchmark: Benchmark, records: Sequence[Record], scored: Iterable[Scored], tokens: Sequence[int]) -> list[Answer]:
  """Puts items and scores together, which come in the same order; `tokens` may grow meanwhile."""
  found = []
  for record, item in zip(records, scored, strict=True):
    ratings = np.full(len(item.rewards), np.nan) if item.ratings is None else item.ratings
    known = dict(rewards=np.asarray(item.rewards, np.float64), logits=np.asarray(item.logits, np.float64), wins=item.wins, ratings=ratings)
    found.append(Answer(benchmark.facts(record), **known, group=str(item.group), tokens=tokens[item.index], truncated=item.truncated))
  return found


def longest_path(tree: trees.Tree | str) -> int:
  """Tokens of the longest prompt and response of a tree; -1 where it is refused."""
  if isinstance(tree, str):
    return -1
  ends: list[int] = []
  for segment in tree.segments:
    ends.append(len(segment.tokens) + (ends[segment.parent] if segment.parent >= 0 else 0))
  return max(ends)


def column(record: Record, name: str, benchmark: str) -> str:
  """A column that a benchmark's row must have, as text.

  Raises:
    BadRecord: it is not there.
  """
  value = record.columns.get(name)
  if value is None or value == '':
    raise BadRecord(f"{record.where}: column '{name}': missing; every row of {benchmark} has it (is this another benchmark's row?)")
  return str(value)


def pair(record: Record, benchmark: str) -> None:
  """Checks that a record is two responses, one of which is better.

  Raises:
    BadRecord: it is not.
  """
  if record.wins.shape != (2, 2) or not record.wins.any():
    raise BadRecord(f'{record.where}: {len(record.responses)} responses, and an item of {benchmark} is one chosen against one rejected')


def pairs_right(answer: Answer) -> Float[np.ndarray, 'P']:
  """Of each compared pair with a winner, whether the model prefers it. A tie is no preference, and a NaN is none: both are 0."""
  winner, loser = np.nonzero(answer.wins > 0.5)
  return (answer.logits[winner, loser] > 0).astype(np.float64)


def pair_ties(found: Sequence[Answer]) -> int:
  """Compared pairs that the model scores alike."""
  return int(sum(np.sum(answer.logits[answer.wins > 0.5] == 0) for answer in found))


def make_items(found: Sequence[Answer], correct: Sequence[float] | Float[np.ndarray, 'M']) -> Items:
  """Results by item."""
  text = lambda values: np.array([str(value) for value in values], str)
  return Items(
    text(answer.facts['id'] for answer in found),
    text(answer.group for answer in found),
    text(answer.facts['subset'] for answer in found),
    np.asarray(correct, np.float64),
  )


def with_interval(
  name: str, suffix: str, statistic: Callable[..., float], *values: Num[np.ndarray, 'M ...'], groups: Shaped[np.ndarray, 'M']
) -> dict[str, float]:
  """A figure and its bootstrap interval; what is NaN is left out."""
  low, high = bootstrap.interval(statistic, *values, groups=groups) if len(groups) else (np.nan, np.nan)
  figures = {f'{name}{suffix}': float(statistic(*values)) if len(groups) else np.nan, f'{name}_low{suffix}': low, f'{name}_high{suffix}': high}
  return {key: value for key, value in figures.items() if not np.isnan(value)}


def counts(found: Sequence[Answer]) -> dict[str, float]:
  """Numbers that every benchmark reports: items, those cut to the model's length, and those with a score that is not there."""
  return {
    'num_items': len(found),
    'num_truncated': sum(answer.truncated for answer in found),
    'num_unscored': sum(bool(np.isnan(answer.rewards).any()) for answer in found),
  }


def gap_notes(name: str, what: str, missing: Sequence[str]) -> list[str]:
  """A line that says that the score is not that of the whole benchmark, if it is not."""
  return [f'{name}: no items of {", ".join(missing)}: the score is the mean over the other {what}, and compares with no published one'] if missing else []
