"""Evaluates a reward model on any number of files, or on a public benchmark.

  python -m experiments.evaluate --checkpoint=DIR --data=FILE[,FILE] [--output=FILE.json] [--figures=DIR] [--length_baseline=TRAIN_FILE]
  python -m experiments.evaluate --checkpoint=DIR --benchmark=rewardbench --data=FILES [--output=FILE.json] [--figures=DIR] [--against=DIR] ...

Prints a table; --output gets every figure as one flat JSON object, `<file>/<metric>` (see `rmjax.evaluation.summary`) and, of several files,
`overall/<metric>` over all their records; --figures gets PNG figures of each. All the files of a benchmark are one: `<benchmark>/<figure>`, see
docs/evaluation.md.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any

from absl import flags
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import cli, inference
from rmjax.data.records import Record
from rmjax.data.sources import open_source, Source
from rmjax.errors import InputError
from rmjax.evaluation import benchmarks, bootstrap, figures, items, processbench
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


def run_benchmark(scorer: inference.Scorer, benchmark: items.Benchmark, records: Sequence[Record], *, figures_to: Path | None = None) -> items.Report:
  """Scores the items of a benchmark and makes its report.

  Args:
    scorer: the model.
    benchmark: whose items they are.
    records: of `items.read`.
    figures_to: directory for PNG figures.
  """
  found = benchmark_answers(scorer, benchmark, records, figures_to=figures_to)
  report = benchmark.measure(found)
  if figures_to and report.draw:
    report.draw(figures_to / 'benchmark.png')
  return report


def benchmark_answers(scorer: inference.Scorer, benchmark: items.Benchmark, records: Sequence[Record], *, figures_to: Path | None = None) -> list[items.Answer]:
  """Scores the items of a benchmark; draws what can be drawn of any scored records."""
  tokens: list[int] = []

  def encode(record: Record):
    tree = scorer.encode(record)
    tokens.append(items.longest_path(tree))
    return tree

  scored = inference.progress(scorer.score(iter(records), encode), 'benchmark', len(records))
  if figures_to:
    scored = list(scored)
    figures.report([item for item in scored if not np.isnan(item.rewards).any()], figures_to)
  return items.answers(benchmark, records, scored, tokens)


def benchmark_table(name: str, report: items.Report) -> Table:
  """The main figures of a benchmark, with their 95 % intervals."""
  out = Table(name, *(heading for heading, _ in report.columns), box=None, header_style='bold')
  for column in out.columns[1:]:
    column.justify = 'right'
  for label, suffix in report.lines:
    cells = []
    for _, figure in report.columns:
      value, low, high = (report.figures.get(f'{figure}{end}{suffix}') for end in ('', '_low', '_high'))
      cells.append(_cell(value) + (f' [{low:.3f}, {high:.3f}]' if low is not None and high is not None else ''))
    out.add_row(label, *cells, style='' if suffix else 'bold')
  return out


def compare(one: items.Items, other: items.Items) -> dict[str, float]:
  """Figures of the paired difference of two models over the same items: mean over items, its 95 % interval and p-value; see `bootstrap.paired`."""
  test = bootstrap.paired(one.correct - other.correct, one.groups)
  return {f'against_{name}': value for name, value in zip(('difference', 'low', 'high', 'p_value'), test, strict=True)}


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
  flags.DEFINE_string(
    'data', None, "Files, patterns, 'tfds:NAME:SPLIT' or directories, separated by commas; each is reported by itself, unless by --benchmark.", required=True
  )
  flags.DEFINE_string('benchmark', '', f'What the data is: {", ".join(benchmarks.BENCHMARKS)}; empty for any preferences.')
  flags.DEFINE_string('output', None, 'JSON file to write.')
  flags.DEFINE_string('figures', None, 'Directory for PNG figures.')
  flags.DEFINE_string('length_baseline', None, 'Training data to fit a baseline to that sees only the lengths of responses.')
  flags.DEFINE_string('rewardbench_json', None, "File for accuracy by subset in RewardBench's own format, of rewardbench and rewardbench2.")
  flags.DEFINE_float('threshold', None, 'Of processbench: a step whose prefix is scored below it is an error.')
  flags.DEFINE_string('validation', None, 'Of processbench: data to choose the threshold on instead, such as its gsm8k file.')
  flags.DEFINE_string('against', None, 'Another --checkpoint: the benchmark is run for it too, and the difference by item is tested.')


def main_benchmark(name: str) -> None:
  """Runs the benchmark that the flags name, and prints its table."""
  f = flags.FLAGS
  benchmark = benchmarks.find_benchmark(name)
  if f.length_baseline:
    raise InputError('--length_baseline is not of benchmarks: leave --benchmark out')
  if name != 'processbench' and (f.threshold is not None or f.validation):
    raise InputError(f'--threshold and --validation are of processbench, and --benchmark={name}')
  if name == 'processbench' and (f.threshold is None) == (f.validation is None):
    raise InputError('processbench: give either --threshold or --validation, data to choose it on (such as the gsm8k file)')
  options = dict(columns=inference.columns_from_flags(), bad_rows=f.bad_rows)
  records, bad, skipped = items.read(benchmark, f.data, **options)
  validation = items.read(benchmark, f.validation, **options)[0] if f.validation else []

  def run(checkpoint: str, figures_to: Path | None = None) -> tuple[items.Report, inference.Scorer]:
    scorer = inference.load_from_flags(bad_rows=f.bad_rows, checkpoint=checkpoint)
    at = benchmark
    if name == 'processbench':
      chosen = processbench.choose_threshold(benchmark_answers(scorer, benchmark, validation)) if f.validation else f.threshold
      at = processbench.at(chosen)
    return run_benchmark(scorer, at, records, figures_to=figures_to), scorer

  report, scorer = run(f.checkpoint, Path(f.figures) if f.figures else None)
  if f.rewardbench_json and not report.results:
    raise InputError(f'--rewardbench_json: {name} has no such format: it is of rewardbench and rewardbench2')
  result = {**report.figures, 'num_bad_rows': len(bad), 'num_skipped': skipped}
  if validation:
    result['num_in_validation'] = len({item.columns['id'] for item in validation} & {item.columns['id'] for item in records})
  if f.against:
    result |= compare(report.items, run(f.against)[0].items)
  console = Console()
  (console if console.is_terminal else Console(width=200)).print(benchmark_table(name, report))
  for line in _remarks(name, report, result, f.against):
    print(line)
  if f.output:
    _write(f.output, {f'{name}/{figure}': value for figure, value in result.items()})
  if f.rewardbench_json:
    kind = dict(model=f.checkpoint, model_type=scorer.kind, chat_template='tokenizer')
    _write(f.rewardbench_json, dict(sorted({**report.results, **kind}.items())))


def _remarks(name: str, report: items.Report, result: Mapping[str, float], against: str | None) -> Iterator[str]:
  yield from report.notes
  for figure, what in (
    ('num_truncated', 'truncated'),
    ('num_unscored', 'without a score (wrong)'),
    ('num_score_ties', 'pairs scored alike (wrong)'),
    ('num_skipped', 'rows left out: both responses are the same (all languages of such an item)'),
    ('num_bad_rows', 'bad rows left out'),
    ('num_in_validation', 'items that the threshold was chosen on'),
  ):
    if result.get(figure):
      yield f'{name}: {result[figure]} {what}'
  if against:
    difference, low, high, p = (result[f'against_{figure}'] for figure in ('difference', 'low', 'high', 'p_value'))
    yield f'{name}: {difference:+.3f} [{low:+.3f}, {high:+.3f}] by item against {against}, p = {p:.3g} (paired permutation test)'


def _write(path: str, value: Mapping[str, Any]) -> None:
  Path(path).parent.mkdir(parents=True, exist_ok=True)
  write_json(Path(path), value)


def main() -> None:
  """Evaluates what the flags say, and prints the table."""
  if flags.FLAGS.benchmark:
    return main_benchmark(flags.FLAGS.benchmark)
  given = [name for name in ('rewardbench_json', 'threshold', 'validation', 'against') if flags.FLAGS[name].value is not None]
  if given:
    raise InputError(f'--{given[0]} is of benchmarks: give --benchmark too')
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
    _write(flags.FLAGS.output, result)


if __name__ == '__main__':
  define_flags()
  cli.run(main)
