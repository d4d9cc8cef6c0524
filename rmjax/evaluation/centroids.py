"""Inference-time probing: how far a response's representation lies from those that were seen, by dimension; what is far is left out of updates.

A small distance to a dimension's centroids is read as "the reward relies on it here", and the smallest over dimensions as confidence. Distances
grow with sqrt(D) and often with length, so thresholds are quantiles, and the correlation with length belongs beside them.

Dimensions: N points, B responses, P dimensions of preference, K centroids, D features.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from rmjax.trees import Array


class Clusters(NamedTuple):
  """Centroids and what belongs to them.

  Attributes:
    centroids: means of their points.
    nearest: the centroid of each point.
    inertia: mean squared distance of points to their centroids.
  """

  centroids: Float[Array, 'K D']
  nearest: Int[Array, 'N']
  inertia: Float[Array, '']


@functools.partial(jax.jit, static_argnames=('k', 'iterations'))
def kmeans(key: jax.Array, x: Float[Array, 'N D'], k: int, iterations: int = 50, weights: Float[Array, 'N'] | None = None) -> Clusters:
  """K-means by Lloyd's algorithm from a k-means++ start.

  Args:
    key: PRNG key of the start.
    x: points.
    k: K.
    iterations: of Lloyd's algorithm; more than it needs change nothing.
    weights: of the points; 0 leaves one out, so that subsets of one array can be `vmap`ped over. All 1 if None. What has a weight of 0 must still be
      finite.

  Returns:
    The clusters. With fewer different points than K some centroids coincide.

  Reference: Lloyd (1982); Arthur & Vassilvitskii, k-means++ (2007).
  """
  weights = jnp.ones(len(x)) if weights is None else weights
  total = jnp.maximum(jnp.sum(weights), 1e-9)
  mean = weights @ x / total
  x = x - mean  # squared distances by the expanded square lose digits to a common offset

  def draw(carry, key):
    centroids, squared, place = carry
    chosen = x[jax.random.categorical(key, jnp.log(weights * squared))]
    squared = jnp.minimum(squared, jnp.sum((x - chosen) ** 2, -1))
    return (centroids.at[place].set(chosen), squared, place + 1), None

  start = jnp.zeros((k, x.shape[1])), jnp.ones(len(x)), 0  # all alike for the first
  first, *rest = jax.random.split(key, k)
  (centroids, _, place), _ = draw(start, first)
  squared = jnp.sum((x - centroids[0]) ** 2, -1)
  if rest:
    (centroids, _, _), _ = jax.lax.scan(draw, (centroids, squared, place), jnp.stack(rest))
  centroids, _ = jax.lax.scan(lambda c, _: (lloyd(x, c, weights), None), centroids, None, iterations)
  nearest = jnp.argmin(_squared(x, centroids), -1)
  apart = jnp.sum((x - centroids[nearest]) ** 2, -1)  # 0 at a centroid, which the expanded square is not
  return Clusters(centroids + mean, nearest, weights @ apart / total)


def lloyd(x: Float[Array, 'N D'], centroids: Float[Array, 'K D'], weights: Float[Array, 'N']) -> Float[Array, 'K D']:
  """One step: each centroid moves to the mean of its points; one that has none moves to the point farthest from its own centroid, the next to the next."""
  squared = _squared(x, centroids)
  mine = weights[:, None] * jax.nn.one_hot(jnp.argmin(squared, -1), len(centroids))
  size = jnp.sum(mine, 0)
  far = jax.lax.top_k(jnp.where(weights > 0, jnp.min(squared, -1), -1.0), min(len(centroids), len(x)))[1]
  empty = size == 0
  seeds = x[far[jnp.clip(jnp.cumsum(empty) - 1, 0, len(far) - 1)]]
  return jnp.where(empty[:, None], seeds, mine.T @ x / jnp.maximum(size, 1e-9)[:, None])


def _squared(x: Float[Array, 'N D'], centroids: Float[Array, 'K D']) -> Float[Array, 'N K']:
  return jnp.maximum(jnp.sum(x**2, -1, keepdims=True) - 2 * x @ centroids.T + jnp.sum(centroids**2, -1), 0.0)


@jax.jit
def min_distance(x: Float[Array, 'B D'], centroids: Float[Array, 'P K D']) -> Float[Array, 'B P']:
  """Euclidean distance to the nearest centroid of each dimension: d_P(x, y) = min over c in C_P of ||h - c||.

  From differences, not from the expanded square, so that it is 0 at a centroid; one centroid at a time, so that memory is a few [B, D].

  Reference: MRMBench (2025), inference-time probing.
  """
  one = lambda c: jnp.sqrt(jnp.sum((x - c) ** 2, -1))
  return jnp.moveaxis(jax.lax.map(lambda of_dimension: jnp.min(jax.lax.map(one, of_dimension), 0), centroids), 0, -1)


def threshold(smallest: Float[np.ndarray, 'B'], quantile: float = 0.9) -> float:
  """d_tau: the distance that a share `quantile` of validation responses keeps within; NaN is left out.

  The paper's 140 is of its own model's space; this is ours, for any.
  """
  return float(np.nanquantile(smallest, quantile))


def confidence(smallest: Float[np.ndarray, 'B'], validation: Float[np.ndarray, 'N']) -> Float[np.ndarray, 'B']:
  """Share of validation responses that lie at least as far out: 1 at a centroid, 0 beyond all of them, whatever the space's scale."""
  known = np.sort(validation[~np.isnan(validation)])
  return np.where(np.isnan(smallest), np.nan, 1 - np.searchsorted(known, smallest, side='left') / len(known))


def sample_weight(distance: Float[Array, 'B P'], limit: float | Float[Array, '']) -> Float[Array, 'B']:
  """Weight of each sample in an update: 1 where the smallest distance is within the limit, else 0; 0 for NaN.

  Multiply the mask of the samples' tokens by it, in advantages, surrogates and value losses alike. A batch of which nothing is left then has a
  gradient of 0; moments and decay of an optimiser go on, so such an update is best skipped.

  Reference: MRMBench (2025), PPO with samples of d_min > d_tau left out.
  """
  return (jnp.min(distance, -1) <= limit).astype(jnp.float32)  # no comparison with NaN holds
