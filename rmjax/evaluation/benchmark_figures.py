"""Figures of benchmarks, as PNG files."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np


def heat_map(values: Float[np.ndarray, 'R C'], out: Path | str, *, rows: Sequence[str], columns: Sequence[str], label: str, title: str) -> Path:
  """Draws a matrix of shares, each with its number; cells that are NaN stay white.

  Args:
    values: in [0, 1].
    out: PNG file; its directory is made if absent.
    rows: their names, from the top.
    columns: their names.
    label: what the values are.
    title: of the figure.
  """
  figure = Figure(figsize=(2.4 + 1.15 * len(columns), 1.5 + 0.42 * len(rows)), layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.subplots()
  image = axes.imshow(values, vmin=0, vmax=1, cmap='RdYlGn', aspect='auto')
  axes.set_xticks(range(len(columns)), columns)
  axes.set_yticks(range(len(rows)), rows)
  for (row, column), value in np.ndenumerate(values):
    if not np.isnan(value):
      axes.text(column, row, f'{value:.2f}', ha='center', va='center', fontsize=9)
  axes.set_title(title)
  figure.colorbar(image, label=label)
  Path(out).parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out, dpi=150)
  return Path(out)
