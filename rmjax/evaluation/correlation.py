"""Agreement of labels and correlation of figures, with tests: do two languages prefer alike, does a benchmark foretell what training gives?

Dimensions: I items, L languages (or raters), M observations (models).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float, Num, Shaped
import numpy as np
from scipy import stats

from rmjax.evaluation import bootstrap, length

_BATCH = 500  # permutations held at a time


class Correlation(NamedTuple):
  """A correlation and how sure it is.

  Attributes:
    r: the correlation.
    p_value: two-sided, of x and y being independent.
    low: end of the 95 % interval.
    high: other end.
  """

  r: float
  p_value: float
  low: float
  high: float


def kappa(a: Shaped[np.ndarray, 'I'], b: Shaped[np.ndarray, 'I']) -> float:
  """Cohen's kappa: agreement beyond what the two marginals alone would give, (p_o - p_e) / (1 - p_e).

  Args:
    a: a label of each item, of any kind; items with a NaN on either side are left out.
    b: another label of each.

  Returns:
    1 for full agreement, 0 for that of chance, below it for less. Where both say the same one thing of everything, p_e = 1 and kappa is 1 by
    definition here (it is 0 / 0). NaN without items.

  Reference: Cohen (1960); Gureja et al., M-RewardBench (2024), for preferences in two languages.
  """
  known = (a == a) & (b == b)  # NaN alone differs from itself
  names, codes = np.unique(np.concatenate([a[known], b[known]]), return_inverse=True)
  if not len(codes):
    return np.nan
  if len(names) == 1:
    return 1.0
  one, two = np.split(codes, 2)
  observed = np.mean(one == two)
  expected = np.bincount(one, minlength=len(names)) @ np.bincount(two, minlength=len(names)) / len(one) ** 2
  return float((observed - expected) / (1 - expected))


def kappa_matrix(labels: Shaped[np.ndarray, 'I L']) -> Float[np.ndarray, 'L L']:
  """Kappa of every two columns."""
  return np.array([[kappa(one, two) for two in labels.T] for one in labels.T], np.float64)


def pearson_test(x: Num[np.ndarray, 'M'], y: Num[np.ndarray, 'M'], *, permutations: int = 9999, seed: int = 0) -> Correlation:
  """Linear correlation, with a permutation test and a bootstrap interval.

  Args:
    x: one figure an observation (a model's score on a benchmark).
    y: another (what training against it gave).
    permutations: of the test; all M! of them where these are not more, so that the p-value of few observations is exact.
    seed: of permutations and bootstrap.

  Returns:
    The p-value is twice the smaller tail's share of permutations with so extreme a correlation, at most 1. The interval is that of
    `bootstrap.interval`, over observations. NaN where x or y is constant.

  Reference: Pitman (1937).
  """
  return _test(length.pearson, lambda v: v, x, y, permutations, seed)


def spearman_test(x: Num[np.ndarray, 'M'], y: Num[np.ndarray, 'M'], *, permutations: int = 9999, seed: int = 0) -> Correlation:
  """The same for rank correlation, which no monotone transform changes; see `pearson_test`."""
  return _test(length.spearman, length.ranks, x, y, permutations, seed)


def _test(statistic: Callable[..., float], prepare: Callable[[Any], Any], x: np.ndarray, y: np.ndarray, permutations: int, seed: int) -> Correlation:
  r = statistic(x, y)
  if np.isnan(r):
    return Correlation(np.nan, np.nan, np.nan, np.nan)
  low, high = bootstrap.interval(statistic, x, y, groups=np.arange(len(x)), seed=seed)
  x, y = (np.asarray(prepare(v), np.float64) - np.mean(prepare(v)) for v in (x, y))  # what permutations leave alone is taken out: r is a product
  product = lambda v, axis: np.sum(v * y, axis)
  test = stats.permutation_test((x,), product, permutation_type='pairings', vectorized=True, n_resamples=permutations, batch=_BATCH, rng=seed)
  return Correlation(r, float(test.pvalue), low, high)
