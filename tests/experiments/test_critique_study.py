"""MM-RLHF's config: claims speak of figures that are measured, every arm builds, and the policy's losses train."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import mm_rlhf
from experiments import critique_study, dynamic_beta, reproduce
from experiments.setup import setup
from rmjax.data.pipeline import train_batches
from rmjax.errors import InputError
from rmjax.evaluation.claims import check_claim, named_arms
from rmjax.training.mesh import one_device_mesh
from rmjax.worlds.critiques import Critiques

TOKENIZER = Critiques.tokenizer_path
SMALL = dict(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=2)


def small(name, **changes):
  config = mm_rlhf.get_config()
  config.model.decoder = SMALL
  sizes = {'world.train_size': 100, 'world.eval_size': 10, 'train.steps': 2, 'study.samples': 2, 'study.max_new_tokens': 3}
  return reproduce.arm_config(config, (*(sizes | changes).items(), *config.arms[name]))


def test_claims_are_of_what_is_measured():
  config = mm_rlhf.get_config()
  assert set().union(*map(named_arms, config.claims)) <= set(config.arms)
  runners = {name: reproduce.arm_config(config, overrides).runner for name, overrides in config.arms.items()}
  ours = [name for name, runner in runners.items() if runner == config.runner]
  for name in ours:
    run = setup(small(name), mesh=one_device_mesh())
    tree = run.encode_all(run.train_source[0])
    assert not tree.labels['truncated'] and ('critique_lengths' in tree.labels) == (name not in ('scalar', 'many')), name
  found = critique_study.study(small('critique', **{'study.critiques': critique_study.KINDS}), (0, 1))
  figures = dict.fromkeys(ours, found)
  for claim in config.claims:
    if named_arms(claim) <= set(ours):
      check_claim(claim, figures)
  one = found[0]
  assert one['gold_nll'] > 0 and one['own_exact'] == 0 and len({one[f'{kind}_reward_mean'] for kind in ('none', 'gold', 'exchanged')}) == 3


def test_a_kind_of_critique_that_there_is_not():
  with pytest.raises(InputError, match="study.critiques = 'mine'"):
    critique_study.study(small('critique', **{'study.critiques': ('mine',)}), (0,))


ROW = dict(prompt='who asks : box ?\n', responses=['egg .', 'fork .'], wins=[[0, 1], [0, 0]])


@pytest.mark.parametrize('arg', ['dpo', 'dpo_released'])
def test_the_policys_losses_in_the_training_step(arg, tmp_path):
  """On rows with `ref_rewards`: a margin in them changes the loss of the one, and not of the other. A margin of the policy's own changes both."""
  config = mm_rlhf.get_config(arg)
  config.model.decoder, config.model.dtype = SMALL, 'float32'
  config.data.tokenizer = str(TOKENIZER)
  config.train.update(rows=2, length=32, slots=1, steps=2)

  rows = tmp_path / 'rows.jsonl'
  rows.write_text(json.dumps({**ROW, 'labels': {'ref_rewards': [0.0, 0.0]}}) + '\n')
  config.data.update(train=str(rows), eval=str(rows))
  run = setup(config, mesh=one_device_mesh())
  batch = next(train_batches(run.train_source, run.encode, seed=0, **run.shape)).trees
  start, objective = run.init(jax.random.key(0)).params, jax.jit(run.objective)

  def loss(margin, moved):
    params = {'reward': {**start['reward'], 'backbone': jax.tree.map(lambda x: (1 + moved) * x, start['reward']['backbone'])}}
    labels = {**batch.labels, 'ref_rewards': batch.labels['ref_rewards'] + np.float32([margin, 0.0])}
    sums, counts = objective(params, dataclasses.replace(batch, labels=labels), jax.random.key(1), 0)
    return float(sums['loss']['preference'] / counts['loss']['preference'])

  assert loss(0.0, 0.0) == pytest.approx(np.log(2), abs=1e-6)  # at the reference
  unsure, sure = loss(0.0, 0.5), loss(9.0, 0.5)
  assert (unsure != sure) == (arg == 'dpo') and abs(unsure - np.log(2)) > 1e-4
  with pytest.raises(InputError, match='mm_rlhf.py:ppo'):
    mm_rlhf.get_config('ppo')


def test_dynamic_beta_is_studied_where_all_is_known():
  """Without noise the reward model is always right; every policy gains, the more the smaller its beta; claims are of its figures."""
  policy = lambda name, **changes: small(name, **{'dynamic.steps': 20, 'dynamic.prompts': 30, 'dynamic.test': 100, 'dynamic.strengths': (0.2, 0.8)} | changes)
  found = {name: dynamic_beta.study(policy(name), (0, 1)) for name in ('dpo', 'mm_dpo_clean', 'released')}
  assert found['mm_dpo_clean'][0]['reward_accuracy'] == 1 > found['dpo'][0]['reward_accuracy'] > 0.5
  assert all(found[name][0]['label_accuracy'] == found['dpo'][0]['label_accuracy'] < 1 for name in found)
  assert len({round(found[name][0]['kl_of_0'], 6) for name in found}) == 3  # they are different methods
  for figures in found.values():
    assert all(seed['kl_of_0'] > seed['kl_of_1'] > 0 and seed['gain_5'] > 0 for seed in figures)
  for claim in mm_rlhf.get_config().claims:
    if named_arms(claim) <= set(found):
      check_claim(claim, found)
  config = policy('dpo')
  config.dynamic.method = 'ppo'
  with pytest.raises(InputError, match="dynamic.method = 'ppo'"):
    dynamic_beta.study(config, (0,))
