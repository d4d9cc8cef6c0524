"""Plackett-Luce: a distribution over rankings, and Bradley-Terry for two."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.data.records import pairwise_wins, wins_from_ratings
from rmjax.losses.listwise import plackett_luce
from rmjax.losses.preference import bradley_terry

REWARDS = jnp.array([0.3, -1.2, 2.0, 0.7])


def test_probabilities_of_all_rankings_add_up_to_one():
  total = sum(float(jnp.exp(-plackett_luce(REWARDS, wins_from_ratings(ratings)))) for ratings in itertools.permutations(range(4)))
  assert total == pytest.approx(1, abs=1e-6)


def test_by_hand():
  p = np.exp(REWARDS)
  expected = -np.log(p[1] / p.sum()) - np.log(p[3] / p[[0, 2, 3]].sum()) - np.log(p[0] / p[[0, 2]].sum())
  np.testing.assert_allclose(plackett_luce(REWARDS, wins_from_ratings([1, 9, -2, 4])), expected, rtol=1e-6)


def test_two_responses_are_bradley_terry():
  np.testing.assert_allclose(plackett_luce(REWARDS[:2], pairwise_wins(2, [(0, 1, 1.0)])), bradley_terry(REWARDS[0], REWARDS[1]), rtol=1e-6)


def test_responses_that_were_never_compared_do_not_take_part():
  wins = wins_from_ratings([3.0, np.nan, 1.0, 2.0])
  value, gradient = jax.value_and_grad(plackett_luce)(REWARDS.at[1].set(1e4), wins)
  np.testing.assert_allclose(value, plackett_luce(REWARDS[jnp.array([0, 2, 3])], wins_from_ratings([3, 1, 2])), rtol=1e-6)
  assert gradient[1] == 0 and np.isfinite(gradient).all()
  assert plackett_luce(REWARDS, jnp.zeros((4, 4))) == 0
  np.testing.assert_array_equal(jax.grad(plackett_luce)(REWARDS, jnp.zeros((4, 4))), 0)


def test_ties_are_breslow_s():
  p = np.exp(REWARDS)
  expected = -np.log(p[2] / p.sum()) - np.log(p[0] / p[[0, 1, 3]].sum()) - np.log(p[3] / p[[0, 1, 3]].sum())  # and the last one is chosen among itself
  np.testing.assert_allclose(plackett_luce(REWARDS, wins_from_ratings([1, 0, 2, 1])), expected, rtol=1e-6)
