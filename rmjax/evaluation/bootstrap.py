"""Intervals and tests by resampling, for any statistic of observations that come in groups.

Observations of one group (the languages of an item, the pairs of a prompt) depend on one another, so groups are drawn whole.

Dimensions: M observations, G groups, B resamples.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float, Num, Shaped
import numpy as np
from scipy import stats

_BATCH = 200  # sign vectors held at a time


class Paired(NamedTuple):
  """A difference of two models on the same items.

  Attributes:
    mean: of the differences.
    low: end of the interval of the mean.
    high: other end.
    p_value: two-sided, of there being no difference.
  """

  mean: float
  low: float
  high: float
  p_value: float


def resample(
  statistic: Callable[..., float], *values: Num[np.ndarray, 'M ...'], groups: Shaped[np.ndarray, 'M'], resamples: int = 1000, seed: int = 0
) -> Float[np.ndarray, 'B']:
  """A statistic of as many groups as there are, drawn with replacement, again and again.

  Args:
    statistic: of arrays like `values`; the order of observations must not matter. `np.mean` and `np.nanmean` of one array are recognised and
      computed from the groups' sums, a hundred times faster.
    values: one an observation, each.
    groups: drawn whole.
    resamples: B.
    seed: of the draws; the same groups are drawn for any statistic.

  Returns:
    The statistic of each draw; empty with fewer than two groups.

  Reference: Efron (1979); for clusters Davison & Hinkley, Bootstrap Methods and their Application (1997), section 3.8.
  """
  names, group = np.unique(groups, return_inverse=True)
  if len(names) < 2:
    return np.empty(0)
  rng = np.random.default_rng(seed)
  times = (np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names)) for _ in range(resamples))
  if statistic in (np.mean, np.nanmean) and len(values) == 1 and values[0].ndim == 1:
    x = values[0].astype(np.float64)
    known = np.ones(len(x), bool) if statistic is np.mean else ~np.isnan(x)
    sums = np.stack([np.bincount(group[known], w, len(names)) for w in (x[known], np.ones(known.sum()))], -1)
    totals = np.stack([drawn @ sums for drawn in times])
    return np.divide(totals[:, 0], totals[:, 1], out=np.full(resamples, np.nan), where=totals[:, 1] > 0)
  rows = np.arange(len(group))
  draws = (np.repeat(rows, drawn[group]) for drawn in times)
  return np.array([statistic(*(x[draw] for x in values)) for draw in draws], np.float64)


def interval(
  statistic: Callable[..., float],
  *values: Num[np.ndarray, 'M ...'],
  groups: Shaped[np.ndarray, 'M'],
  level: float = 0.95,
  resamples: int = 1000,
  seed: int = 0,
) -> tuple[float, float]:
  """Confidence interval of a statistic: the percentile one.

  It never leaves the statistic's range, does not change with a monotone transform, and is defined where a statistic hardly varies (an accuracy of
  1). BCa, which also corrects skewness, is not, and costs a further evaluation for every group. Of few groups the percentile interval is too
  narrow: for 12 points of a correlation of 0.7 the 95 % one covers 91 %, and BCa 93 %.

  Args:
    statistic: see `resample`.
    values: one an observation, each.
    groups: drawn whole.
    level: of confidence.
    resamples: draws.
    seed: of the draws.

  Returns:
    (low, high); draws that have no statistic (NaN) are left out. NaN with fewer than two groups or two draws.

  Reference: Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
  """
  found = resample(statistic, *values, groups=groups, resamples=resamples, seed=seed)
  found = found[~np.isnan(found)]
  if len(found) < 2:
    return np.nan, np.nan
  low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)


def paired(differences: Num[np.ndarray, 'M'], groups: Shaped[np.ndarray, 'M'], *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> Paired:
  """Whether two models differ on the same items.

  Args:
    differences: figure of one model less that of the other, one an observation; NaN is left out.
    groups: observations of one item (all languages, all pairs) are one.
    level: of the interval.
    resamples: draws of the interval, and sign vectors of the test; all 2^G of them where these are not more.
    seed: of the draws.

  Returns:
    The mean and its bootstrap interval. The p-value is of the permutation test: were the models alike, each group's sum would have either sign.
    It needs no large number of groups, and is at least 2 / (resamples + 1). NaN for all but the mean with fewer than two groups.

  Reference: Fisher (1935); Koehn, Statistical Significance Tests for Machine Translation Evaluation (2004).
  """
  known = ~np.isnan(differences)
  differences, (names, group) = differences[known].astype(np.float64), np.unique(groups[known], return_inverse=True)
  if len(names) < 2:
    return Paired(float(differences.mean()) if len(differences) else np.nan, np.nan, np.nan, np.nan)
  low, high = interval(np.mean, differences, groups=group, level=level, resamples=resamples, seed=seed)
  sums = np.bincount(group, differences)
  total = lambda x, axis: np.sum(x, axis)  # of a fixed number of observations: orders sign vectors as the mean does
  test = stats.permutation_test((sums,), total, permutation_type='samples', vectorized=True, n_resamples=resamples, batch=_BATCH, rng=seed)
  return Paired(float(differences.mean()), low, high, float(test.pvalue))
