"""BaseReward, YOJO and MiCRo as configs: every arm is a config that builds, some run, and their programs' figures are those that claims speak of."""

import re

import numpy as np
import pytest

from configs import basereward, micro, yojo
from experiments import ensembles, inference, reproduce, train_reward
from experiments.setup import setup
from rmjax import named
from rmjax.data.records import Record
from rmjax.evaluation.claims import named_arms
from rmjax.evaluation.scored import Scored
from rmjax.training.mesh import one_device_mesh

SYSTEMS = {'basereward': basereward, 'yojo': yojo, 'micro': micro}
SMALL = dict(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=2)


def small(name, **changes):
  config = SYSTEMS[name].get_config()
  config.model.decoder = SMALL
  return reproduce.arm_config(config, tuple({'world.train_size': 200, 'world.eval_size': 20, 'train.steps': 2, **changes}.items()))


@pytest.mark.parametrize('name', SYSTEMS)
def test_every_arm_is_a_config_that_builds(name):
  config = small(name)
  assert config.system == name and set().union(*map(named_arms, config.claims)) <= set(config.arms)
  for each, overrides in config.arms.items():
    run = setup(reproduce.arm_config(config, overrides), mesh=one_device_mesh())
    tree = run.encode(run.train_source[0])
    assert not isinstance(tree, str) and not tree.labels['truncated'], each


def arm(config, name, seeds=(0,)):
  """Figures of an arm, by the program that `reproduce` would run."""
  config = reproduce.arm_config(config, config.arms[name])
  if config.runner:
    return named.resolve('runner', config.runner, '')(config, seeds)
  return [reproduce.measure(config, scored) for scored in reproduce.train_seeds(config, seeds)]


def spoken_of(config, name):
  """Figures of an arm that claims speak of."""
  return {figure for claim in config.claims for side in (claim[0], claim[2]) for figure in re.findall(rf'\b{name}\.(\w+)', str(side))}


def test_basereward_runs():
  config = small('basereward', **{'ensemble.calibration': 5})
  (frozen,), (ours,) = arm(config, 'silu2_frozen'), arm(config, 'ensemble')
  assert spoken_of(config, 'silu2_frozen') <= set(frozen) and spoken_of(config, 'ensemble') <= set(ours)
  assert 0 <= frozen['accuracy_plus'] <= frozen['accuracy']
  assert ours['single_gold_accuracy'] <= max(ours['best_of_2_gold_accuracy'], 1) and ours['mean2_best_of_n_gold'] <= ours['mean2_best_of_n_gold_most']


def test_yojo_runs():
  """One training: the arm `averaged` is measured from the scores of `chain`."""
  config = small('yojo', **{'cost.prompt': 96, 'cost.response': 8, 'cost.repeats': 1})
  chain, averaged = (reproduce.arm_config(config, config.arms[name]) for name in ('chain', 'averaged'))
  (scored,) = reproduce.train_seeds(chain, (0,))
  alone, mean = reproduce.measure(chain, scored), reproduce.measure(averaged, scored)
  assert spoken_of(config, 'chain') <= set(alone) and spoken_of(config, 'averaged') <= set(mean)
  assert alone['num_records'] == 4 * mean['num_records'] == 80
  one, two = arm(config, 'cost', (0, 1))
  assert spoken_of(config, 'cost') <= set(one) and one['seconds_chain'] > 0
  assert one['operations_chain'] == two['operations_chain'] < one['operations_separate'] / 2.5 < one['operations_chain'] * 4 / 2.5
  assert one['branch_ratio'] == pytest.approx(one['operations_ratio'], rel=0.05)


def test_micro_runs():
  config = small('micro', **{'router.budgets': (0, 5, 20, 50, 100)})
  (found,) = arm(config, 'joint')
  assert spoken_of(config, 'joint') | spoken_of(config, 'micro') <= set(found)
  assert found['routed_0'] == pytest.approx(found['named_accuracy']) and found['worst_5'] <= found['routed_5']
  assert found['matched_accuracy'] <= found['best_head_accuracy'] + 1e-9


def test_the_larger_member_decides_alone_if_nothing_is_standardised():
  rng = np.random.default_rng(0)
  record = lambda rewards: Scored(index=0, rewards=rewards, logits=np.zeros((4, 4)), lengths=np.ones(4, np.int64), wins=np.zeros((4, 4), np.float32))
  members = [[record(scale * rng.normal(size=4)) for _ in range(30)] for scale in (1.0, 1e6)]
  raw = ensembles.combine(members, 10, standardize=False)
  assert all(np.array_equal(np.argsort(a.rewards), np.argsort(b.rewards)) for a, b in zip(raw, members[1], strict=True))
  fair = ensembles.combine(members, 10)
  larger = ensembles.combine([members[0], [record(50 * one.rewards + 3) for one in members[1]]], 10)
  for a, b in zip(fair, larger, strict=True):
    np.testing.assert_allclose(a.rewards, b.rewards, atol=1e-4)
    np.testing.assert_allclose(a.logits, a.rewards[:, None] - a.rewards[None, :], atol=1e-6)
  assert any(not np.array_equal(np.argsort(a.rewards), np.argsort(b.rewards)) for a, b in zip(fair, raw, strict=True))


def test_a_chain_is_scored_as_a_chain_wherever_it_is_loaded(tmp_path):
  """A run's layout is found with it; `Saved.data` are the arguments that its text is prepared by."""
  config = small('yojo', **{'data.orders': 1, 'train.steps': 1, 'evaluation.measures': ()})
  train_reward.train(config, tmp_path)
  scorer = inference.load(str(tmp_path))
  blank = lambda *texts: Record('who asks : box ?\n', texts, np.zeros((len(texts),) * 2, np.float32), np.full(len(texts), np.nan, np.float32))
  first, changed, swapped = (
    one.rewards for one in scorer.score(map(blank, ('apple arm .',) * 2 + ('baby .',), ('baby .', 'egg .', 'apple arm .')), scorer.encode)
  )
  assert abs(first[0] - changed[0]) < 1e-6 and abs(first[0] - swapped[1]) > 1e-6
