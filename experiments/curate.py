"""Curates a file of pairs: keeps those whose label two trained models bear out, and can turn around those that both reject.

  python -m experiments.curate --data=POOL.jsonl --best_checkpoint=DIR --gold_checkpoint=DIR --output=FILE.jsonl \
    [--evaluation=FILE,FILE] [--votes=COLUMN] [--recycle=0.9]

The best model is the best there is, the gold model was trained on labels of people alone; neither may have been trained on the pool. A pair is kept where
the gold model and either the best model or the vote of annotators agree with its label. --votes names a column with a list for each annotator of
its verdicts: 1 for the chosen one, 0 for the rejected. --recycle=P turns a pair around where both models give its label less than 1 - P.
Pairs that stand in the pool twice, or whose prompts are in --evaluation, are left out first.

What comes out is training data: `--config.data.train=FILE.jsonl`. Rows are as they were, with a column `provenance`: the row of the pool, whether the label
is the `given` one or `recycled`, and the given one's two probabilities and vote. FILE.report.json has counts, and how far from 1/2 the labels'
probabilities lie before and after.

Reference: Skywork-Reward-V2 (2025), stage 2; see `rmjax.data.curation`.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from absl import flags
import numpy as np

from experiments import cli, inference
from rmjax.data import curation
from rmjax.data.formats import to_record
from rmjax.data.records import BadRecord, Record
from rmjax.data.sources import open_source, rows
from rmjax.errors import InputError
from rmjax.training.metrics import write_json

REASONS = ('duplicate', 'contaminated', 'tie', 'too_long', 'disagreement')


def curate(
  pool: Path,
  best: inference.Scorer,
  gold: inference.Scorer,
  target: Path,
  *,
  prompts: Sequence[Any] = (),
  votes: str = '',
  recycle: float = 0.0,
) -> dict[str, Any]:
  """Curates one file, which is held in memory.

  Args:
    pool: pairs, in any format that training reads.
    best: the best model.
    gold: the one trained on labels of people.
    target: what to write; it appears when it is whole.
    prompts: of the data that will be evaluated on.
    votes: column of the annotators' verdicts, [M][S]; '' for none.
    recycle: confidence above which a label that both models reject is turned around; 0 recycles nothing.

  Returns:
    What it wrote to `target`.report.json: how many were `read`, `kept`, `recycled`, and left out for each reason; `rmjax.data.curation.margins`.

  Raises:
    InputError: a row that is no pair or has no votes, or nothing is left.
  """
  table, records = _read(pool)
  reasons = np.full(len(records), '', object)
  labels = np.array([curation.label(record) for record in records])
  reasons[labels == 0.5] = 'tie'
  reasons[curation.contaminated(records, prompts)] = 'contaminated'
  reasons[curation.duplicates(records)] = 'duplicate'
  p_best, p_gold = (_probabilities(scorer, records, labels) for scorer in (best, gold))
  reasons[(reasons == '') & (np.isnan(p_best) | np.isnan(p_gold))] = 'too_long'
  asked = np.array([_vote(row, votes, record.where) for row, record in zip(table, records, strict=True)]) if votes else np.full(len(records), np.nan)

  open_ = reasons == ''
  kept = open_ & curation.consistency_filter(p_best, p_gold, asked)
  turned = open_ & ~kept & curation.both_reject(p_best, p_gold, recycle) if recycle else np.zeros(len(records), bool)
  reasons[open_ & ~kept & ~turned] = 'disagreement'
  if not (kept | turned).any():
    raise InputError(f'{pool}: nothing of {len(records)} rows is left: {", ".join(f"{np.sum(reasons == r)} {r}" for r in REASONS if np.any(reasons == r))}')

  target.parent.mkdir(parents=True, exist_ok=True)
  partial = target.with_name(target.name + '.partial')
  with partial.open('w', encoding='utf-8') as file:
    for i in np.flatnonzero(kept | turned):
      provenance = dict(pool=records[i].where, origin='recycled' if turned[i] else 'given')
      known = dict(p_best=p_best[i], p_gold=p_gold[i], vote=asked[i])  # all of the label as it was
      provenance |= {name: round(float(value), 6) for name, value in known.items() if not np.isnan(value)}
      file.write(json.dumps({**(_turned(table[i], records[i]) if turned[i] else table[i]), 'provenance': provenance}) + '\n')
  partial.replace(target)
  report = dict(read=len(records), kept=int(kept.sum()), recycled=int(turned.sum()), **{reason: int(np.sum(reasons == reason)) for reason in REASONS})
  report |= curation.margins(p_best[open_], kept[open_])
  write_json(target.with_name(target.name + '.report.json'), report)
  return report


def _read(pool: Path) -> tuple[list[Mapping[str, Any]], list[Record]]:
  table, records = [], []
  for where, row in rows(pool):
    if isinstance(row, BadRecord):
      raise row
    record = to_record(row, where=where)
    curation.label(record)
    if 'provenance' in row:
      raise InputError(f"{where}: column 'provenance': already there, and would be overwritten: rename it")
    table.append(row)
    records.append(record)
  if not records:
    raise InputError(f'{pool} is empty')
  return table, records


def _probabilities(scorer: inference.Scorer, records: Sequence[Record], labels: np.ndarray) -> np.ndarray:
  """Of the labels; NaN where a record was refused."""
  logits = np.array([scored.logits[0, 1] for scored in inference.progress(scorer.score(records, scorer.encode), 'score', len(records))], np.float64)
  first = 0.5 + 0.5 * np.tanh(logits / 2)
  return np.where(labels > 0.5, first, 1 - first)


def _vote(row: Mapping[str, Any], column: str, where: str) -> float:
  """Whether the annotators bear the label out."""
  if row.get(column) is None:
    return np.nan
  try:
    widest = max(map(len, row[column]))
    verdicts = np.array([[*map(float, samples), *[np.nan] * (widest - len(samples))] for samples in row[column]])
  except (TypeError, ValueError):
    verdicts = np.array([])
  if verdicts.ndim != 2 or not np.isin(verdicts[~np.isnan(verdicts)], (0.0, 0.5, 1.0)).all():
    raise InputError(f"{where}: column '{column}': a list for each annotator is wanted, 1 for chosen, 0 for rejected, such as [[1, 1, 0], [1, 1, 1]]")
  return float(curation.vote(verdicts))


def _turned(row: Mapping[str, Any], record: Record) -> dict[str, Any]:
  """The row with its label turned around; where it has no chosen and rejected, one in our own columns."""
  if 'chosen' in row and 'rejected' in row:
    kept = {name: value for name, value in row.items() if name not in ('score_chosen', 'score_rejected', 'margin')}
    return {**kept, 'chosen': row['rejected'], 'rejected': row['chosen']}
  wins = curation.recycle_flip(record).wins.tolist()
  return dict(prompt=record.prompt, responses=list(record.responses), wins=wins, weight=record.weight, subset=record.subset)


def check_unseen(checkpoint: Path, pool: Path) -> None:
  """Refuses a model that was trained on the file that it is to filter.

  Raises:
    InputError: it was, as far as its config tells.
  """
  config = checkpoint / 'config.json'
  if config.is_file():
    trained = str(json.loads(config.read_text()).get('data', {}).get('train', ''))
    if any(Path(part.strip()).resolve() == pool.resolve() for part in trained.split(',') if part.strip()):
      raise InputError(f'{checkpoint} was trained on {pool}: it would confirm what it was told; cut the pool in two, train on each half and curate the other')


def _evaluation_prompts(spec: str) -> Iterator[Any]:
  source = open_source(spec) if spec else ()
  return (source[i].prompt for i in range(len(source)))


def define_flags() -> None:
  """Defines the flags."""
  flags.DEFINE_string('data', None, 'Pairs to curate: .jsonl, .jsonl.gz or .parquet.', required=True)
  flags.DEFINE_string('best_checkpoint', None, 'The best reward model: a --workdir, or a Hugging Face directory.', required=True)
  flags.DEFINE_string('gold_checkpoint', None, 'The one that was trained on labels of people alone.', required=True)
  flags.DEFINE_string('output', None, 'File to write, .jsonl.', required=True)
  flags.DEFINE_string('evaluation', '', 'Data whose prompts may not be trained on, as for experiments.evaluate.')
  flags.DEFINE_string('votes', '', "Column with annotators' verdicts, a list for each annotator.")
  flags.DEFINE_float('recycle', 0.0, 'Turn a label around where both models reject it with more than this probability.', lower_bound=0.0, upper_bound=1.0)
  flags.DEFINE_integer('rows', 4, 'Rows of a batch: more of them for an accelerator.', lower_bound=1)
  flags.DEFINE_integer('length', 1024, 'Tokens of a row; doubled where a record needs more.', lower_bound=1)


def main() -> None:
  """Curates what the flags say, and prints the counts."""
  f = flags.FLAGS
  pool, target = Path(f.data), Path(f.output)
  if not target.name.endswith('.jsonl'):
    raise InputError(f'--output={target}: it is written as JSON Lines: end its name in .jsonl')
  if not pool.is_file():
    raise InputError(f'--data={pool} does not exist')
  if f.recycle and not 0.5 <= f.recycle < 1:
    raise InputError(f'--recycle={f.recycle:g}: 0, or from 0.5 to below 1')
  for checkpoint in (f.best_checkpoint, f.gold_checkpoint):
    check_unseen(Path(checkpoint), pool)
  best, gold = (inference.load(checkpoint, rows=f.rows, length=f.length) for checkpoint in (f.best_checkpoint, f.gold_checkpoint))
  report = curate(pool, best, gold, target, prompts=list(_evaluation_prompts(f.evaluation)), votes=f.votes, recycle=f.recycle)
  print(f'{target}: ' + ', '.join(f'{report[name]} {name}' for name in ('read', 'kept', 'recycled', *REASONS) if report[name] or name in ('read', 'kept')))
  print(f'|logit| of the labels (10th, 50th, 90th percentile): {_percentiles(report, "pool")} in the pool, {_percentiles(report, "kept")} in what was kept')


def _percentiles(report: Mapping[str, Any], which: str) -> str:
  return ' '.join(f'{report[name]:.2f}' if (name := f'margin_{which}_{q}') in report else '-' for q in (10, 50, 90))


if __name__ == '__main__':
  define_flags()
  cli.run(main)
