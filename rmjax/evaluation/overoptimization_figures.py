"""Figures of over-optimization, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

from rmjax.errors import InputError
from rmjax.evaluation.overoptimization import Curves, overoptimization

COLORS = ('#2b6cb0', '#dd6b20', '#2f855a', '#805ad5', '#b83280', '#718096', '#975a16', '#2c7a7b')


def overoptimization_curves(runs: Mapping[str, Sequence[Curves]], out: Path | str, *, names: Sequence[str]) -> Path:
  """Draws gold, and each proxy, against the divergence from the reference and gold against each proxy.

  Args:
    runs: method -> its runs, one a seed. Each run is a thin line; the mean over seeds, which have the same steps, a thick one, with a dot where it peaks.
    out: the file.
    names: of the proxies.

  Raises:
    InputError: there are no runs, or those of a method have different steps.
  """
  if not runs or not all(runs.values()):
    raise InputError('over-optimization: there are no runs to draw')
  panels = [('gold', 'sqrt(KL)'), *((name, 'sqrt(KL)') for name in names), *(('gold', name) for name in names)]
  figure = Figure(figsize=(4.2 * len(panels), 3.8), layout='constrained')
  FigureCanvasAgg(figure)
  for axes, (vertical, horizontal) in zip(np.ravel(figure.subplots(1, len(panels), squeeze=False)), panels, strict=True):
    for color, (method, curves) in zip(np.resize(COLORS, len(runs)), runs.items(), strict=True):
      if any(len(curve.steps) != len(curves[0].steps) for curve in curves):
        raise InputError(f"over-optimization: the runs of '{method}' are of different lengths")
      for curve in curves:
        axes.plot(_column(curve, horizontal, names), _column(curve, vertical, names), color=color, linewidth=0.6, alpha=0.4)
      mean = Curves(*(np.mean(parts, 0) for parts in zip(*curves, strict=True)))
      x, y = _column(mean, horizontal, names), _column(mean, vertical, names)
      axes.plot(x, y, color=color, linewidth=1.8, label=method)
      if vertical == 'gold':
        top = int(np.searchsorted(mean.steps, overoptimization(mean)['peak_step']))
        axes.plot(x[top], y[top], 'o', color=color, markersize=5)
    axes.set(xlabel=horizontal, ylabel=vertical)
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
  axes.legend(frameon=False, fontsize=8)
  Path(out).parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out, dpi=150)
  return Path(out)


def _column(curves: Curves, name: str, names: Sequence[str]) -> np.ndarray:
  if name == 'sqrt(KL)':
    return np.sqrt(np.maximum(curves.kl, 0.0))  # the scale on which over-optimization is usually drawn
  return curves.gold if name == 'gold' else curves.proxies[:, list(names).index(name)]
