"""Losses on ratings: closed forms of the paper card, landscapes, gradients, labels that are missing."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.errors import InputError
from rmjax.heads.quality import QualityScores
from rmjax.losses.ordinal import ordinal_preference, quality_cross_entropy, region_mass, region_weights

BAD, NORMAL, GOOD, NONE = 0, 1, 2, -1
WINS = jnp.array([[0.0, 1.0], [0.0, 0.0]])
UNIFORM = jnp.full((2, 9), -jnp.log(9.0))
EXACT = dict(atol=2e-5)  # the floor of 1e-6 is in these values


def point(*levels):
  with np.errstate(divide='ignore'):
    return jnp.log(jnp.array([np.arange(1, 10) == level for level in levels], jnp.float32))


def loss(scores, chosen, rejected, **options):
  return ordinal_preference(scores, WINS, jnp.array([chosen, rejected]), **options)


def test_the_plain_loss():
  np.testing.assert_allclose(ordinal_preference(UNIFORM, WINS), 0.810930, atol=1e-6)
  assert ordinal_preference(point(8, 2), WINS) == 0
  swapped = ordinal_preference(point(2, 8), WINS)
  assert 100 < swapped < 1e4
  tied = ordinal_preference(point(5, 5), WINS)  # a tie in the ratings is a failure
  assert 100 < tied < 1e4
  assert np.isfinite(jax.grad(lambda x: ordinal_preference(x, WINS))(point(2, 8))).all()


@pytest.mark.parametrize('landscape', ['region', 'flood', 'tent'])
def test_unlabelled_pairs_have_the_plain_loss(landscape):
  scores = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (2, 9)))
  plain = ordinal_preference(scores, WINS)
  np.testing.assert_allclose(loss(scores, NONE, NONE, landscape=landscape), plain, rtol=1e-6)
  np.testing.assert_allclose(loss(scores, GOOD, BAD, landscape='none'), plain, rtol=1e-6)
  half = loss(scores, GOOD, NONE, landscape=landscape)
  assert plain < half < loss(scores, GOOD, BAD, landscape=landscape)


def test_regions_of_uniform_ratings():
  region = lambda chosen, rejected, **options: loss(UNIFORM, chosen, rejected, landscape='region', **options)
  np.testing.assert_allclose(region(GOOD, BAD), 2.197225, **EXACT)
  np.testing.assert_allclose(region(GOOD, NORMAL), 2.197225, **EXACT)
  np.testing.assert_allclose(region(GOOD, GOOD), 3.295837, **EXACT)  # a triangle: order within the region survives
  np.testing.assert_allclose(region(NORMAL, GOOD), -np.log(1e-6 * 4 / 9), rtol=1e-4)  # contradicts: only the floor is left
  np.testing.assert_allclose(region(GOOD, BAD, floor=0.0), np.log(9), rtol=1e-6)
  assert 50 < region(NORMAL, GOOD, floor=0.0) < 1e4


def test_flooded_regions_push_outwards():
  flood = lambda *levels: loss(point(*levels), GOOD, BAD)
  np.testing.assert_allclose(flood(9, 1), 0.0, atol=1e-6)
  np.testing.assert_allclose(flood(7, 3), 2.197225, **EXACT)
  values = [flood(*levels) for levels in ((7, 3), (8, 3), (8, 2), (9, 2), (9, 1))]
  assert values == sorted(values, reverse=True)
  np.testing.assert_allclose(flood(6, 4), -np.log(1e-6), rtol=1e-5)  # outside
  gradient = jax.grad(lambda z: loss(jax.nn.log_softmax(z), GOOD, BAD))(jnp.zeros((2, 9)))
  assert (np.diff(gradient[0, 6:]) < 0).all() and (np.diff(gradient[1, :3]) > 0).all()


def test_a_tent_has_its_top_in_the_middle_of_the_region():
  tent = lambda *levels, **options: float(loss(point(*levels), GOOD, BAD, landscape='tent', **options))
  np.testing.assert_allclose(tent(8, 2), 0.0, atol=1e-6)
  np.testing.assert_allclose(tent(9, 1), np.log(4), **EXACT)
  best = min(itertools.product(range(1, 10), repeat=2), key=lambda levels: tent(*levels))
  assert best == (8, 2)
  np.testing.assert_allclose(tent(6, 2, half_width=3.0), np.log(3), **EXACT)  # floods the neighbour


def test_weights_of_the_three_landscapes():
  tables = {name: region_weights(9, 3, name) for name in ('none', 'region', 'flood', 'tent')}
  np.testing.assert_array_equal(tables['none'], np.ones((2, 3, 9)))
  np.testing.assert_array_equal(tables['region'], [np.kron(np.eye(3), np.ones(3))] * 2)
  np.testing.assert_allclose(tables['flood'], [np.kron(np.eye(3), [1 / 3, 2 / 3, 1]), np.kron(np.eye(3), [1, 2 / 3, 1 / 3])], rtol=1e-6)
  np.testing.assert_array_equal(tables['tent'], [np.kron(np.eye(3), [0.5, 1, 0.5])] * 2)
  wide, _ = region_weights(9, 3, 'tent', 3.0)
  np.testing.assert_allclose(wide[1], [0, 0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0, 0], atol=1e-6)
  np.testing.assert_array_equal(region_weights(8, 2, 'region')[0], np.kron(np.eye(2), np.ones(4)))


@pytest.mark.parametrize('landscape', ['region', 'flood', 'tent'])
def test_it_is_the_sum_over_the_table_of_ratings(landscape):
  key = jax.random.key(1)
  scores = jax.nn.log_softmax(2 * jax.random.normal(key, (4, 3, 9)))
  quality = jax.random.randint(key, (4, 3), -1, 3)
  wins = jax.random.uniform(key, (4, 3, 3))
  one, two = (np.concatenate([w, np.ones((1, 9))]) for w in region_weights(9, 3, landscape))  # the last row for -1
  p, allowed = np.exp(np.asarray(scores, np.float64)), np.tril(np.ones((9, 9)), -1)
  expected = np.zeros(4)
  for b, i, j in itertools.product(range(4), range(3), range(3)):
    table = (0.1 + 0.9 * np.outer(one[quality[b, i]], two[quality[b, j]])) * allowed
    expected[b] -= wins[b, i, j] * np.log(p[b, i] @ table @ p[b, j])
  np.testing.assert_allclose(ordinal_preference(scores, wins, quality, landscape=landscape, floor=0.1), expected, rtol=1e-4)


def test_uncompared_and_absent_responses_have_no_part():
  scores = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (3, 9)))
  wins = jnp.zeros((3, 3)).at[0, 1].set(1.0)
  quality = jnp.array([GOOD, BAD, NONE])
  gradient = jax.grad(lambda x: ordinal_preference(x, wins, quality))(scores)
  np.testing.assert_array_equal(gradient[2], 0.0)
  np.testing.assert_allclose(ordinal_preference(scores, wins, quality), loss(scores[:2], GOOD, BAD), rtol=1e-6)
  assert ordinal_preference(scores[:1], jnp.zeros((1, 1))) == 0


def test_identical_ratings_are_not_a_fixed_point():
  gradient = jax.grad(lambda z: ordinal_preference(jax.nn.log_softmax(z), WINS))(jnp.zeros((2, 9)))
  assert (np.diff(gradient[0]) < 0).all() and (np.diff(gradient[1]) > 0).all()  # up for the preferred, down for the other


def test_quality_cross_entropy_skips_what_is_unlabelled():
  logits = jnp.array([[0.0, 0.0, 0.0], [1.0, 2.0, 0.5], [3.0, 0.0, 0.0]])
  quality = jnp.array([GOOD, NORMAL, NONE])
  of = lambda logits: quality_cross_entropy(QualityScores(jnp.zeros(3), logits), quality)
  np.testing.assert_allclose(of(logits), [np.log(3), np.log(np.exp([1, 2, 0.5]).sum()) - 2, 0.0], rtol=1e-6)
  gradient = jax.grad(lambda logits: of(logits).sum())(logits)
  np.testing.assert_allclose(gradient[0], [1 / 3, 1 / 3, -2 / 3], rtol=1e-6)
  np.testing.assert_array_equal(gradient[2], 0.0)


def test_region_mass():
  scores = jnp.concatenate([UNIFORM[:1], point(9, 9), UNIFORM[:1]])
  np.testing.assert_allclose(region_mass(scores, jnp.array([BAD, GOOD, NORMAL, NONE])), [1 / 3, 1.0, 0.0, np.nan], rtol=1e-6)
  np.testing.assert_allclose(region_mass(UNIFORM[:, :8] + jnp.log(9 / 8), jnp.array([1, 0]), regions=2), 0.5, rtol=1e-6)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(regions=4), 'regions = 4 do not split 9 levels evenly'),
    (dict(regions=0), 'regions = 0 do not split 9 levels evenly'),
    (dict(landscape='hill'), "landscape = 'hill': choose one of none, region, flood, tent"),
    (dict(half_width=0.0), 'half_width = 0.0: it must be positive'),
    (dict(floor=1.0), 'floor = 1.0: it must be in [0, 1)'),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(InputError, match=re.escape(message)):
    loss(UNIFORM, GOOD, BAD, **options)
