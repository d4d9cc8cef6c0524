"""The simplex search: scipy's steps one by one, its cache and budget, stale values, and searches side by side."""

import re

import numpy as np
import pytest
from scipy.optimize import minimize, rosen

from rmjax.errors import InputError
from rmjax.policy.nelder_mead import initial_simplex, nelder_mead, search_together, Searcher

BOWL = lambda x: float(((x - np.array([0.3, -0.7])) ** 2) @ np.array([1.0, 4.0]) + 0.5 * x[0] * x[1])


def rough(x):
  """Steps and ridges, on which reflections fail and simplices shrink."""
  return float(np.floor(8 * np.abs(x).sum()) / 8 + 0.1 * np.sin(9 * x[0]) ** 2)


def asked(function, simplex, evaluations):
  search = nelder_mead(simplex, tolerance=0.0)
  points = [next(search)]
  while len(points) < evaluations:
    points.append(search.send(function(points[-1])))
  return np.array(points)


@pytest.mark.parametrize(('function', 'dimensions'), [(BOWL, 2), (rosen, 2), (rosen, 4), (rough, 3)])
def test_the_points_are_scipy_s(function, dimensions):
  simplex = np.random.default_rng(dimensions).uniform(-1.5, 1.5, (dimensions + 1, dimensions))
  theirs = []

  def watched(x):
    theirs.append(x.copy())
    return function(x)

  options = dict(initial_simplex=simplex, maxfev=90, xatol=0.0, fatol=0.0)
  minimize(watched, simplex[0], method='Nelder-Mead', options=options)
  np.testing.assert_allclose(asked(function, simplex, 85), theirs[:85], atol=1e-9)


def test_every_move_happens_where_it_should():
  """By hand on the triangle (0, 0), (1, 0), (0, 1): values 0, 1, 2, so that the worst is (0, 1) and the centre (.5, 0)."""
  start = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])

  def next_points(*values):
    search = nelder_mead(start, tolerance=0.0)
    points = [next(search)]
    for value in (0.0, 1.0, 2.0, *values):
      points.append(search.send(value))
    return np.array(points)[3:].tolist()

  assert next_points(0.5) == [[1, -1], [0, -1]]  # better than the second worst: taken, and (1, 0) is the worst now
  assert next_points(-1.0) == [[1, -1], [1.5, -2]]  # better than the best: expand
  assert next_points(1.5) == [[1, -1], [0.75, -0.5]]  # between second worst and worst: outside contraction
  assert next_points(3.0) == [[1, -1], [0.25, 0.5]]  # worse than the worst: inside contraction
  assert next_points(3.0, 5.0, 0.0) == [[1, -1], [0.25, 0.5], [0.5, 0], [0, 0.5]]  # not even that: shrink towards the best


def test_it_ends_where_the_vertices_agree():
  search = nelder_mead(np.eye(3, 2), tolerance=0.01)
  next(search)
  search.send(1.0)
  search.send(1.0)
  with pytest.raises(StopIteration):
    search.send(1.005)


def test_the_search_maximises_gold_and_counts_what_it_asks():
  searcher = Searcher(np.array([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5]]), tolerance=1e-7, same=1e-6)
  calls = 0
  while searcher.thresholds is not None and calls < 300:
    searcher.tell(-BOWL(searcher.thresholds))
    calls += 1
  found = searcher.found()
  best = np.linalg.solve([[2, 0.5], [0.5, 8]], [0.6, -5.6])
  np.testing.assert_allclose(found.thresholds, best, atol=1e-3)
  assert found.queries == calls == len(found.trace) < 120
  assert found.gold == max(gold for _, gold in found.trace)


def test_a_near_point_costs_no_query():
  """The two first vertices are nearly one: the second is answered from the first."""
  searcher = Searcher(np.array([[0.2, 0.2], [0.204, 0.2], [0.2, 0.9]]), same=5e-3)
  searcher.tell(1.0)
  np.testing.assert_array_equal(searcher.thresholds, [0.2, 0.9])
  apart = Searcher(np.array([[0.2, 0.2], [0.206, 0.2], [0.2, 0.9]]), same=5e-3)
  apart.tell(1.0)
  np.testing.assert_array_equal(apart.thresholds, [0.206, 0.2])
  flat = Searcher(np.full((3, 2), 0.5) + 1e-3 * np.eye(3, 2))  # all one point: one query ends the search
  flat.tell(1.0)
  assert flat.thresholds is None and flat.found().queries == 1


def test_stale_values_are_asked_for_again():
  simplex = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
  search = nelder_mead(simplex, tolerance=0.0, lifetime=3)
  points = [next(search)]
  for value in (0.0, 1.0, 2.0, 0.5):  # the fourth is the reflection, which is taken
    points.append(search.send(value))
  np.testing.assert_array_equal(points[4], [0.0, 0.0])  # its value is 3 questions old
  forever = nelder_mead(simplex, tolerance=0.0)
  next(forever)
  for value in (0.0, 1.0, 2.0, 0.5):
    last = forever.send(value)
  assert not np.array_equal(last, [0.0, 0.0])
  # gold that drifts away from an old success: the search comes back from it
  searcher = Searcher(np.array([[0.9, 0.0], [0.0, 0.0], [0.0, 0.3]]), tolerance=0.0, lifetime=6, same=1e-6)
  for query in range(60):
    drifted = 5.0 if query == 0 else 0.0
    searcher.tell(drifted - float(((searcher.thresholds - 0.4) ** 2).sum()))
  np.testing.assert_allclose(searcher.found().thresholds, 0.4, atol=0.1)


def test_points_stay_within_bounds():
  searcher = Searcher(np.array([[0.5, 0.5], [0.9, 0.5], [0.5, 0.9]]), tolerance=0.0, low=np.zeros(2), high=np.ones(2), same=1e-9)
  for _ in range(40):
    assert np.all((searcher.thresholds >= 0) & (searcher.thresholds <= 1))
    searcher.tell(float(searcher.thresholds.sum()))
    if searcher.thresholds is None:
      break
  np.testing.assert_allclose(searcher.found().thresholds, 1.0, atol=0.02)


def test_searches_side_by_side_are_each_alone():
  aims = np.array([[0.2, 0.8], [0.6, 0.1], [0.5, 0.5]])
  make = lambda k: Searcher(initial_simplex(np.zeros(2), np.ones(2), seed=k), tolerance=1e-4 * 10**k)
  gold = lambda thresholds, k: -float(((thresholds - aims[k]) ** 2).sum())
  rounds = []

  def evaluate(thresholds):
    rounds.append(thresholds)
    return np.float32([gold(thresholds[k], k) for k in range(3)])  # as it comes from a device

  together = search_together(evaluate, [make(k) for k in range(3)], rounds=25)
  for k, found in enumerate(together):
    (alone,) = search_together(lambda thresholds, k=k: np.float32([gold(thresholds[0], k)]), [make(k)], rounds=25)
    assert found.queries == alone.queries <= len(rounds)
    np.testing.assert_array_equal([at for at, _ in found.trace], [at for at, _ in alone.trace])
    # what is over goes on under its best
    np.testing.assert_array_equal(rounds[-1][k], found.trace[-1][0] if found.queries == len(rounds) else found.thresholds)
  assert together[2].queries < together[0].queries


def test_the_simplex_lies_in_its_box_and_bad_input_is_named():
  low, high = np.array([0.0, 5.0]), np.array([1.0, 6.0])
  simplex = initial_simplex(low, high, seed=1)
  assert simplex.shape == (3, 2) and np.all((simplex >= low) & (simplex <= high))
  assert not np.array_equal(simplex, initial_simplex(low, high, seed=2))
  for call, message in (
    (lambda: initial_simplex(low, low, seed=0), 'search: thresholds from [0.0, 5.0] to [0.0, 5.0]'),
    (lambda: next(nelder_mead(np.zeros((2, 2)))), 'search: a simplex of shape (2, 2)'),
    (lambda: Searcher(simplex).tell(float('nan')), 'search: gold evaluation nan of thresholds'),
    (lambda: Searcher(simplex).found(), 'search: nothing has been evaluated'),
  ):
    with pytest.raises(InputError, match=re.escape(message)):
      call()
