"""The study of curation: every arm runs, spends its budget and no more, and tells nothing of gold but what humans say."""

import json

import numpy as np
import pytest

from configs import skywork_v2
from experiments import curation_study, reproduce
from rmjax.errors import InputError
from rmjax.evaluation.claims import named_arms

SMALL = dict(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=2)


def small(**changes):
  config = skywork_v2.get_config()
  config.model.decoder = SMALL
  sizes = {'train.steps': 2, 'world.train_size': 120, 'world.eval_size': 30, 'study.seed_labels': 20, 'study.budget': 40}
  return reproduce.arm_config(config, tuple((sizes | changes).items()))


def test_every_arm_runs_and_spends_the_same(monkeypatch):
  config = small()
  fit, trained = curation_study._fit, []  # one training will do for all: what is trained on is the matter here

  def once(*args):
    trained.extend([] if trained else fit(*args))
    return trained

  monkeypatch.setattr(curation_study, '_fit', once)
  assert set().union(*map(named_arms, config.claims)) <= set(config.arms)
  found = {name: curation_study.study(reproduce.arm_config(config, overrides), (0, 1)) for name, overrides in config.arms.items()}
  for name, seeds in found.items():
    assert [figures['human'] for figures in seeds] == [20, 20] if name == 'seed' else [40, 40]
    assert all(0 <= figures['gold_accuracy'] <= 1 for figures in seeds)
  assert found['random'][0]['precision'] == found['retrieval'][0]['precision'] == 1
  assert found['raw'][0]['pairs'] > 100 and 0.5 < found['raw'][0]['precision'] < 1
  assert {'kept', 'precision_kept', 'margin_pool_50'} <= set(found['full'][0]) and 'recycled' in found['recycled'][0]
  for claim in config.claims:  # every figure that is claimed is measured
    reproduce.check_claim(claim, found)


def test_the_noise_is_where_it_is_said_to_be():
  config = small(**{'world.train_size': 2000})
  (pool,) = curation_study._pools(*_shared(config))
  wrong = np.array([record.labels['flipped'][0, 1] for record in pool.records])
  noisy = np.array([record.labels['topic'] >= 7 for record in pool.records])
  assert abs(wrong.mean() - 0.352) < 0.03 and abs(wrong[noisy].mean() - 0.8) < 0.05
  voted = pool.voted == pool.gold
  assert 0.6 < voted.mean() < 0.95 and abs(voted[noisy].mean() - voted[~noisy].mean()) < 0.15  # theirs is another noise


def _shared(config):
  return json.dumps(config.to_dict()), (0,)


def test_a_method_that_there_is_not():
  with pytest.raises(InputError, match="study.method = 'magic': choose one of seed, random"):
    curation_study.study(small(**{'study.method': 'magic'}), (0,))
