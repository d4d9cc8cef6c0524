"""Evaluates a trained reward model on any number of files.

  python -m experiments.evaluate --checkpoint=DIR --data=FILE[,FILE] [--output=FILE.json] [--figures=DIR] [--length_baseline=TRAIN_FILE]

Prints a table; --output gets every figure as one flat JSON object, `<file>/<metric>` (see `rmjax.evaluation.summary`) and, of several files,
`overall/<metric>` over all their records; --figures gets PNG figures of each.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import cli, inference
from rmjax.data.records import Record
from rmjax.data.sources import open_source, Source
from rmjax.errors import InputError
from rmjax.evaluation import figures
from rmjax.evaluation.length import fit_length_baseline, pair_lengths
from rmjax.evaluation.summary import summary
from rmjax.training.metrics import write_json

OVERALL = 'overall'
COLUMNS = (
  ('pairs', 'num_pairs', ''),
  ('accuracy', 'accuracy', 'accuracy_se'),
  ('length only', 'length_baseline_accuracy', 'length_baseline_accuracy_se'),
  ('chosen longer', 'accuracy_chosen_longer', ''),
  ('rejected longer', 'accuracy_rejected_longer', ''),
  ('best of n', 'best_of_n_accuracy', 'best_of_n_accuracy_se'),
  ('ECE', 'ece', ''),
  ('Brier', 'brier', ''),
  ('rating rho', 'rating_spearman', ''),
  ('length r', 'length_pearson', ''),
)  # fmt: skip


def evaluate(
  scorer: inference.Scorer,
  sources: Mapping[str, Source],
  *,
  length_baseline: Source | None = None,
  directory: Path | None = None,
) -> dict[str, float]:
  """Scores and measures.

  Args:
    scorer: the model.
    sources: data by the name they get in the result.
    length_baseline: training data of the length-only baseline.
    directory: for figures, one folder for each of the data.

  Returns:
    '<name>/<metric>' -> figure, 'overall/...' if there are several.
  """
  coefficients = fit_length_baseline(*pair_lengths(_records(length_baseline), scorer.encode)) if length_baseline else None
  result, everything = {}, []
  for name, source in sources.items():
    scored = list(inference.progress(scorer.score(_records(source), scorer.encode), name, len(source)))
    result |= {f'{name}/{metric}': value for metric, value in summary(scored, length_baseline=coefficients).items()}
    result[f'{name}/num_bad_rows'] = len(source.bad)
    if directory:
      figures.report(scored, directory / name, title=name)
    everything += [dataclasses.replace(item, index=len(everything) + k, subset=name) for k, item in enumerate(scored)]
  if len(sources) > 1:
    result |= {f'{OVERALL}/{metric}': value for metric, value in summary(everything, length_baseline=coefficients).items()}
    result[f'{OVERALL}/num_bad_rows'] = sum(len(source.bad) for source in sources.values())
    if directory:
      figures.report(everything, directory / OVERALL, title=OVERALL)
  return result


def _records(source: Source) -> Iterator[Record]:
  return (source[i] for i in range(len(source)))


def open_sources(spec: str, *, columns: Mapping[str, str], bad_rows: str) -> dict[str, Source]:
  """Each part of the data, by the last part of its path; by more of it where two are alike."""
  parts = [part for part in spec.split(',') if part]
  names = [_stem(part) for part in parts]
  clear = [name if names.count(name) == 1 and name != OVERALL else f'{Path(part).parent.name}-{name}' for name, part in zip(names, parts, strict=True)]
  if len(set(clear)) < len(parts):
    raise InputError(f'--data={spec}: two parts have one name: give each of them once')
  return {name: open_source(part, columns=columns, bad_rows=bad_rows) for name, part in zip(clear, parts, strict=True)}


def _stem(part: str) -> str:
  return Path(part).name.split('.')[0].replace(':', '-').replace('*', '') or 'data'


def table(result: Mapping[str, float], names: Sequence[str]) -> Table:
  """The main figures, a line for each of the data and its subsets; columns that no data can fill are left out."""
  found = lambda name, metric: result.get(f'{name}/{metric}')
  columns = [column for column in COLUMNS if any(found(name, column[1]) is not None for name in names)]
  out = Table('data', *(heading for heading, _, _ in columns), box=None, header_style='bold')
  for column in out.columns[1:]:
    column.justify = 'right'
  for name in names:
    out.add_row(name, *(_cell(found(name, metric), found(name, error)) for _, metric, error in columns), style='bold' if name == OVERALL else '')
    prefix = f'{name}/accuracy/'
    for subset in (key.removeprefix(prefix) for key in result if key.startswith(prefix) and name != OVERALL):
      cells = {
        'num_pairs': _cell(found(name, f'num_pairs/{subset}')),
        'accuracy': _cell(found(name, f'accuracy/{subset}'), found(name, f'accuracy_se/{subset}')),
      }
      out.add_row(f'  {subset}', *(cells.get(metric, '') for _, metric, _ in columns), style='dim')
  return out


def _cell(value: float | None, error: float | None = None) -> str:
  if value is None:
    return ''
  return str(value) if isinstance(value, int) else f'{value:.3f}' + (f' ± {error:.3f}' if error is not None else '')


def define_flags() -> None:
  """Defines the flags."""
  inference.define_flags()
  flags.DEFINE_string('data', None, "Files, patterns or 'tfds:NAME:SPLIT', separated by commas; each is reported by itself.", required=True)
  flags.DEFINE_string('output', None, 'JSON file to write.')
  flags.DEFINE_string('figures', None, 'Directory for PNG figures.')
  flags.DEFINE_string('length_baseline', None, 'Training data to fit a baseline to that sees only the lengths of responses.')


def main() -> None:
  """Evaluates what the flags say, and prints the table."""
  options = dict(columns=inference.columns_from_flags(), bad_rows=flags.FLAGS.bad_rows)
  sources = open_sources(flags.FLAGS.data, **options)
  baseline = open_source(flags.FLAGS.length_baseline, **options) if flags.FLAGS.length_baseline else None
  scorer = inference.load_from_flags(bad_rows=flags.FLAGS.bad_rows)
  result = evaluate(scorer, sources, length_baseline=baseline, directory=Path(flags.FLAGS.figures) if flags.FLAGS.figures else None)
  names = [*sources, OVERALL] if len(sources) > 1 else list(sources)
  console = Console()
  (console if console.is_terminal else Console(width=160)).print(table(result, names))
  for name in names:
    truncated, refused, bad = (result[f'{name}/num_{what}'] for what in ('truncated', 'refused', 'bad_rows'))
    if truncated or refused or bad:
      print(f'{name}: {result[f"{name}/num_records"]} records, of which {truncated} truncated and {refused} refused; {bad} bad rows left out')
  if flags.FLAGS.output:
    Path(flags.FLAGS.output).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(flags.FLAGS.output), result)


if __name__ == '__main__':
  define_flags()
  cli.run(main)
