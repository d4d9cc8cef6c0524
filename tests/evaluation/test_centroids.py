"""K-means against scipy, distances by hand, and the filter of samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.cluster import vq

from rmjax import trees
from rmjax.evaluation import centroids
from rmjax.policy import surrogates

MEANS = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9]], np.float32)


def points(seed=0, each=50):
  rng = np.random.default_rng(seed)
  return (np.repeat(MEANS, each, 0) + rng.normal(size=(4 * each, 3))).astype(np.float32)


def sort(rows):
  return rows[np.lexsort(np.asarray(rows).T)]


def test_separated_clouds_have_their_means_for_centroids_as_scipy_says():
  x = points()
  for offset in (0, 500):  # far from 0 the expanded square alone would lose its digits
    found = centroids.kmeans(jax.random.key(1), x + offset, 4)
    means = x.reshape(4, 50, 3).mean(1) + offset
    np.testing.assert_allclose(sort(np.round(found.centroids, 4)), sort(np.round(means, 4)), atol=2e-4 * (1 + offset / 100))
  theirs, labels = vq.kmeans2(x, MEANS + 1, minit='matrix')
  np.testing.assert_allclose(sort(np.round(found.centroids - 500, 3)), sort(np.round(theirs, 3)), atol=3e-3)
  inertia = np.mean(np.sum((x - theirs[labels]) ** 2, -1))
  assert float(found.inertia) == pytest.approx(inertia, rel=1e-3)
  np.testing.assert_array_equal(found.nearest[:50], found.nearest[0])
  assert len(np.unique(found.nearest)) == 4


def test_centroids_are_the_means_of_their_points_and_more_steps_do_not_move_them():
  x = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
  found = centroids.kmeans(jax.random.key(0), x, 7, 200)
  for place in range(7):
    np.testing.assert_allclose(found.centroids[place], x[found.nearest == place].mean(0), atol=1e-4)
  inertia = [float(centroids.kmeans(jax.random.key(0), x, 7, steps).inertia) for steps in (0, 1, 5, 200)]
  assert inertia == sorted(inertia, reverse=True) and inertia[0] > inertia[-1]


def test_an_empty_cluster_takes_the_point_that_is_farthest_out():
  x = jnp.array([[0.0, 0], [1, 0], [10, 0], [0, 7]])
  start = jnp.array([[0.0, 0], [100, 100], [200, 200]])
  np.testing.assert_allclose(centroids.lloyd(x, start, jnp.ones(4)), [x.mean(0), [10, 0], [0, 7]], atol=1e-6)
  np.testing.assert_allclose(centroids.lloyd(x, start, jnp.array([1.0, 1, 0, 1])), [[1 / 3, 7 / 3], [0, 7], [1, 0]], atol=1e-6)  # not one of weight 0


def test_fewer_points_than_clusters_give_no_nan():
  x = jnp.array([[1.0, 2], [1, 2], [5, 5]])
  found = centroids.kmeans(jax.random.key(0), x, 5)
  assert np.isfinite(found.centroids).all() and float(found.inertia) == pytest.approx(0, abs=1e-9)


def test_points_of_weight_zero_do_not_exist_and_subsets_are_clustered_side_by_side():
  x = points()
  masks = np.stack([np.arange(200) < 100, np.arange(200) >= 100]).astype(np.float32)
  together = jax.vmap(lambda w: centroids.kmeans(jax.random.key(0), x, 2, weights=w).centroids)(masks)
  for found, part in zip(together, (x[:100], x[100:]), strict=True):
    np.testing.assert_allclose(sort(np.round(found, 4)), sort(np.round(part.reshape(2, 50, 3).mean(1), 4)), atol=2e-4)


def test_the_smallest_distance_is_that_of_a_loop():
  rng = np.random.default_rng(0)
  x, c = rng.normal(size=(6, 3)).astype(np.float32) + 1000, rng.normal(size=(2, 4, 3)).astype(np.float32) + 1000
  expected = [[min(np.linalg.norm(row - centroid) for centroid in of) for of in c] for row in x]
  np.testing.assert_allclose(centroids.min_distance(x, c), expected, rtol=1e-5)
  np.testing.assert_array_equal(np.diagonal(centroids.min_distance(c[:, 1], c)), 0)


def test_distances_are_those_of_the_space_and_grow_with_its_width():
  rng = np.random.default_rng(0)
  mean = lambda width: float(np.mean(centroids.min_distance(rng.normal(size=(500, width)).astype(np.float32), np.zeros((1, 1, width), np.float32))))
  assert mean(256) / mean(16) == pytest.approx(4, rel=0.05)


def test_threshold_and_confidence_are_quantiles_of_validation():
  validation = np.append(np.arange(1.0, 101), np.nan)
  limit = centroids.threshold(validation, 0.9)
  assert np.mean(validation[:-1] <= limit) == 0.9
  np.testing.assert_allclose(centroids.confidence(np.array([0.0, 1, 50.5, 100, 101, np.nan]), validation), [1, 1, 0.5, 0.01, 0, np.nan])


def test_samples_beyond_the_limit_in_every_dimension_are_dropped():
  distance = jnp.array([[1.0, 9], [9, 1], [9, 9], [3, 3], [jnp.nan, 1]])
  np.testing.assert_array_equal(centroids.sample_weight(distance, 3.0), [1, 1, 0, 1, 0])


def test_a_batch_of_which_all_is_dropped_moves_nothing():
  batch = trees.pack([[trees.branch([1, 2], [[3, 4], [5]])]], length=8, slots=1, responses=2)
  old, advantages = jnp.full((1, 8), -1.0), trees.to_tokens(jnp.array([[[2.0, -1.0]]]), batch)

  def loss(log_probs, weights):
    mask = (batch.response_ids >= 0) * trees.to_tokens(weights, batch)
    ratio = surrogates.ratio(log_probs, old, mask, batch)
    total, count = surrogates.aggregate(surrogates.clipped(ratio, advantages), mask, batch, 'token_mean')
    return total / jnp.maximum(count, 1)

  weights = lambda distance: centroids.sample_weight(jnp.array(distance), 3.0)[None, None]
  none, first = (jax.grad(loss)(old, weights(distance)) for distance in ([[9.0], [8.0]], [[1.0], [8.0]]))
  np.testing.assert_array_equal(none, 0)
  np.testing.assert_array_equal(np.asarray(first != 0), batch.response_ids == 0)
