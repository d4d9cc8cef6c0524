"""Self-play in games whose equilibrium is known, and the claim's runner from end to end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import gpo
from experiments import reproduce, self_play
from rmjax.evaluation.scored import Scored

RATE, ITERATIONS = 0.05, 4000


def cycle(*kinds):
  """Scores [1, N, N] of responses of these kinds, of which each beats the next by 1."""
  kind = np.array(kinds)
  return jnp.asarray((kind[None, :] - kind[:, None] + 1) % 3 - 1, jnp.float32)[None]


ROCKS = cycle(0, 0, 1, 2)  # at equilibrium both rocks together have a third; the uniform policy gives them a half


def test_exploitability_is_what_the_best_response_gains():
  uniform, pure = jnp.full((1, 3), 1 / 3), jnp.array([[1.0, 0.0, 0.0]])
  np.testing.assert_allclose(self_play.exploitability(uniform, cycle(0, 1, 2)), 0.0, atol=1e-7)
  np.testing.assert_allclose(self_play.exploitability(pure, cycle(0, 1, 2)), 1.0)  # by 2, which beats 0
  np.testing.assert_allclose(self_play.exploitability(jnp.full((1, 4), 0.25), ROCKS), 0.25)  # 2 beats two rocks and loses to one 1


def test_the_uniform_policy_of_a_fair_cycle_is_a_fixed_point():
  played = self_play.multiplicative_weights(cycle(0, 1, 2), rate=0.5, iterations=50)
  np.testing.assert_allclose(played.last, 1 / 3, atol=1e-6)


def test_the_average_finds_the_equilibrium_and_the_last_policy_does_not():
  played = self_play.multiplicative_weights(ROCKS, rate=RATE, iterations=ITERATIONS)
  assert float(self_play.exploitability(played.average, ROCKS)[0]) < 0.02
  np.testing.assert_allclose(played.average[0, 0] + played.average[0, 1], 1 / 3, atol=0.02)
  assert float(self_play.exploitability(played.last, ROCKS)[0]) > 0.25  # further out than the start


def test_one_step_of_the_exact_update():
  scores = jnp.array([[[0.0, 2.0], [-2.0, 0.0]]])
  played = self_play.multiplicative_weights(scores, rate=0.5, iterations=1)
  np.testing.assert_array_equal(played.average, 0.5)
  gap = 0.5 * (1.0 - -1.0)  # rate times the difference of mean scores against (1/2, 1/2)
  np.testing.assert_allclose(jnp.log(played.last[0, 0] / played.last[0, 1]), gap, rtol=1e-5)


def test_sampled_regression_follows_the_exact_update():
  """Over many samples an iteration moves each response by its probability's share of the regression; the average still finds the equilibrium."""
  games = jnp.concatenate([ROCKS] * 8)
  sampled = self_play.self_play(games, jax.random.key(0), rate=RATE, iterations=ITERATIONS // 2, samples=64)
  found = self_play.exploitability(sampled.average, games)
  assert float(found.mean()) < 0.1
  one = self_play.self_play(jnp.array([[[0.0, 2.0], [-2.0, 0.0]]]), jax.random.key(0), rate=0.1, iterations=1, samples=4096)
  np.testing.assert_allclose(jnp.log(one.last[0, 0] / one.last[0, 1]), 0.2, rtol=0.05)


def test_both_find_the_best_response_where_there_is_one():
  quality = jnp.array([[0.0, 1.0, 3.0, 2.0]])
  scores = quality[..., :, None] - quality[..., None, :]
  play = dict(rate=0.1, iterations=1500, samples=16)
  for policy in (self_play.self_play(scores, jax.random.key(0), **play).last, self_play.reinforce(quality, jax.random.key(0), **play).last):
    assert float(policy[0, 2]) > 0.95
  np.testing.assert_array_equal(self_play.reinforce(jnp.zeros((1, 4)), jax.random.key(0), **play).last, 0.25)  # nothing to learn


def test_figures_of_a_known_game():
  run = functools.partial(self_play.figures, ROCKS, jnp.array([[1.0, 0.0, 0.0, 0.0]]), ROCKS, jax.random.key(0))
  found = {name: float(value) for name, value in run(rate=RATE, iterations=ITERATIONS, samples=16).items()}
  assert found['uniform'] == pytest.approx(0.25) and found['greedy'] == pytest.approx(1.0)
  assert found['gold_mwu'] == pytest.approx(found['mwu']) and found['mwu'] < 0.02
  assert found['mwu'] < found['gpo'] < found['reinforce'] and found['reinforce'] > 0.5
  assert found['regularized'] == pytest.approx(0.25, abs=0.01)  # the reward points away: no weight of it is better than none
  assert found['wins_uniform'] == pytest.approx((2 * (1 / (1 + np.exp(-1)) - 0.5) + (1 / (1 + np.exp(1)) - 0.5)) / 4, rel=1e-5)


def test_the_annotator_s_logits_are_read_from_probabilities():
  p = np.array([[0.0, 0.8, 0.0], [0.2, 0.0, 0.5], [0.0, 0.5, 0.0]])  # 0 and 2 say the same and were not compared
  record = Scored(0, np.zeros(3), np.zeros((3, 3)), np.ones(3, int), np.zeros((3, 3)), probability=p)
  _, _, gold = self_play.matrices([record])
  np.testing.assert_allclose(gold[0], [[0, np.log(4), 0], [-np.log(4), 0, 0], [0, 0, 0]], rtol=1e-6)


def test_the_claim_runs_from_end_to_end(tmp_path):
  config = gpo.get_config()
  config.model.decoder = dict(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=2)
  config.arms = {name: arm for name, arm in config.arms.to_dict().items() if name == 'gpm'}
  config.claims = (('gpm.gpo', '<', 'gpm.uniform + 9', ''), ('gpm.regularized', '<=', 'gpm.greedy', ''))
  report = reproduce.reproduce(config, tmp_path, smoke=True)
  assert all(claim['holds'] for claim in report['claims'])
  assert report['arms']['gpm']['gold_mwu'][0] >= 0
