"""The runner of constrained RLHF: what it makes of runs that are known, what is asked of gold and what is judged, and every arm from end to end."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from configs import constrained_rlhf
from experiments import constrained, reproduce
from experiments.constrained import Evaluated, Run
from rmjax.errors import InputError
from rmjax.evaluation.claims import named_arms

STEPS = np.arange(0.0, 101.0, 10.0)


def arm(name, **changes):
  config = constrained_rlhf.get_config()
  config.model.decoder = dict(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=2)
  return reproduce._smoke(reproduce.arm_config(config, (*config.arms[name], *changes.items())))


def a_run(lanes, gold, *, multiplier=0.0):
  """A run whose proxies are step / 100 and twice that, and whose KL is the step."""
  proxies = np.stack([STEPS / 100, STEPS / 50], -1)[:, None].repeat(lanes, 1)
  state = SimpleNamespace(params={'multipliers': np.full((lanes, 2), multiplier)})
  return Run(STEPS, gold, Evaluated(gold + 0.5, proxies, STEPS[:, None].repeat(lanes, 1)), SimpleNamespace(state=state))


def test_the_last_part_of_a_run_is_averaged_and_measured_against_its_thresholds():
  run = a_run(1, np.ones((11, 1)), multiplier=5.0)
  thresholds = np.array([[0.5, 2.0]])
  found = constrained._last(arm('mu_ppo'), run, 0, thresholds)  # the last fifth: steps 90 and 100
  assert found['gold'] == found['area'] == 1.5  # what is judged, and not what was asked
  assert (found['a'], found['b'], found['kl']) == pytest.approx((0.95, 1.9, 95))
  assert found['missed'] == pytest.approx(0.9)  # a is 0.45 above 0.5
  assert found['violated'] == pytest.approx(0.05)  # only b is too low
  assert found['capped'] == 1.0
  assert constrained._last(arm('xi_ppo'), run, 0, thresholds)['violated'] == pytest.approx(0.9)
  assert 'missed' not in constrained._last(arm('ppo'), run, 0)
  limits = np.array([[0.5, 2.0, -50.0]])
  assert constrained._last(arm('all_ppo'), run, 0, limits)['violated'] == pytest.approx(0.9)  # a and KL too high; b may be low
  assert 'capped' not in constrained._last(arm('ppo_sat'), run, 0, thresholds)


def test_choosing_takes_what_was_asked_and_gives_what_is_judged(monkeypatch):
  """Two choices for each of two seeds; gold as asked prefers the second choice for seed 0 and the first for seed 1."""
  rising, falling = STEPS / 100, 1 - STEPS / 100
  gold = np.stack([falling, rising, rising, falling], 1)  # lanes: (choice 0, seeds 0 and 1), (choice 1, seeds 0 and 1)
  monkeypatch.setattr(constrained, '_tried', lambda *args: a_run(4, gold))
  config = arm('ppo', **{'study.choices': ((2.0, 0.0), (0.0, 2.0))})
  best = constrained._choose(config, (0, 1), 'best_weights')
  assert [found['choice'] for found in best] == [1, 0] and [found['queries'] for found in best] == [2, 2]
  assert best[0]['gold'] == pytest.approx(0.95 + 0.5)
  monkeypatch.setattr(constrained, '_explored', lambda *args: SimpleNamespace(queries=22))
  hill = np.stack([-((STEPS - 40) ** 2), -((STEPS - 60) ** 2), -1 - (STEPS - 20) ** 2, -1 - (STEPS - 20) ** 2], 1)
  monkeypatch.setattr(constrained, '_tried', lambda *args: a_run(4, hill))
  stopped = constrained._choose(config, (0, 1), 'early_stopped')
  assert [found['stopped'] for found in stopped] == [40, 60] and stopped[0]['queries'] == 22 and stopped[0]['gold'] == 0.5
  assert stopped[0]['a'] == pytest.approx(0.4) and stopped[0]['kl'] == 40  # of the policy that was taken
  until = [np.r_[hill[:4, 0], np.zeros(7)], np.r_[hill[:6, 1], np.zeros(5)]]  # 0 is the top, held from the stop on
  assert [found['area'] for found in stopped] == pytest.approx([0.5 + np.trapezoid(values, STEPS) / 100 for values in until])
  monkeypatch.setattr(constrained, '_explored', lambda *args: SimpleNamespace(queries=6))
  assert constrained._choose(config, (0, 1), 'early_stopped')[0]['queries'] == 6  # as many as the fit has, and not more


def test_lanes_are_options_by_seeds():
  np.testing.assert_array_equal(constrained._each(((1, 0), (0, 1)), 2), [[1, 0], [1, 0], [0, 1], [0, 1]])


def test_claims_speak_of_arms_and_unknown_methods_are_named():
  config = constrained_rlhf.get_config()
  assert set().union(*map(named_arms, config.claims)) <= set(config.arms)
  with pytest.raises(InputError, match=re.escape("study.method = 'guess': choose explore, ")):
    constrained.study(arm('ppo', **{'study.method': 'guess'}), (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize('name', constrained_rlhf.get_config().arms)
def test_every_arm_runs(name):
  found = constrained.study(arm(name), (0, 3))
  assert len(found) == 2 and found[0].keys() == found[1].keys() and found[0] != found[1]
  assert all(np.isfinite(list(figures.values())).all() for figures in found)
  queries = max(figures['queries'] for figures in found)  # a search whose box is smaller than `same` is over after one
  assert queries == {'ppo': 5, 'ppo_best_kl': 5, 'ppo_no_kl': 0, 'xi_oracle': 0, 'early_stopped': 10, 'nm_ppo': 2}.get(name, 12)
