"""How often a model prefers what was preferred.

Dimensions: P pairs, N responses of a record.
"""

from collections.abc import Callable

from jaxtyping import Float, Num, Shaped
import numpy as np

from rmjax.evaluation import bootstrap


def agreement(logits: Float[np.ndarray, '*P'], wins: Float[np.ndarray, '*P']) -> Float[np.ndarray, '*P']:
  """Whether each pair is ordered as it was labelled.

  Args:
    logits: of P(i preferred to j).
    wins: how much i was preferred to j; or any other measure of which one is better, shifted so that 0.5 is a tie.

  Returns:
    1 for the right order, 0 for the wrong one, 0.5 where the model ties; NaN where the label is a tie and there is no right order.
  """
  right = 0.5 + 0.5 * np.sign(logits) * np.sign(wins - 0.5)
  return np.where(wins == 0.5, np.nan, right)


def clustered_mean(values: Float[np.ndarray, 'P'], groups: Shaped[np.ndarray, 'P']) -> tuple[float, float]:
  """Mean of what is not NaN, with a standard error that lets values of one group depend on one another.

  Args:
    values: one an observation.
    groups: observations of one group (a prompt) are clustered; groups are independent.

  Returns:
    The mean, NaN without values; and its standard error, NaN with fewer than two groups. When every group is a single value it
    is the usual standard deviation / sqrt(P).

  Reference: Liang & Zeger (1986), with the factor G / (G - 1) for G groups; for evaluations Miller, Adding Error Bars to Evals (2024).
  """
  known = ~np.isnan(values)
  values, (_, group) = values[known], np.unique(groups[known], return_inverse=True)
  if not len(values):
    return np.nan, np.nan
  mean = values.mean()
  residuals = np.bincount(group, values - mean)
  if len(residuals) < 2:
    return float(mean), np.nan
  return float(mean), float(np.sqrt(len(residuals) / (len(residuals) - 1) * np.sum(residuals**2)) / len(values))


def clustered_bootstrap(statistic: Callable[..., float], *values: Num[np.ndarray, 'M'], groups: Shaped[np.ndarray, 'M'], resamples: int = 200) -> float:
  """Standard error of a statistic that is no mean, such as a correlation; groups are clustered as in `clustered_mean`.

  Args:
    statistic: of arrays like `values`; their order must not matter.
    values: one an observation, each.
    groups: drawn with replacement, whole.
    resamples: draws; the error of the error is about 1 / sqrt(2 resamples) of it.

  Returns:
    Standard deviation over the draws, the same for the same data; NaN with fewer than two groups.

  Reference: Efron (1979); see `bootstrap.resample`.
  """
  found = bootstrap.resample(statistic, *values, groups=groups, resamples=resamples)
  return float(np.nanstd(found, ddof=1)) if np.sum(~np.isnan(found)) > 1 else np.nan


def best_of_n(rewards: Float[np.ndarray, 'N'], wins: Float[np.ndarray, 'N N']) -> tuple[float, float]:
  """Whether the response with the highest reward is among the preferred ones.

  The preferred ones are those with the largest share of wins in their own comparisons: the chosen ones of chosen against rejected, the
  top-rated ones of ratings. Responses that were never compared do not take part.

  Args:
    rewards: one a response.
    wins: wins[i, j] is how much i was preferred to j; wins + wins^T = 1 where compared.

  Returns:
    (1 or 0, the share of preferred ones among the highest where k tie there; the same for a random choice). NaN for both where all
    are preferred alike, so that there is nothing to choose.

  Reference: RewardBench 2, Malik et al. (2025): one chosen of four responses, chance 0.25.
  """
  compared = wins + wins.T
  takes_part = compared.sum(1) > 0
  share = np.where(takes_part, wins.sum(1) / np.maximum(compared.sum(1), 1), -1)
  preferred = takes_part & np.isclose(share, share.max(initial=-1))
  if not takes_part.any() or np.array_equal(preferred, takes_part):
    return np.nan, np.nan
  highest = takes_part & (rewards == rewards[takes_part].max())
  return float(preferred[highest].mean()), float(preferred.sum() / takes_part.sum())
