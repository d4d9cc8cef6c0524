"""Studies of graded reward models: what their figures are made of, on scores that we make."""

import numpy as np
import pytest

from configs import mrmbench, rewardbench2
from experiments import graded_models
from experiments.reproduce import arm_config
from rmjax.errors import InputError
from rmjax.evaluation.scored import Scored


def scored(rewards, gold):
  n = len(gold)
  return Scored(0, np.array(rewards, float), np.zeros((n, n)), np.ones(n, int), np.zeros((n, n)), gold=np.array(gold, float))


def test_gain_is_of_the_highest_reward_over_the_mean():
  records = [scored([0, 5, 1], [3.0, 1.0, 2.0]), scored([9, 5, 1], [3.0, 1.0, 2.0])]
  assert graded_models.best_of_n_gain(records) == pytest.approx((1 - 2 + 3 - 2) / 2)


def test_gold_s_best_comes_first():
  np.testing.assert_array_equal(graded_models._right_first(scored([7, 8, 9], [0.1, 0.3, 0.2]), np.array([0, 2])), [9, 7])


def test_slopes_are_what_the_reward_is_made_of():
  rng = np.random.default_rng(0)
  records = []
  for _ in range(300):
    levels = rng.random((4, 2))
    labels = {f'trait_{j}': levels[:, j] for j in range(2)}
    records.append(Scored(0, levels @ [2.0, 0.0] + rng.normal(), np.zeros((4, 4)), np.ones(4, int), np.zeros((4, 4)), labels=labels))
  slopes = graded_models._slopes(records, 2)
  assert slopes[0] > 3  # 1 / the standard deviation of a level within its prompt
  assert abs(slopes[1]) < 1e-6


def test_a_grade_is_what_a_model_learns_from():
  config = rewardbench2.get_config()
  source = graded_models._source(config, graded_models.Grade(60, 1.0, 2), 5)
  records = [source[i] for i in range(len(source))]
  assert len(records) == 60
  assert {int(record.labels['topic']) for record in records} == {0, 1}
  compared = [record.wins + record.wins.T > 0 for record in records]
  assert all(record.labels['flipped'][seen].all() for record, seen in zip(records, compared, strict=True))


@pytest.mark.parametrize('grade', [(0, 0.0, 1), (10, 0.0, 7)])
def test_a_grade_that_there_is_not(grade):
  with pytest.raises(InputError, match='study.grades'):
    graded_models._source(rewardbench2.get_config(), graded_models.Grade(*grade), 0)


@pytest.mark.parametrize('module', [rewardbench2, mrmbench])
def test_studies_run(module):
  config = module.get_config()
  small = dict(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=2)
  config = arm_config(config, (*config.smoke, ('train.steps', 2), ('model.decoder', small)))
  found = module_runner(config)(config, (0, 1))
  assert len(found) == 2
  wanted = {name for claim in config.claims for side in (claim[0], claim[2]) for name in _figures(str(side))}
  assert wanted <= found[0].keys()
  assert all(np.isfinite(figures[name]) for figures in found for name in figures if not name.startswith(('r_', 'p_')))  # two steps may rank all alike


def module_runner(config):
  return getattr(graded_models, config.runner.split(':')[1])


def _figures(side):
  return [part.split('.')[1].split()[0].rstrip(')') for part in side.split('graded')[1:]]
