"""The study of reward against KL: the exact optimum's frontier, what a frontier's figures are, and every method once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import dpo
from experiments import dpo_frontier
from experiments.reproduce import arm_config
from rmjax.errors import InputError

TINY = dict(
  pretrain=60, pairs=32, samples=8, steps=2, iterations=2, rows=8, strengths=(0.5, 4.0),
  decoder=dict(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=2),
)  # fmt: skip


def tiny(method, **changes):
  config = dpo.get_config()
  return arm_config(config, [('frontier.method', method), *((f'frontier.{name}', value) for name, value in {**TINY, **changes}.items())])


def test_the_optimum_of_a_normal_reward_gains_the_root_of_twice_the_divergence():
  """Tilting N(m, s^2) by r / beta moves its mean by s^2 / beta, at a KL of s^2 / (2 beta^2)."""
  values = 0.3 + 2.0 * stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
  divergences = jnp.array([0.1, 0.5, 1.0, 2.0])
  best = jax.jit(dpo_frontier._optimum)(jnp.asarray(np.stack([values, values]), jnp.float32), divergences)
  np.testing.assert_allclose(best, 0.3 + 2.0 * np.sqrt(2 * divergences), rtol=5e-3)


def test_a_method_without_a_name_is_refused():
  with pytest.raises(InputError, match="frontier.method = 'ppo': choose one of dpo, ipo"):
    dpo_frontier.study(tiny('ppo'), (0,))


@pytest.mark.parametrize('method', [pytest.param(name, marks=[pytest.mark.slow] * (name != 'dpo')) for name in dpo_frontier.METHODS])
def test_every_method_runs_on_the_same_ground(method):
  figures = dpo_frontier.study(tiny(method), (0, 3))
  assert len(figures) == 2 and all(np.isfinite(value) for seed in figures for value in seed.values())
  assert {'gain_20', 'gain_400', 'best_gain'} <= figures[0].keys() and figures[0] != figures[1]
  if method == 'optimum':
    gains = [figures[0][name] for name in ('gain_20', 'gain_50', 'gain_100', 'gain_200')]
    assert 0 < gains[0] and gains == sorted(gains)
  else:
    assert figures[0].keys() == figures[1].keys() and figures[0]['kl_of_0'] >= 0
    assert (method == 'learned') == ('proxy_accuracy' in figures[0])


def test_every_claim_names_figures_that_there_are():
  config = dpo.get_config()
  divergences = {round(100 * d) for d in config.frontier.divergences}
  for left, _, right, _ in config.claims:
    for side in (left, right):
      arm, figure = side.split('.')
      assert arm in config.arms and (figure == 'best_gain' or int(figure.removeprefix('gain_')) in divergences)
