"""Distributions over ordered ratings 1..L, held as log-probabilities: who is rated higher, the mean, the spread.

Dimensions: B any leading ones, N responses, L levels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from rmjax.trees import Array

LOWEST = -1e3  # stands for log 0: e to its power is 0 in float32, and sums of a few of it are finite, as are their gradients


def log_exceeds(log_a: Float[Array, '*B N L'], log_b: Float[Array, '*B N L']) -> Float[Array, '*B N N']:
  """Log sum_{k > l} a_i(k) b_j(l) for all i, j: one running sum over levels, never a [N, N, L, L] table.

  Args:
    log_a: logs of weights of the higher level; -inf will do.
    log_b: of the lower.

  Returns:
    The logs, finite.
  """
  log_a, log_b = (jnp.maximum(x.astype(jnp.float32), LOWEST) for x in (log_a, log_b))
  below = jax.lax.cumlogsumexp(log_b, axis=log_b.ndim - 1)
  return jax.nn.logsumexp(log_a[..., :, None, 1:] + below[..., None, :, :-1], axis=-1)


def log_preference(log_p: Float[Array, '*B N L']) -> Float[Array, '*B N N']:
  """Log P(s_i > s_j) of independent ratings; what is missing from P(s_i > s_j) + P(s_j > s_i) = 1 is the chance of a tie.

  Args:
    log_p: log-probabilities of each response's rating.

  Returns:
    The logs. Where P is 0 they are finite (about -1000).

  Reference: OPRM, Learning Ordinal Probabilistic Reward from Preferences (2026), the closed form of P(S_c > S_r).
  """
  return log_exceeds(log_p, log_p)


def expectation(log_p: Float[Array, '*B N L']) -> Float[Array, '*B N']:
  """Mean rating, in [1, L]."""
  return jnp.sum(jnp.exp(log_p.astype(jnp.float32)) * _levels(log_p), -1)


def variance(log_p: Float[Array, '*B N L']) -> Float[Array, '*B N']:
  """Variance of the rating: how unsure it is, or how divided those who gave it."""
  return jnp.sum(jnp.exp(log_p.astype(jnp.float32)) * (_levels(log_p) - expectation(log_p)[..., None]) ** 2, -1)


def _levels(log_p: Float[Array, '*B N L']) -> Float[Array, 'L']:
  return jnp.arange(1, log_p.shape[-1] + 1, dtype=jnp.float32)
