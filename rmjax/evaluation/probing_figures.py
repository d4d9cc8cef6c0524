"""Figures of probes, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtyping import Float, Num
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

COLORS = ('#2b6cb0', '#90cdf4', '#718096', '#dd6b20')


def accuracies(rows: Sequence[str], bars: Mapping[str, Sequence[float]], majority: Sequence[float], errors: Sequence[float], out: Path | str) -> Path:
  """Draws the accuracy of every probe of each dimension beside what the most frequent class alone reaches.

  Args:
    rows: dimensions.
    bars: probe -> its accuracy by dimension; the first has the errors.
    majority: a dashed line in each.
    errors: standard errors, drawn as 95 % intervals.
    out: the file; its directory is made if absent.
  """
  figure = Figure(figsize=(7.2, 1.5 + 0.62 * len(rows)), layout='constrained')
  FigureCanvasAgg(figure)
  axes, places, height = figure.subplots(), np.arange(len(rows)), 0.8 / len(bars)
  for number, (color, (name, values)) in enumerate(zip(COLORS, bars.items(), strict=False)):
    where = places + (number - (len(bars) - 1) / 2) * height
    axes.barh(where, values, height * 0.9, color=color, label=name, xerr=1.96 * np.nan_to_num(errors) if number == 0 else None, error_kw=dict(linewidth=1))
  for place, value in zip(places, majority, strict=True):
    axes.plot([value, value], [place - 0.45, place + 0.45], '--', color='black', linewidth=1, label='most frequent class' if place == 0 else None)
  axes.set_yticks(places, rows)
  axes.invert_yaxis()
  axes.set(xlim=(0, 1), xlabel='accuracy of a linear probe (95 % interval)')
  return _finish(figure, axes, out)


def distances(smallest: Float[np.ndarray, 'M'], lengths: Num[np.ndarray, 'M'], limit: float, correlation: float, out: Path | str) -> Path:
  """Draws the distance of each response to the nearest centroid against its length, and the limit beyond which it would be left out.

  Args:
    smallest: distance over all dimensions.
    lengths: tokens.
    limit: of the filter.
    correlation: of the two, by rank.
    out: the file; its directory is made if absent.
  """
  figure = Figure(figsize=(6.4, 4.2), layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.subplots()
  axes.scatter(lengths, smallest, s=7, color=COLORS[0], alpha=0.35, linewidths=0, rasterized=True)
  axes.axhline(limit, color=COLORS[3], linestyle='--', linewidth=1, label=f'limit: {np.nanmean(smallest <= limit):.0%} are kept')
  axes.set(xlabel='response length (tokens)', ylabel='distance to the nearest centroid', title=f'rank correlation with length {correlation:.2f}')
  return _finish(figure, axes, out)


def _finish(figure: Figure, axes, out: Path | str) -> Path:
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(alpha=0.25, linewidth=0.6)
  axes.set_axisbelow(True)
  axes.legend(frameon=False, fontsize=8, loc='upper left', bbox_to_anchor=(1, 1))
  Path(out).parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out, dpi=150)
  return Path(out)
