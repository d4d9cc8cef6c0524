"""How much of a reward is length: correlations, accuracy by which response is longer, and what length alone would reach.

Dimensions: M responses, P pairs.
"""

from collections.abc import Iterable

from jaxtyping import Float, Num, Shaped
import numpy as np

from rmjax.data.pipeline import Encode
from rmjax.data.records import Record
from rmjax.errors import InputError


def pearson(x: Num[np.ndarray, 'M'], y: Num[np.ndarray, 'M']) -> float:
  """Linear correlation; NaN where either is constant."""
  x, y = (np.asarray(v, np.float64) - np.mean(v) if len(v) else np.zeros(0) for v in (x, y))
  scale = np.sqrt(np.sum(x**2) * np.sum(y**2))
  return float(np.sum(x * y) / scale) if scale > 0 else np.nan


def ranks(x: Num[np.ndarray, 'M']) -> Float[np.ndarray, 'M']:
  """Ranks from 1; equal values share the mean of theirs."""
  _, place, count = np.unique(x, return_inverse=True, return_counts=True)
  return (np.cumsum(count) - (count - 1) / 2)[place]


def spearman(x: Num[np.ndarray, 'M'], y: Num[np.ndarray, 'M']) -> float:
  """Rank correlation, the Pearson correlation of ranks; no monotone transform of a reward changes it."""
  return pearson(ranks(x), ranks(y))


def within(values: Num[np.ndarray, 'M'], records: Shaped[np.ndarray, 'M']) -> Float[np.ndarray, 'M']:
  """Values less their record's mean: what is left when easy prompts that ask for long answers are taken out."""
  _, record, count = np.unique(records, return_inverse=True, return_counts=True)
  return values - (np.bincount(record, values) / count)[record]


def ranks_within(values: Num[np.ndarray, 'M'], records: Shaped[np.ndarray, 'M']) -> Float[np.ndarray, 'M']:
  """Ranks among the responses of the same record, less their mean."""
  values, out = np.asarray(values), np.zeros(len(values))
  order = np.argsort(records, kind='stable')
  starts = np.flatnonzero(np.diff(np.asarray(records)[order])) + 1
  for rows in np.split(order, starts):
    out[rows] = ranks(values[rows])
  return within(out, records)


def longer_won(wins: Float[np.ndarray, 'P'], lengths: Num[np.ndarray, 'P 2']) -> Float[np.ndarray, 'P']:
  """1 where the longer response was preferred (C-longer), 0 where the shorter was (R-longer); NaN for ties and equal lengths.

  Reference: the split by which Shen et al., Loose Lips Sink Ships (2023), and FiMi (2025) show length bias: a biased model is right on
  C-longer pairs and wrong on R-longer ones.
  """
  side = np.sign(wins - 0.5) * np.sign(lengths[:, 0] - lengths[:, 1])
  return np.where(side == 0, np.nan, (side > 0).astype(np.float64))


def length_features(lengths: Num[np.ndarray, 'P 2']) -> Float[np.ndarray, 'P 2']:
  """Difference in length and difference in log length (of length + 1) of each pair; swapping a pair flips both signs."""
  lengths = np.asarray(lengths, np.float64)
  return np.stack([lengths[:, 0] - lengths[:, 1], np.log1p(lengths[:, 0]) - np.log1p(lengths[:, 1])], -1)


def pair_lengths(records: Iterable[Record], encode: Encode) -> tuple[Num[np.ndarray, 'P 2'], Float[np.ndarray, 'P']]:
  """Lengths in tokens and wins of all compared pairs, without a model; records that `encode` refuses are left out."""
  lengths, wins = [np.empty((0, 2))], [np.empty(0)]
  for record in records:
    tree = encode(record)
    if isinstance(tree, str):
      continue
    tokens = np.array([sum(len(segment.tokens) for segment in tree.segments if segment.response == n) for n in range(len(record.responses))])
    i, j = np.nonzero(np.triu(record.wins + record.wins.T, 1))
    lengths.append(np.stack([tokens[i], tokens[j]], -1))
    wins.append(record.wins[i, j])
  return np.concatenate(lengths), np.concatenate(wins)


def fit_length_baseline(lengths: Num[np.ndarray, 'P 2'], wins: Float[np.ndarray, 'P'], *, ridge: float = 1e-3) -> Float[np.ndarray, '2']:
  """Logistic regression of which response is preferred on `length_features`, by Newton's method, without an intercept: a pair's orientation means nothing.

  Args:
    lengths: tokens of both responses.
    wins: how much the first was preferred; soft labels allowed.
    ridge: weight, against the mean loss, of half the squared norm of the coefficients of features scaled to a mean square of 1; keeps
      them finite where length separates the pairs.

  Returns:
    Coefficients: `length_features(lengths) @ coefficients` are logits.

  Raises:
    InputError: no pairs.

  Reference: iteratively reweighted least squares, Hastie et al., The Elements of Statistical Learning (2009), section 4.4.1.
  """
  if not len(wins):
    raise InputError('a length baseline needs at least one compared pair to fit')
  features = length_features(lengths)
  scale = np.sqrt(np.mean(features**2, axis=0))
  scale = np.where(scale > 0, scale, 1.0)
  x = features / scale
  penalty = ridge * np.eye(x.shape[1])

  def loss(b: np.ndarray) -> float:
    z = x @ b
    return np.mean(np.logaddexp(0, z) - wins * z) + 0.5 * b @ penalty @ b

  b = np.zeros(x.shape[1])
  for _ in range(100):
    p = 0.5 * (1 + np.tanh(0.5 * (x @ b)))
    gradient = x.T @ (p - wins) / len(wins) + penalty @ b
    hessian = (x * (p * (1 - p))[:, None]).T @ x / len(wins) + penalty
    step = np.linalg.solve(hessian, gradient)
    while loss(b - step) > loss(b) and np.max(np.abs(step)) > 1e-12:  # far from the optimum a full step may overshoot
      step = step / 2
    b = b - step
    if np.max(np.abs(step)) < 1e-10:
      break
  return b / scale
