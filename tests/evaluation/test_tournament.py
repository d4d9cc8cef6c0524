"""Tournaments: majorities, cyclic triads, and what noise makes of them."""

import itertools

import numpy as np
import pytest

from rmjax.evaluation.tournament import cyclic_triads, expected_cyclic_share, fit_bradley_terry, majority

CIRCLE = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])


def random_tournaments(rng: np.random.Generator, draws: int, players: int) -> np.ndarray:
  upper = np.triu(rng.integers(0, 2, (draws, players, players)), 1)
  return upper + np.swapaxes(np.triu(1 - upper, 1), 1, 2)


def test_rock_paper_scissors_is_one_cyclic_triad_either_way_round():
  assert cyclic_triads(CIRCLE) == (1, 1)
  assert cyclic_triads(CIRCLE.T) == (1, 1)


def test_a_ranking_has_no_cyclic_triad():
  assert cyclic_triads(np.triu(np.ones((9, 9)), 1)) == (0, 84)  # 9 choose 3


def test_counts_are_those_of_looking_at_every_triple():
  rng = np.random.default_rng(0)
  wins = rng.integers(0, 4, (12, 12)) * (1 - np.eye(12, dtype=int))
  expected = np.zeros(2, int)
  for a, b, c in itertools.combinations(range(12), 3):
    signs = [np.sign(wins[i, j] - wins[j, i]) for i, j in ((a, b), (b, c), (c, a))]
    expected += [abs(sum(signs)) == 3, all(signs)]
  assert 0 < expected[0] < expected[1] < 220  # ties occur
  assert cyclic_triads(wins) == tuple(expected)


def test_cyclic_triads_of_a_round_robin_follow_from_its_scores():
  """N choose 3 less sum_i (s_i choose 2), for s_i wins of player i: Kendall & Babington Smith (1940)."""
  wins = random_tournaments(np.random.default_rng(1), 50, 15)
  scores = wins.sum(2)
  np.testing.assert_array_equal(cyclic_triads(wins)[0], 455 - (scores * (scores - 1) // 2).sum(1))


def test_most_cyclic_tournament_reaches_the_published_maximum():
  """(N^3 - N) / 24 for odd N: everyone beats the next (N - 1) / 2 around the table. Kendall & Babington Smith (1940)."""
  places = np.arange(9)
  wins = np.isin((places[None, :] - places[:, None]) % 9, range(1, 5)).astype(int)
  assert cyclic_triads(wins) == ((9**3 - 9) // 24, 84)


def test_a_quarter_of_triads_is_cyclic_by_chance():
  cyclic, triads = cyclic_triads(random_tournaments(np.random.default_rng(2), 4000, 8))
  assert (triads == 56).all()
  # Triads of a random tournament are pairwise independent, so the variance is the binomial one.
  assert cyclic.mean() / 56 == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 56 / 4000))
  assert cyclic.var() == pytest.approx(56 * 0.25 * 0.75, rel=0.1)


def test_a_tied_or_missing_pair_decides_no_triad():
  assert cyclic_triads(np.array([[0, 2, 1], [1, 0, 3], [1, 0, 0]])) == (0, 0)
  assert cyclic_triads(np.array([[0, 2, 0], [1, 0, 3], [0, 0, 0]])) == (0, 0)


def test_majorities_and_sums_of_thirds():
  third = np.float64(1 / 3)
  wins = np.array([[0, third + third + third, 5], [0.1 + 0.2 + 0.7, 0, 0], [2, 0, 0]])
  np.testing.assert_array_equal(majority(wins), [[0.5, 0.5, 1], [0.5, 0.5, 0.5], [0, 0.5, 0.5]])


def test_two_players_strengths_are_the_log_odds():
  s = fit_bradley_terry(np.array([[0, 30], [10, 0]]), ridge=1e-9)
  assert s == pytest.approx([np.log(3) / 2, -np.log(3) / 2])


def test_fit_recovers_the_strengths_that_made_the_expected_wins():
  truth = np.linspace(-2, 2, 7)
  wins = 20 / (1 + np.exp(truth[None, :] - truth[:, None])) * (1 - np.eye(7))
  assert fit_bradley_terry(wins, ridge=1e-9) == pytest.approx(truth, abs=1e-6)


def test_fit_is_finite_where_one_side_wins_everything():
  s = fit_bradley_terry(np.triu(np.full((6, 6), 50), 1))
  assert np.isfinite(s).all() and (np.diff(s) < 0).all()


def test_noise_makes_no_cycles_of_a_clear_ranking_and_a_quarter_of_none():
  strengths = 4.0 * np.arange(6)[::-1]
  clear = 100 / (1 + np.exp(strengths[None, :] - strengths[:, None])) * (1 - np.eye(6))
  assert expected_cyclic_share(clear, draws=200) == pytest.approx((0, 0), abs=1e-3)
  equal = 10.5 * (1 - np.eye(6))  # an odd number of comparisons leaves none undecided
  mean, quantile = expected_cyclic_share(equal, draws=4000)
  assert mean == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 20 / 4000))
  assert mean < quantile <= 0.4  # (6^3 - 4 * 6) / 24 = 8 of 20 is the most that six players can have


def test_a_circle_is_far_above_its_null_and_a_seed_gives_it_again():
  wins = 90 * CIRCLE + 10 * CIRCLE.T
  mean, quantile = expected_cyclic_share(wins, draws=500)  # the best-fitting strengths are all equal
  assert mean == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 500)) and quantile == 1
  assert expected_cyclic_share(wins, draws=500) == (mean, quantile)


def test_nothing_decided_has_no_share():
  assert np.isnan(expected_cyclic_share(np.array([[0, 3], [1, 0]]))).all()
