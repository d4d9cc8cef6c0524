"""Whether preferences run in circles: majorities of a round robin, its cyclic triads, and how many of them noise alone would make.

Dimensions: D any leading ones (draws), N players.
"""

from jaxtyping import Float, Int, Num
import numpy as np


def majority(wins: Num[np.ndarray, '*D N N']) -> Float[np.ndarray, '*D N N']:
  """Who beats whom more often than not.

  Args:
    wins: wins[i, j] is how often i was preferred to j; halves for ties. Any scale.

  Returns:
    1 where i beats j, 0 where j beats i, 0.5 where neither does or they were never compared. Shares that differ from 1/2 by rounding alone
    (sums of thirds of a vote) are 1/2.
  """
  other = np.swapaxes(wins, -1, -2)
  return np.where(np.isclose(wins, other, rtol=1e-9, atol=0), 0.5, (wins > other).astype(np.float64))


def cyclic_triads(wins: Num[np.ndarray, '*D N N']) -> tuple[Int[np.ndarray, '*D'], Int[np.ndarray, '*D']]:
  """How many triples of players beat one another in a circle.

  Args:
    wins: as for `majority`.

  Returns:
    The cyclic triads, and the decided ones: triples of which no pair stands at 1/2.

  Reference: Kendall & Babington Smith, On the Method of Paired Comparisons (1940). Chance makes a quarter of decided triads cyclic.
  """
  beats = (majority(wins) == 1).astype(np.float64)  # exact: the counts are far below 2^53
  decided = beats + np.swapaxes(beats, -1, -2)
  closed = lambda a: np.rint(np.sum((a @ a) * np.swapaxes(a, -1, -2), (-2, -1))).astype(np.int64)  # tr a^3: each cycle from each start
  return np.asarray(closed(beats) // 3), np.asarray(closed(decided) // 6)


def fit_bradley_terry(wins: Num[np.ndarray, 'N N'], *, ridge: float = 1e-3, steps: int = 100) -> Float[np.ndarray, 'N']:
  """Strengths of the best-fitting Bradley-Terry model, P(i beats j) = sigmoid(s_i - s_j), by Newton's method.

  Args:
    wins: as for `majority`, in comparisons.
    ridge: of s, which keeps players who win or lose everything finite; it has the weight of about so many comparisons.
    steps: most iterations.

  Returns:
    Strengths, of mean 0.

  Reference: Bradley & Terry (1952).
  """
  games, s = wins + wins.T, np.zeros(len(wins))
  for _ in range(steps):
    p = _sigmoid(s[:, None] - s[None, :])
    curvature = games * p * (1 - p)
    hessian = np.diag(curvature.sum(1) + ridge) - curvature
    move = np.linalg.solve(hessian, wins.sum(1) - (games * p).sum(1) - ridge * s)
    s = s + move * min(1.0, 1.0 / np.abs(move).max(initial=1e-12))  # at most 1 at a time, else a first step overshoots where one side always wins
    if np.abs(move).max(initial=0) < 1e-10:
      break
  return s - s.mean()


def expected_cyclic_share(wins: Num[np.ndarray, 'N N'], *, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
  """Share of cyclic triads that sampling noise alone would give, if the truth were the best-fitting Bradley-Terry model, which has none.

  Args:
    wins: as for `majority`, in comparisons. Their numbers are kept, rounded to whole ones; comparisons are drawn independently of one
      another, and none of them is a tie.
    draws: simulated round robins.
    seed: of the draws.

  Returns:
    Mean and 95 % quantile over the draws of cyclic / decided triads; NaN where no draw decides a triad.
  """
  games, s = np.rint(wins + wins.T).astype(np.int64), fit_bradley_terry(wins)
  rng = np.random.default_rng(seed)
  upper = np.triu(rng.binomial(games, _sigmoid(s[:, None] - s[None, :]), (draws, *games.shape)), 1)
  cyclic, triads = cyclic_triads(upper + np.swapaxes(np.triu(games, 1) - upper, -1, -2))
  share = cyclic[triads > 0] / triads[triads > 0]
  return (float(share.mean()), float(np.quantile(share, 0.95))) if len(share) else (np.nan, np.nan)


def _sigmoid(x: Float[np.ndarray, '*D']) -> Float[np.ndarray, '*D']:
  return 0.5 * (1 + np.tanh(x / 2))  # no overflow
