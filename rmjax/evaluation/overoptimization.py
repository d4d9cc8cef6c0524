"""Over-optimization: gold reward against the proxies that were optimized and the distance from the reference, over a run.

Dimensions: E evaluations of a run, C proxies, P points of one or more runs, F features.
"""

from collections.abc import Sequence
import itertools
import json
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
import numpy as np
from scipy import stats

from rmjax.errors import InputError

CANDIDATES = 20_000


class Curves(NamedTuple):
  """What was measured along a run.

  Attributes:
    steps: of training at each evaluation, increasing.
    gold: mean gold reward.
    proxies: mean of each proxy.
    kl: divergence from the reference, in nats a response.
  """

  steps: Float[np.ndarray, 'E']
  gold: Float[np.ndarray, 'E']
  proxies: Float[np.ndarray, 'E C']
  kl: Float[np.ndarray, 'E']


class ProxyPoint(NamedTuple):
  """Where a fitted surface of gold over the proxies is highest.

  Attributes:
    point: the proxies there.
    gold: the surface there.
    inside: whether it lies within the visited region rather than on its edge, where gold may go on rising and the point is only the furthest one
      that was tried.
    error: root mean square of gold less the surface at the points.
  """

  point: Float[np.ndarray, 'C']
  gold: float
  inside: bool
  error: float


def read_curves(metrics: Path | str, *, gold: str, proxies: Sequence[str]) -> Curves:
  """Curves of the evaluations in a run's `metrics.jsonl`.

  Args:
    metrics: as `experiments.optimize_policy` writes it.
    gold: name of the reward function that nothing was trained on (weight 0).
    proxies: names of the others.

  Raises:
    InputError: no line has all of them.
  """
  names = [*(f'eval_rewards/{name}/mean' for name in (gold, *proxies)), 'eval_objective/kl']
  lines = [json.loads(line) for line in Path(metrics).read_text(encoding='utf-8').splitlines()]
  rows = {line['step']: [line[name] for name in names] for line in lines if all(line.get(name) is not None for name in names)}
  if not rows:
    raise InputError(f'{metrics} has no line with all of {", ".join(names)}')
  steps = np.array(sorted(rows), float)
  values = np.array([rows[step] for step in sorted(rows)], float)
  return Curves(steps, values[:, 0], values[:, 1:-1], values[:, -1])


def overoptimization(curves: Curves, *, names: Sequence[str] = (), window: int = 1) -> dict[str, float]:
  """Where gold peaks along a run and how much is lost after.

  Args:
    curves: of one run.
    names: of the proxies; '0', '1', ... if not given.
    window: evaluations that a moving average is over, odd. The peak is taken of this average: the largest of many noisy numbers lies above the
      curve, and away from its top.

  Returns:
    gold_first, gold_last, gold_peak; gold_drop, from peak to last (0 where gold is still rising); gold_area, mean gold over the run's steps by the
    trapezoid rule; peak_step, peak_kl, peak_<name>: where the peak is; kl_last, <name>_last, <name>_gain: how far a proxy rose from the first on.
    First and last are of the curve itself, and the rest is of the average.

  Raises:
    InputError: the curves are of different lengths, or not finite, or steps do not increase.
  """
  names = list(names) or [str(i) for i in range(curves.proxies.shape[1])]
  columns = np.concatenate([curves.gold[:, None], curves.kl[:, None], curves.proxies], 1) if _aligned(curves) else np.full((1, 1), np.nan)
  if not np.isfinite(columns).all() or np.any(np.diff(curves.steps) <= 0) or columns.shape[1] != 2 + len(names):
    raise InputError(f'over-optimization: {len(curves.steps)} increasing steps need as many finite values of gold, KL and of {len(names)} proxies')
  if window < 1 or window % 2 == 0:
    raise InputError(f'over-optimization: window = {window}: it must be odd and at least 1')
  smooth = np.stack([_moving_average(column, window) for column in columns.T], 1)
  gold = smooth[:, 0]
  top = int(np.argmax(gold))
  span = curves.steps[-1] - curves.steps[0]
  area = np.trapezoid(curves.gold, curves.steps) / span if span else curves.gold[0]
  figures = dict(
    gold_first=curves.gold[0],
    gold_last=curves.gold[-1],
    gold_peak=gold[top],
    gold_drop=gold[top] - gold[-1],
    gold_area=area,
    peak_step=curves.steps[top],
    peak_kl=smooth[top, 1],
    kl_last=curves.kl[-1],
  )
  for name, proxy, averaged in zip(names, curves.proxies.T, smooth[:, 2:].T, strict=True):
    figures |= {f'peak_{name}': averaged[top], f'{name}_last': proxy[-1], f'{name}_gain': proxy[-1] - proxy[0]}
  return {name: float(value) for name, value in figures.items()}


def fit_proxy_point(
  points: Float[np.ndarray, 'P C'], gold: Float[np.ndarray, 'P'], *, degree: int = 10, ridge: float = 1e-2, region: float = 0.05, seed: int = 0
) -> ProxyPoint:
  """Fits gold as a polynomial of the proxies and finds its maximum where runs have been.

  The polynomial is of total degree `degree` in Legendre polynomials of the proxies scaled to [-1, 1], which a ridge penalises alike. A surface of degree 10
  is wild where there is no data, so the maximum is sought among points whose density, by a Gaussian kernel estimate of the visited points, is
  at least what all but a share `region` of the visited points have. The maximum over all proxies is not that over each alone where they
  are correlated.

  Args:
    points: mean proxies at evaluations of runs; those of all runs together.
    gold: gold reward there. Its number is the number of gold queries that the thresholds have cost.
    degree: of the polynomial.
    ridge: added to the mean square of each feature.
    region: share of the visited points that lie outside.
    seed: of the candidates, drawn from the density.

  Raises:
    InputError: too few points to span the proxies, or not finite.

  Reference: Moskovitz et al. (2023): polynomial of degree 10, region by kernel density [from a summary of the paper]; basis and ridge are ours.
  """
  if points.ndim != 2 or len(points) != len(gold) or not (np.isfinite(points).all() and np.isfinite(gold).all()):
    raise InputError(f'proxy points: {points.shape} points and {gold.shape} gold rewards: give as many finite ones of each')
  low, high = points.min(0), points.max(0)
  try:
    density = stats.gaussian_kde(points.T)
  except (np.linalg.LinAlgError, ValueError) as e:
    raise InputError(f'proxy points: {len(points)} points do not span {points.shape[1]} proxies: add runs in which these move apart') from e
  floor = np.quantile(density(points.T), region)
  candidates = np.concatenate([points, density.resample(CANDIDATES, seed=seed).T])
  candidates = candidates[(density(candidates.T) >= floor) & np.all((candidates >= low) & (candidates <= high), 1)]
  scale = lambda x: 2 * (x - low) / (high - low) - 1
  powers = _powers(points.shape[1], degree)
  features, mean = _features(scale(points), powers), gold.mean()
  centre = features.mean(0)
  centred = features - centre
  matrix = centred.T @ centred / len(points) + ridge * np.eye(len(powers))
  coefficients = np.linalg.solve(matrix, centred.T @ (gold - mean) / len(points))
  surface = lambda x: mean + (_features(scale(x), powers) - centre) @ coefficients
  values = surface(candidates)
  best = candidates[np.argmax(values)]
  # A step of a fiftieth of the range in some direction leaves the region: then the maximum is its edge.
  steps = np.concatenate([np.eye(len(best)), -np.eye(len(best))]) * (high - low) / 50
  inside = bool(np.all(density((best + steps).T) >= floor) and np.all((best + steps >= low) & (best + steps <= high)))
  return ProxyPoint(best, float(values.max()), inside, float(np.sqrt(np.mean((gold - surface(points)) ** 2))))


def _aligned(curves: Curves) -> bool:
  return len(curves.steps) > 0 and len(curves.steps) == len(curves.gold) == len(curves.proxies) == len(curves.kl)


def _moving_average(values: Float[np.ndarray, 'E'], window: int) -> Float[np.ndarray, 'E']:
  """Over what there is of the window at the ends."""
  window = min(window, len(values) - (len(values) + 1) % 2)  # odd, and no longer than the curve
  kernel = np.ones(window)
  return np.convolve(values, kernel, 'same') / np.convolve(np.ones(len(values)), kernel, 'same')


def _powers(proxies: int, degree: int) -> list[tuple[int, ...]]:
  """Degrees in each proxy of all products of total degree 1 to `degree`."""
  return [powers for powers in itertools.product(range(degree + 1), repeat=proxies) if 1 <= sum(powers) <= degree]


def _features(x: Float[np.ndarray, 'P C'], powers: Sequence[tuple[int, ...]]) -> Float[np.ndarray, 'P F']:
  most = max(map(max, powers))
  basis = np.polynomial.legendre.legvander(x, most)  # [P, C, degree + 1]
  return np.stack([np.prod([basis[:, c, power] for c, power in enumerate(each)], 0) for each in powers], 1)
