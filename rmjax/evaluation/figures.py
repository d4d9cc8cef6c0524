"""Figures of an evaluation and of a training run, as PNG files."""

from collections.abc import Mapping, Sequence
import contextlib
import json
from pathlib import Path
import re

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

from rmjax.errors import InputError
from rmjax.evaluation import accuracy, calibration
from rmjax.evaluation.scored import compared_pairs, Scored
from rmjax.evaluation.summary import flat_responses

BLUE, ORANGE, GREY = '#2b6cb0', '#dd6b20', '#718096'


def report(scored: Sequence[Scored], directory: Path | str, *, title: str = '') -> list[Path]:
  """Draws every figure that the data can give.

  Args:
    scored: the records.
    directory: where the PNG files go; made if absent.
    title: what was evaluated.

  Returns:
    The files: of `reliability.png`, `rewards.png`, `length.png` and `subsets.png`, those that have something to show.
  """
  figures = {'reliability': _reliability, 'rewards': _rewards, 'length': _length, 'subsets': _subsets}
  return [path for name, plot in figures.items() if plot(scored, path := Path(directory) / f'{name}.png', title)]


def training_curves(metrics: Path | str, out: Path | str, names: Sequence[str] = ('loss', 'accuracy')) -> Path:
  """Draws what a run's `metrics.jsonl` says of some figures, in training and in evaluation; those that it never says are left out.

  Raises:
    InputError: the file has no figures.
  """
  lines = [json.loads(line) for line in Path(metrics).read_text().splitlines()]
  panels = [name for name in names if any(line.get(f'{part}{name}') is not None for line in lines for part in ('', 'eval_'))]
  if not panels:
    raise InputError(f'{metrics} has no line with {" or ".join(f"`{name}`" for name in names)} to draw')
  with _figure(out, width=5.2 * len(panels)) as figure:
    for axes, name in zip(np.ravel(figure.subplots(1, len(panels), squeeze=False)), panels, strict=True):
      for part, color, marker, label in (('', BLUE, None, 'training'), ('eval_', ORANGE, 'o', 'evaluation')):
        points = [(line['step'], line[part + name]) for line in lines if line.get(part + name) is not None]
        if points:
          axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=4, linewidth=1.6, label=label)
      axes.set(xlabel='step', ylabel=name)
      _tidy(axes)
      axes.legend(frameon=False)
  return Path(out)


def claims(figures: Mapping[str, Sequence[Mapping[str, float]]], verdicts: Sequence[tuple[str, bool]], out: Path | str) -> Path:
  """Draws every figure that a claim speaks of: each arm's seeds as points, their mean and its 95 % interval.

  Args:
    figures: arm -> figures of each seed.
    verdicts: claims as text, and whether each holds.
    out: PNG file.
  """
  spoken = dict.fromkeys(re.findall(r'(\w+)\.([a-z]\w*)', ' '.join(text for text, _ in verdicts)))
  names = list(dict.fromkeys(name for _, name in spoken))
  arms = {name: list(dict.fromkeys(arm for arm, figure in spoken if figure == name)) for name in names}
  with _figure(out, height=1.0 + 0.3 * len(verdicts) + sum(0.6 + 0.36 * len(arms[name]) for name in names), width=7.6) as figure:
    panels = figure.subplots(len(names), 1, squeeze=False, height_ratios=[1 + len(arms[name]) for name in names])[:, 0]
    for axes, name in zip(panels, names, strict=True):
      for place, arm in enumerate(arms[name]):
        values = np.array([seed[name] for seed in figures[arm]])
        error = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
        axes.plot(values, np.full(len(values), place), 'o', color=BLUE, alpha=0.35, markersize=5)
        axes.errorbar(values.mean(), place, xerr=error, fmt='D', color=ORANGE, capsize=3, markersize=5)
      axes.set_yticks(range(len(arms[name])), arms[name])
      axes.set(xlabel=name, ylim=(len(arms[name]) - 0.4, -0.6))
      _tidy(axes)
    figure.suptitle('\n'.join(f'{"holds" if holds else "FAILS"}: {text}' for text, holds in verdicts), fontsize=8, x=0.01, ha='left')
  return Path(out)


def _reliability(scored: Sequence[Scored], path: Path, title: str) -> bool:
  pairs = compared_pairs(scored)
  if not len(pairs.logits):
    return False
  curve = calibration.reliability(pairs.logits, pairs.wins)
  shown = curve.count > 0
  edges = np.linspace(0.5, 1, len(curve.count) + 1)
  with _figure(path, width=5, height=5.6) as figure:
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0.5, 1], [0.5, 1], '--', color=GREY, linewidth=1, label='calibrated')
    p, n = curve.accuracy[shown], curve.count[shown]
    error = 1.96 * np.sqrt(p * (1 - p) / n)
    axes.errorbar(curve.confidence[shown], p, error, color=BLUE, marker='o', linewidth=1.6, elinewidth=1, capsize=2, label='model (95 % interval)')
    ece = calibration.expected_calibration_error(curve)
    lowest = max(0, min(0.4, np.min(p - error) - 0.03))
    axes.set(ylabel='share of pairs it orders as labelled', ylim=(lowest, 1.03), title=_title(title, f'calibration, ECE {ece:.3f}'))
    axes.legend(frameon=False, loc='upper left')
    counts.bar(edges[:-1], curve.count, np.diff(edges), align='edge', color=BLUE, edgecolor='white')
    counts.set(xlabel='stated probability of the response it prefers', ylabel='pairs', xlim=(0.5, 1.005))
    _tidy(axes, counts)
  return True


def _rewards(scored: Sequence[Scored], path: Path, title: str) -> bool:
  kept = [record for record in scored if not record.refused]
  split = lambda won: np.concatenate([np.empty(0), *(record.rewards[_side(record, won)] for record in kept)])
  chosen, rejected = split(True), split(False)
  if not len(chosen):
    return False
  edges = np.histogram_bin_edges(np.concatenate([chosen, rejected]), bins=40)
  with _figure(path) as figure:
    axes = figure.subplots()
    for values, color, label in ((rejected, ORANGE, 'rejected'), (chosen, BLUE, 'chosen')):
      axes.hist(values, edges, color=color, alpha=0.35)
      axes.hist(values, edges, color=color, histtype='step', linewidth=1.5, label=f'{label} (mean {values.mean():.2f})')
      axes.axvline(values.mean(), color=color, linestyle='--', linewidth=1)
    axes.set(xlabel='reward', ylabel='comparisons', title=_title(title, 'rewards'))
    _tidy(axes)
    axes.legend(frameon=False)
  return True


def _side(record: Scored, won: bool) -> np.ndarray:
  """Indices of the preferred (or the other) response of each comparison with a preference."""
  winner, loser = np.nonzero(record.wins > 0.5)
  return winner if won else loser


def _length(scored: Sequence[Scored], path: Path, title: str) -> bool:
  rewards, lengths, _ = flat_responses(scored)
  if len(np.unique(lengths)) < 2:
    return False
  edges = np.unique(np.quantile(lengths, np.linspace(0, 1, 11)))
  place = np.clip(np.searchsorted(edges, lengths, side='right') - 1, 0, len(edges) - 2)
  parts = [place == b for b in np.unique(place)]
  means = np.array([[lengths[part].mean(), rewards[part].mean(), 1.96 * rewards[part].std() / np.sqrt(part.sum())] for part in parts])
  some = np.random.default_rng(0).permutation(len(rewards))[:4000]
  with _figure(path) as figure:
    axes = figure.subplots()
    axes.scatter(lengths[some], rewards[some], s=7, color=BLUE, alpha=0.25, linewidths=0, rasterized=True)
    axes.errorbar(*means.T, color=ORANGE, marker='o', linewidth=1.6, capsize=2, label='mean by decile of length (95 % interval)')
    if lengths.max() > 20 * max(np.median(lengths), 1):
      axes.set_xscale('log')
    axes.set(xlabel='response length (tokens)', ylabel='reward', title=_title(title, 'reward against length'))
    _tidy(axes)
    axes.legend(frameon=False)
  return True


def _subsets(scored: Sequence[Scored], path: Path, title: str) -> bool:
  pairs = compared_pairs(scored)
  right = accuracy.agreement(pairs.logits, pairs.wins)
  names = [name for name in np.unique(pairs.subsets) if np.any(~np.isnan(right[pairs.subsets == name]))]
  if len(names) < 2:
    return False
  found = {name: accuracy.clustered_mean(right[pairs.subsets == name], pairs.groups[pairs.subsets == name]) for name in names}
  names.sort(key=lambda name: found[name][0])
  means, errors = np.array([found[name] for name in names]).T
  with _figure(path, height=1.3 + 0.32 * len(names)) as figure:
    axes = figure.subplots()
    axes.barh(range(len(names)), means, color=BLUE, alpha=0.85, height=0.7)
    axes.errorbar(means, range(len(names)), xerr=1.96 * np.nan_to_num(errors), fmt='none', color='black', elinewidth=1, capsize=2)
    axes.axvline(0.5, color=GREY, linestyle='--', linewidth=1)
    counts = [int(np.sum(~np.isnan(right[pairs.subsets == name]))) for name in names]
    axes.set_yticks(range(len(names)), [f'{name or "none"} ({count})' for name, count in zip(names, counts, strict=True)])
    axes.set(xlim=(0, 1), xlabel='pairwise accuracy (95 % interval; dashed: chance)', title=_title(title, 'accuracy by subset (pairs)'))
    _tidy(axes)
  return True


@contextlib.contextmanager
def _figure(path: Path | str, *, width: float = 6.4, height: float = 4.2):
  """A figure that is written to `path` at the end; never touches pyplot, so notebooks keep their backend."""
  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  yield figure
  Path(path).parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=150)


def _tidy(*axes) -> None:
  for ax in axes:
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)


def _title(title: str, what: str) -> str:
  return f'{title}: {what}' if title else what
