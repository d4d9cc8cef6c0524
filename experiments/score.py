"""Scores the responses of a file with a trained reward model.

  python -m experiments.score --checkpoint=DIR --input=FILE.jsonl[.gz] --output=FILE.jsonl[.gz]

Every row comes out, in order, as it was and with `reward`: a number for a row of one response (prompt+response, prompt+completion), a list for a row of
several, in the order of its responses; chosen before rejected. Rows that were cut to the model's length have `truncated`; one that
was refused has a reward of null, and `error` says why. Memory does not grow with the file.

A reward that is told what to judge by (`rmjax.heads.yes_no`) is told by --suffix, the text after each response.
"""

from collections import deque
from collections.abc import Iterator, Mapping
import gzip
import json
import math
from pathlib import Path
from typing import Any

from absl import flags
import numpy as np

from experiments import cli, inference
from rmjax.data.records import BadRecord, Record
from rmjax.data.sources import stream
from rmjax.errors import InputError
from rmjax.evaluation.scored import Scored

_NO_RECORD = Record('', (), np.zeros((0, 0), np.float32), np.zeros(0, np.float32))


def score_file(scorer: inference.Scorer, source: Path, target: Path, *, columns: Mapping[str, str] | None = None, bad_rows: str = 'strict') -> dict[str, int]:
  """Scores one file.

  Args:
    scorer: the model.
    source: what to read.
    target: what to write; it appears when it is whole, and is `target`.partial until then.
    columns: our column -> the file's.
    bad_rows: 'strict' stops at a row that cannot be used, 'lenient' writes it with `reward` null and `error`.

  Returns:
    How many rows were `scored`, `truncated`, `refused` (too long, by the model's own setting) and `bad`.

  Raises:
    InputError: a bad row, if strict; the rows before it are kept in `target`.partial. Or a file that cannot be read.
  """
  waiting: deque[list[Any]] = deque()  # [columns, what is wrong with them] of the rows on their way through the model
  counts = dict(scored=0, truncated=0, refused=0, bad=0)

  def records() -> Iterator[Record]:
    for row, record in stream(source, columns=columns):
      bad = str(record) if isinstance(record, BadRecord) else _clash(row, record.where)
      waiting.append([row, bad])
      if bad and bad_rows == 'strict':
        return
      yield _NO_RECORD if bad else record

  def encode(record: Record):
    if not waiting[-1][1]:
      try:
        return scorer.encode(record)
      except BadRecord as e:
        waiting[-1][1] = str(e)
    return waiting[-1][1]

  partial = target.with_name(target.name + '.partial')
  target.parent.mkdir(parents=True, exist_ok=True)
  written = 0
  try:
    with gzip.open(partial, 'wt', encoding='utf-8') if target.suffix == '.gz' else partial.open('w', encoding='utf-8') as file:
      for scored in inference.progress(scorer.score(records(), encode), 'score'):
        row, bad = waiting.popleft()
        if bad and bad_rows == 'strict':
          raise InputError(f'{bad}; --bad_rows=lenient goes on')
        file.write(_line({**(row or {}), **_result(scored)}))
        written += 1
        counts['bad' if bad else 'refused' if scored.refused else 'scored'] += 1
        counts['truncated'] += scored.truncated
      if waiting:
        raise InputError(f'{waiting[0][1]}; --bad_rows=lenient goes on')
  except InputError as e:
    if not written:
      partial.unlink()
      raise
    raise InputError(f'{e}; the {written} rows before it are scored in {partial}') from e
  partial.replace(target)
  return counts


def _clash(row: Mapping[str, Any], where: str) -> str | None:
  taken = next((name for name in ('reward', 'truncated', 'error') if name in row), None)
  return f"{where}: column '{taken}': already there, and would be overwritten: rename it" if taken else None


def _result(scored: Scored) -> dict[str, Any]:
  if scored.refused:
    return {'reward': None, 'error': scored.refused}
  rewards = [float(str(reward)) for reward in scored.rewards]  # as few digits as tell a float32
  if not all(map(math.isfinite, rewards)):
    raise InputError(f'{scored.where}: the reward is {rewards}: the checkpoint is broken')
  return {'reward': rewards[0] if len(rewards) == 1 else rewards, **({'truncated': True} if scored.truncated else {})}


def _line(row: Mapping[str, Any]) -> str:
  text = json.dumps(row, ensure_ascii=False, default=str)  # Parquet has dates
  try:
    text.encode()
  except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and UTF-8 cannot
    text = json.dumps(row, default=str)
  return text + '\n'


def define_flags() -> None:
  """Defines the flags."""
  inference.define_flags()
  flags.DEFINE_string('input', None, 'File to score: .jsonl, .jsonl.gz or .parquet, of any format that training takes; labels are not needed.', required=True)
  flags.DEFINE_string('output', None, 'File to write: .jsonl or .jsonl.gz.', required=True)


def main() -> None:
  """Scores what the flags say, and prints the counts."""
  source, target = Path(flags.FLAGS.input), Path(flags.FLAGS.output)
  if not target.name.endswith(('.jsonl', '.jsonl.gz')):
    raise InputError(f'--output={target}: it is written as JSON Lines: end its name in .jsonl or .jsonl.gz')
  if not source.is_file():
    raise InputError(f'--input={source} does not exist')
  columns = inference.columns_from_flags()
  counts = score_file(inference.load_from_flags(bad_rows='strict'), source, target, columns=columns, bad_rows=flags.FLAGS.bad_rows)
  print(f'{target}: ' + ', '.join(f'{count} {name}' for name, count in counts.items() if count or name == 'scored'))


if __name__ == '__main__':
  define_flags()
  cli.run(main)
