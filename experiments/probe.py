"""Probes what a reward model's representation tells of a response: MRMBench's probes by dimension, and its distances for inference-time probing.

  python -m experiments.probe --checkpoint=DIR --data=TRAIN --eval=FILE --labels=helpfulness,correctness [--output=FILE.json] [--figures=DIR]

Rows are of any format that training takes, and have a numeric column for each dimension in --labels: a number for a row of one response (HelpSteer's), a
list for a row of several, or an entry of `labels`. A response without one is left out of that dimension. Levels are merged to 2 classes ('easy') and,
where there are 3 levels, to 3 ('hard'), balanced on the training data or at --cuts; the cuts are in the output.

Linearly decodable is not the same as used by the reward: beside each accuracy stand what the most frequent class, the same backbone with random weights and
a bag of tokens reach.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import cli, inference
from rmjax.data.formats import to_record
from rmjax.data.records import BadRecord, Record
from rmjax.data.sources import open_tables
from rmjax.errors import InputError
from rmjax.evaluation import accuracy, bootstrap, centroids, length, probing, probing_figures
from rmjax.evaluation.scored import Scored
from rmjax.evaluation.scoring import score_records
from rmjax.training.metrics import write_json

LEVELS = {'easy': 2, 'hard': 3}
AVERAGE = 'average'
PROBES = {'accuracy': 'probe', 'paper_accuracy': "paper's probe", 'random_init_accuracy': 'random backbone', 'bag_of_tokens_accuracy': 'bag of tokens'}


class Part(NamedTuple):
  """Responses of one file, one after another.

  Attributes:
    states: float32[M, D] of the trained backbone.
    random: of one with random weights.
    bag: counts of tokens.
    values: dimension -> float[M], NaN where unknown or refused.
    lengths: tokens.
    groups: fingerprint of the prompt.
  """

  states: np.ndarray
  random: np.ndarray
  bag: np.ndarray
  values: dict[str, np.ndarray]
  lengths: np.ndarray
  groups: np.ndarray


def read(spec: str, names: Sequence[str], *, columns: Mapping[str, str] | None = None, bad_rows: str = 'strict') -> tuple[list[Record], list[str]]:
  """Records whose `labels` have float[N] of each dimension.

  Args:
    spec: files, as `open_source` takes them.
    names: columns of the dimensions.
    columns: our column -> the data's.
    bad_rows: 'strict' or 'lenient'.

  Returns:
    The records, and a line for each row that was left out.

  Raises:
    InputError: no row has a number for a dimension, or a bad row, if strict.
  """
  records, bad = [], []
  for table in open_tables(spec):
    for number in range(len(table)):
      try:
        where, row = table.row(number)
        record = to_record(row, where=where, columns=columns)
        labels = {name: _values(name, record.labels.get(name, row.get(name)), len(record.responses), where) for name in names}
      except BadRecord as e:
        if bad_rows == 'strict':
          raise
        bad.append(str(e))
      else:
        records.append(dataclasses.replace(record, labels=labels))
  for name in names:
    if all(np.isnan(record.labels[name]).all() for record in records):
      raise InputError(f"--labels: no row of {spec} has a number in a column '{name}'{f': {bad[0]}' if bad and not records else ''}")
  return records, bad


def _values(name: str, value: Any, count: int, where: str) -> np.ndarray:
  """float[N], one a response; NaN for null and what is absent."""
  if value is None:
    return np.full(count, np.nan)
  values = np.atleast_1d(np.array(value, object))
  if values.shape != (count,) or any(isinstance(x, bool) or not isinstance(x, (int, float, np.number, type(None))) for x in values):
    raise BadRecord(f"{where}: column '{name}': {'a number' if count == 1 else f'{count} numbers, one a response,'} wanted, not {str(value)[:40]!r}")
  return np.array([np.nan if x is None else float(x) for x in values])


def represent(scorer: inference.Scorer, parts: Mapping[str, Sequence[Record]], names: Sequence[str], *, seed: int = 0) -> dict[str, Part]:
  """Runs the model, one with random weights and the bag of tokens over the records; the vocabulary is that of the first part.

  Args:
    scorer: the model, loaded.
    parts: name -> records of `read`.
    names: the dimensions.
    seed: of the random weights.

  Raises:
    InputError: the scorer is a function of text.
  """
  if scorer.score.func is not score_records:
    raise InputError('--checkpoint is a function of text, which has no representation to probe: give a reward model')
  (model, params), options = scorer.score.args, scorer.score.keywords  # mesh, rows and length
  random = probing.random_params(model, options['mesh'], seed)
  found, vocabulary = {}, None
  for name, records in parts.items():
    scored = list(inference.progress(probing.represent(model, params, records, scorer.encode, **options), name, len(records)))
    untrained = inference.progress(probing.represent(model, random, records, scorer.encode, **options), f'{name}, random weights', len(records))
    encoded = [scorer.encode(record) for record in records]
    vocabulary = probing.common_tokens(encoded) if vocabulary is None else vocabulary
    join = lambda of, scored=scored: np.concatenate([of(item) for item in scored])
    found[name] = Part(
      states=probing.stack(scored),
      random=probing.stack(untrained),
      bag=probing.bag_of_tokens(encoded, [len(record.responses) for record in records], vocabulary),
      values={dimension: join(lambda item, d=dimension: _known(item, d)) for dimension in names},
      lengths=join(lambda item: item.lengths),
      groups=join(lambda item: np.full(len(item.rewards), item.group)),
    )
  return found


def _known(item: Scored, dimension: str) -> np.ndarray:
  return np.full(len(item.rewards), np.nan) if item.refused else item.labels[dimension]


class Report(NamedTuple):
  """What was measured; the distances are of each response of the test to the nearest centroid of all."""

  figures: dict[str, float]
  distances: np.ndarray


def probe(train: Part, test: Part, *, cuts: Mapping[tuple[str, int], Sequence[float]] | None = None, clusters: int = 4, seed: int = 0) -> Report:
  """Fits and measures everything.

  Args:
    train: what probes and centroids are fitted to.
    test: what they are measured on.
    cuts: (dimension, number of classes) -> cuts to merge its levels at, instead of balanced ones.
    clusters: K of each class.
    seed: of the paper's probe and of k-means.

  Returns:
    Flat figures. <dimension>/<level>/: classes, cut_1, ..., prior_0, ... (shares of the test's classes), num_train, num_test, accuracy (of the
      converged probe), accuracy_se, accuracy_low, accuracy_high, paper_accuracy, majority_accuracy, random_init_accuracy, bag_of_tokens_accuracy,
      above_random_init (paired), above_random_init_p_value; average/<level>/: means over dimensions; <dimension>/distance,
      <dimension>/distance_rank (1 is the nearest); distance/limit, distance/kept, distance/confidence, distance/length_spearman.

  Raises:
    InputError: a dimension has one class only, in training or in the test.
  """
  figures, easy = {}, {}
  for task in tasks(train.values, test.values, cuts):
    easy.setdefault(task.dimension, task.labels)
    found = {f'cut_{k + 1}': cut for k, cut in enumerate(task.cuts)} | _measure(train, test, task, seed)
    figures |= {f'{task.dimension}/{task.level}/{key}': value for key, value in found.items()}
  for level in LEVELS:
    for key in (*PROBES, 'majority_accuracy', 'above_random_init'):
      if values := [figures[f'{name}/{level}/{key}'] for name in train.values if f'{name}/{level}/{key}' in figures]:
        figures[f'{AVERAGE}/{level}/{key}'] = float(np.mean(values))
  smallest, found = _distances(train, test, easy, clusters, seed)
  return Report(figures | found, smallest)


class Task(NamedTuple):
  """A dimension's levels merged to classes: those of both parts' responses, -1 where unknown."""

  dimension: str
  level: str
  cuts: tuple[float, ...]
  labels: np.ndarray
  truth: np.ndarray


def tasks(train: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray], cuts: Mapping[tuple[str, int], Sequence[float]] | None = None) -> Iterator[Task]:
  """Every dimension's easy task, and its hard one where the training data have three levels; arguments and errors as for `probe`, of its parts' values."""
  for name, values in train.items():
    for level, count in LEVELS.items():
      if level == 'hard' and len(np.unique(values[~np.isnan(values)])) < count:
        continue
      try:
        merged = tuple((cuts or {}).get((name, count)) or probing.balanced_cuts(values, count))
      except InputError as e:
        raise InputError(f"--labels: '{name}' of the training data: {e}") from e
      classes = [probing.merge_levels(part, merged) for part in (values, test[name])]
      for part, of in zip(('training', 'test'), classes, strict=True):
        if len(np.unique(of[of >= 0])) < 2:
          raise InputError(f"--labels: '{name}' of the {part} data has one class only, when its levels are cut at {', '.join(f'{cut:g}' for cut in merged)}")
      yield Task(name, level, merged, *classes)


def _measure(train: Part, test: Part, task: Task, seed: int) -> dict[str, float]:
  """Every probe of one dimension and level."""
  labels, truth, classes = task.labels, task.truth, LEVELS[task.level]
  logistic = {which: probing.fit_logistic_probe(getattr(train, which), labels, classes) for which in ('states', 'random', 'bag')}
  right = {which: probing.right(fitted, getattr(test, which), truth) for which, fitted in logistic.items()}
  paper = probing.right(probing.fit_linear_probe(train.states, labels, classes, seed=seed), test.states, truth)
  known = truth >= 0
  mean, error = accuracy.clustered_mean(right['states'], test.groups)
  low, high = bootstrap.interval(np.nanmean, right['states'], groups=test.groups)
  above = bootstrap.paired(right['states'] - right['random'], test.groups)
  return {
    'classes': classes,
    **{f'prior_{c}': float(np.mean(truth[known] == c)) for c in range(classes)},
    'num_train': int((labels >= 0).sum()),
    'num_test': int(known.sum()),
    'accuracy': mean,
    'accuracy_se': error,
    'accuracy_low': low,
    'accuracy_high': high,
    'paper_accuracy': float(np.nanmean(paper)),
    'majority_accuracy': probing.majority(labels, truth),
    'random_init_accuracy': float(np.nanmean(right['random'])),
    'bag_of_tokens_accuracy': float(np.nanmean(right['bag'])),
    'above_random_init': above.mean,
    'above_random_init_p_value': above.p_value,
  }


def _distances(train: Part, test: Part, classes: Mapping[str, np.ndarray], clusters: int, seed: int) -> tuple[np.ndarray, dict[str, float]]:
  """Inference-time probing: centroids of both classes of each dimension, and how near to them the test lies."""
  x, key = np.nan_to_num(train.states), jax.random.key(seed)
  fit = lambda labels, c: centroids.kmeans(key, x, clusters, weights=(labels == c).astype(np.float32)).centroids
  places = np.stack([np.concatenate([fit(labels, c) for c in range(LEVELS['easy'])]) for labels in classes.values()])
  near, seen = (np.asarray(centroids.min_distance(part.states, places)) for part in (test, train))
  smallest, limit = near.min(-1), centroids.threshold(seen.min(-1))
  scored, mean = ~np.isnan(smallest), np.nanmean(near, 0)
  return smallest, {
    **{f'{name}/distance': float(value) for name, value in zip(classes, mean, strict=True)},
    **{f'{name}/distance_rank': int(rank) for name, rank in zip(classes, length.ranks(mean), strict=True)},
    'distance/limit': limit,
    'distance/kept': float(np.mean(smallest[scored] <= limit)),
    'distance/confidence': float(np.nanmean(centroids.confidence(smallest, seen.min(-1)))),
    'distance/length_spearman': length.spearman(smallest[scored], test.lengths[scored]),
  }


def table(figures: Mapping[str, float], names: Iterable[str]) -> Table:
  """A line for each dimension and level, and the averages."""
  headings = ('dimension', 'task', 'cuts', 'train/test', *PROBES.values(), 'majority', 'distance (rank)')
  out = Table(*headings, box=None, header_style='bold')
  for column in out.columns[3:]:
    column.justify = 'right'
  number = lambda key: '' if key not in figures else f'{figures[key]:.3f}'
  for level in LEVELS:
    for name in (*names, AVERAGE):
      at = f'{name}/{level}'
      if f'{at}/accuracy' not in figures:
        continue
      error = f' ± {figures[f"{at}/accuracy_se"]:.3f}' if f'{at}/accuracy_se' in figures else ''
      cuts = ', '.join(f'{figures[key]:g}' for k in (1, 2) if (key := f'{at}/cut_{k}') in figures)
      sizes = f'{figures[f"{at}/num_train"]}/{figures[f"{at}/num_test"]}' if f'{at}/num_train' in figures else ''
      near = f'{figures[f"{name}/distance"]:.2f} ({figures[f"{name}/distance_rank"]})' if f'{name}/distance' in figures else ''
      first, *others = (number(f'{at}/{key}') for key in (*PROBES, 'majority_accuracy'))
      out.add_row(name, level, cuts, sizes, first + error, *others, near, style='bold' if name == AVERAGE else '')
  return out


def draw(report: Report, test: Part, directory: Path) -> None:
  """Writes `probes.png` and `distances.png`."""
  figures, rows = report.figures, [key.removesuffix('/num_test') for key in report.figures if key.endswith('/num_test')]
  column = lambda key: [figures[f'{row}/{key}'] for row in rows]
  bars = {label: column(key) for key, label in PROBES.items()}
  names = [row.replace('/', ', ') for row in rows]
  probing_figures.accuracies(names, bars, column('majority_accuracy'), column('accuracy_se'), directory / 'probes.png')
  limit, correlation = figures['distance/limit'], figures['distance/length_spearman']
  probing_figures.distances(report.distances, test.lengths, limit, correlation, directory / 'distances.png')


def parse_cuts(text: str) -> dict[tuple[str, int], tuple[float, ...]]:
  """(dimension, number of classes) -> cuts, of 'dimension=1,dimension=1:2'.

  Raises:
    InputError: something else.
  """
  cuts = {}
  for part in filter(None, text.split(',')):
    name, _, numbers = part.rpartition('=')
    try:
      values = tuple(map(float, numbers.split(':')))
    except ValueError:
      values = ()
    if not name or len(values) + 1 not in LEVELS.values() or list(values) != sorted(set(values)):
      raise InputError(f"--cuts={text}: '{part}' is not a dimension and one increasing cut for two classes or two for three, such as harmlessness=1:2")
    cuts[name, len(values) + 1] = values
  return cuts


def define_flags() -> None:
  """Defines the flags."""
  inference.define_flags()
  flags.DEFINE_string('data', None, 'What probes are fitted to: files, patterns or tfds:NAME:SPLIT, separated by commas.', required=True)
  flags.DEFINE_string('eval', None, 'What they are measured on; likewise.', required=True)
  flags.DEFINE_string('labels', None, 'Numeric columns to probe for, separated by commas.', required=True)
  flags.DEFINE_string('cuts', '', "Where levels are merged, instead of balanced: 'harmlessness=1,harmlessness=1:2' is 0 against more, and 0, 1 and more.")
  flags.DEFINE_integer('clusters', 4, 'Centroids of each class of each dimension.', lower_bound=1)
  flags.DEFINE_integer('seed', 0, 'Of the random backbone, the probes and the centroids.')
  flags.DEFINE_string('output', None, 'JSON file to write.')
  flags.DEFINE_string('figures', None, 'Directory for PNG figures.')


def main() -> None:
  """Probes what the flags say, and prints the table."""
  f = flags.FLAGS
  names = list(dict.fromkeys(name.strip() for name in f.labels.split(',') if name.strip()))
  cuts = parse_cuts(f.cuts)
  if not names or AVERAGE in names or 'distance' in names:
    raise InputError(f"--labels={f.labels}: name columns, separated by commas; none of them '{AVERAGE}' or 'distance'")
  if unknown := [name for name, _ in cuts if name not in names]:
    raise InputError(f"--cuts={f.cuts}: '{unknown[0]}' is not in --labels={f.labels}")
  columns = inference.columns_from_flags()
  found = {name: read(spec, names, columns=columns, bad_rows=f.bad_rows) for name, spec in (('train', f.data), ('test', f.eval))}
  values = {part: {name: np.concatenate([record.labels[name] for record in records]) for name in names} for part, (records, _) in found.items()}
  list(tasks(values['train'], values['test'], cuts))  # what is wrong with the labels is said before the model runs
  scorer = inference.load_from_flags(bad_rows=f.bad_rows)
  parts = represent(scorer, {name: records for name, (records, _) in found.items()}, names, seed=f.seed)
  report = probe(parts['train'], parts['test'], cuts=cuts, clusters=f.clusters, seed=f.seed)
  figures = report.figures
  for name, (_, bad) in found.items():
    figures[f'{name}/num_bad_rows'], figures[f'{name}/num_refused'] = len(bad), int(np.sum(parts[name].lengths < 0))
  console = Console()
  (console if console.is_terminal else Console(width=160)).print(table(figures, names))
  print(f'within the distance that 90 % of the training data keep: {figures["distance/kept"]:.0%}; ', end='')
  print(f'rank correlation of distance and length: {figures["distance/length_spearman"]:.2f}')
  for name in found:
    if figures[f'{name}/num_bad_rows'] or figures[f'{name}/num_refused']:
      print(f'{name}: {figures[f"{name}/num_bad_rows"]} bad rows left out, {figures[f"{name}/num_refused"]} responses refused')
  if f.figures:
    draw(report, parts['test'], Path(f.figures))
  if f.output:
    Path(f.output).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(f.output), figures)


if __name__ == '__main__':
  define_flags()
  cli.run(main)
