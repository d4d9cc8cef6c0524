"""ProcessBench: where the first error of a solution is, told by a score of each prefix of its steps.

Dimensions: M solutions, N steps of a solution.
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
import numpy as np

from rmjax.data.records import BadRecord, Record
from rmjax.errors import InputError
from rmjax.evaluation.items import Answer, Benchmark, column, counts, Facts, make_items, Report, with_interval

NONE, UNKNOWN = -1, -2  # predictions: no error; a score is not there, which is never right


def first_error(rewards: Float[np.ndarray, 'N'], threshold: float) -> int:
  """Number of the first step whose prefix is scored below the threshold; -1 if none is, -2 (never right) where a score is NaN."""
  if np.isnan(rewards).any():
    return UNKNOWN
  below = np.flatnonzero(rewards < threshold)
  return int(below[0]) if len(below) else NONE


def f1(right: Float[np.ndarray, 'M'], labels: Int[np.ndarray, 'M']) -> float:
  """Harmonic mean of the accuracies on solutions with an error (its step must be found) and without; NaN where there are no two kinds.

  Args:
    right: whether each prediction is right.
    labels: number of the first wrong step, -1 for none.

  Reference: Zheng et al., ProcessBench (2024), section 3.3.
  """
  has_error = labels != NONE
  if has_error.all() or not has_error.any():
    return np.nan
  one, two = right[has_error].mean(), right[~has_error].mean()
  return float(2 * one * two / (one + two)) if one + two else 0.0


def mean_f1(right: Float[np.ndarray, 'M'], labels: Int[np.ndarray, 'M'], subsets: Int[np.ndarray, 'M']) -> float:
  """Mean over subsets of F1."""
  found = [f1(right[subsets == k], labels[subsets == k]) for k in np.unique(subsets)]
  return float(np.nanmean(found)) if not np.isnan(found).all() else np.nan


def choose_threshold(found: Sequence[Answer]) -> float:
  """The threshold of the highest mean F1 on validation answers, of those halfway between neighbouring scores, at most about 1,000 of them.

  Raises:
    InputError: there are no two kinds of solutions, or no scores.
  """
  labels, subsets = _labels(found), np.unique([answer.facts['subset'] for answer in found], return_inverse=True)[1]
  values = np.unique(np.concatenate([answer.rewards[~np.isnan(answer.rewards)] for answer in found]))
  if len(values) < 2:
    raise InputError('processbench: the validation answers all have one score, or none: no threshold tells them apart')
  values = values[np.unique(np.linspace(0, len(values) - 1, 1001).astype(int))]
  candidates = [values[0], *((values[1:] + values[:-1]) / 2)]
  reached = [mean_f1(_right(found, labels, threshold), labels, subsets) for threshold in candidates]
  return float(candidates[int(np.argmax(reached))])


def measure(found: Sequence[Answer], *, threshold: float) -> Report:
  """F1 of each subset and its mean, at a threshold.

  Raises:
    InputError: a subset lacks one kind of solution.
  """
  labels = _labels(found)
  right = _right(found, labels, threshold)
  items = make_items(found, right)
  names, codes = np.unique(items.subsets, return_inverse=True)
  figures = counts(found) | {'threshold': float(threshold)} | with_interval('f1', '', mean_f1, right, labels, codes, groups=items.groups)
  for name in names:
    part = items.subsets == name
    figures |= with_interval('f1', f'/{name}', f1, right[part], labels[part], groups=items.groups[part])
    figures[f'num_items/{name}'] = int(part.sum())
    for kind, chosen in (('error', part & (labels != NONE)), ('correct', part & (labels == NONE))):
      figures |= with_interval(f'{kind}_accuracy', f'/{name}', np.mean, right[chosen], groups=items.groups[chosen])
  columns = (('items', 'num_items'), ('F1', 'f1'), ('with error', 'error_accuracy'), ('without', 'correct_accuracy'))
  return Report(figures, items, columns, [('mean', ''), *((name, f'/{name}') for name in names)], [f'processbench: threshold {threshold:.6g}'])


def _facts(record: Record) -> Facts:
  label = record.columns.get('label')
  if 'steps' not in record.columns or 'problem' not in record.columns:
    raise BadRecord(f"{record.where}: column 'steps': missing; every row of processbench has problem, steps and label (another benchmark's row?)")
  name = column(record, 'id', 'processbench')
  return dict(id=name, subset=name.rsplit('-', 1)[0], label=int(label))


def _labels(found: Sequence[Answer]) -> Int[np.ndarray, 'M']:
  """First errors; checks that each subset has solutions with and without one."""
  labels = np.array([answer.facts['label'] for answer in found])
  subsets = np.array([answer.facts['subset'] for answer in found], str)
  for name in np.unique(subsets):
    has_error = labels[subsets == name] != NONE
    if has_error.all() or not has_error.any():
      raise InputError(f"processbench: '{name}' has no solution {'without' if has_error.all() else 'with'} an error: F1 needs both kinds; give all rows")
  return labels


def _right(found: Sequence[Answer], labels: np.ndarray, threshold: float) -> Float[np.ndarray, 'M']:
  return np.array([first_error(answer.rewards, threshold) == label for answer, label in zip(found, labels, strict=True)], np.float64)


def _without_threshold(found: Sequence[Answer]) -> Report:
  raise InputError('processbench: give --threshold, or --validation: data to choose it on, such as the gsm8k file')


processbench = Benchmark(_facts, _without_threshold)


def at(threshold: float) -> Benchmark:
  """The benchmark at a threshold."""
  return processbench._replace(measure=lambda found: measure(found, threshold=threshold))
