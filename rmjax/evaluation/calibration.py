"""Do the model's probabilities mean what they say?

A pair stands once, in an orientation that carries no meaning (often the chosen response first, whose outcome is always 1), so every
statistic here is the same for (logit, win) and (-logit, 1 - win).

Dimensions: P pairs, B bins.
"""

from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np


class Reliability(NamedTuple):
  """Stated and observed frequency by bin of confidence; NaN in empty bins."""

  confidence: Float[np.ndarray, 'B']  # mean stated probability of the response the model prefers
  accuracy: Float[np.ndarray, 'B']  # how often it was the preferred one
  count: Int[np.ndarray, 'B']


def reliability(logits: Float[np.ndarray, 'P'], wins: Float[np.ndarray, 'P'], bins: int = 10) -> Reliability:
  """Reliability curve of the confidence max(p, 1 - p), p = sigmoid(logit), in bins of equal width on [0.5, 1].

  Args:
    logits: of P(i preferred to j).
    wins: outcome, 0 or 1; a tie is 0.5, and soft labels are anything between.
    bins: number of bins.

  Reference: Guo et al., On Calibration of Modern Neural Networks (2017), section 2.
  """
  confidence = 1 / (1 + np.exp(-np.abs(logits)))
  outcome = np.where(logits == 0, 0.5, np.where(logits > 0, wins, 1 - wins))  # a logit of 0 prefers neither
  place = np.minimum((confidence - 0.5) * 2 * bins, bins - 1).astype(int)
  count = np.bincount(place, minlength=bins)
  mean = lambda values: np.divide(np.bincount(place, values, bins), count, out=np.full(bins, np.nan), where=count > 0)
  return Reliability(mean(confidence), mean(outcome), count)


def expected_calibration_error(curve: Reliability) -> float:
  """Mean over pairs of |accuracy - confidence| of their bin; NaN without pairs.

  Biased upwards on few pairs: about sqrt(2 B / (pi P)) / 2 even for a calibrated model near 0.5.

  Reference: Naeini et al. (2015); Guo et al. (2017), eq. 3.
  """
  total = curve.count.sum()
  return float(np.nansum(curve.count * np.abs(curve.accuracy - curve.confidence)) / total) if total else np.nan


def brier(logits: Float[np.ndarray, '*P'], wins: Float[np.ndarray, '*P']) -> Float[np.ndarray, '*P']:
  """Expected squared error of p = sigmoid(logit) against an outcome drawn with probability `wins`; 0.25 for p = 0.5 whatever the label.

  Reference: Brier (1950).
  """
  p = 0.5 * (1 + np.tanh(0.5 * logits))
  return wins * (1 - p) ** 2 + (1 - wins) * p**2


def negative_log_likelihood(logits: Float[np.ndarray, '*P'], wins: Float[np.ndarray, '*P']) -> Float[np.ndarray, '*P']:
  """Cross-entropy of sigmoid(logit) against `wins`, in nats; ln 2 for p = 0.5 whatever the label."""
  return wins * np.logaddexp(0, -logits) + (1 - wins) * np.logaddexp(0, logits)
