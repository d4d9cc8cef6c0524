"""Claims as a user runs them: arms, seeds, verdicts, going on after a stop, and every config that has a claim."""

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import fimi, gpm, oprm, small_world
from experiments import reproduce, systems_table, train_reward
from experiments.setup import setup
from rmjax.data import pipeline
from rmjax.errors import InputError
from rmjax.evaluation.claims import named_arms
from rmjax.training.mesh import one_device_mesh
from rmjax.training.saved import load_reward_model

SYSTEMS = {'gpm': gpm, 'oprm': oprm, 'fimi': fimi}
SMALL = dict(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=2)


def small(config, **changes):
  config.model.decoder = SMALL
  return reproduce.arm_config(config, tuple(changes.items()))


def claimed(**changes):
  config = small_world.get_config()
  config.arms = dict(cycle=(('world.cycle', 3.0),), plain=(), penalty=(('evaluation.correction', dict(name=PENALTY)), ('evaluation.validation', 10)))
  config.claims = (('plain.gold_accuracy', '>', 0.2, 'ours'), ('plain.gold_accuracy', '<', 0.1, 'never'))
  config.world.update(marks=3, grade=4.0)
  return small(config, **{'train.steps': 6, 'world.train_size': 100, 'world.eval_size': 30, 'seeds': (0, 3), **changes})


PENALTY = 'rmjax.evaluation.length_bias:length_penalty'


@pytest.mark.parametrize('name', SYSTEMS)
def test_every_arm_of_a_system_runs(name, tmp_path):
  config = small(SYSTEMS[name].get_config())
  assert config.system == name and set().union(*map(named_arms, config.claims)) <= set(config.arms)
  report = reproduce.reproduce(config, tmp_path, smoke=True)
  assert len(report['claims']) == len(config.claims) and set(report['arms']) == set(config.arms)
  assert (tmp_path / 'claims.png').stat().st_size > 0


@pytest.mark.parametrize('name', SYSTEMS)
def test_a_system_trains_by_the_main_program_too(name, tmp_path):
  changes = {'train.steps': 4, 'world.train_size': 60, 'world.eval_size': 20, 'evaluation.validation': 0}
  result = train_reward.train(small(SYSTEMS[name].get_config(), **changes), tmp_path)
  assert np.isfinite(result['loss']) and result['eval_num_records'] == 20
  assert type(load_reward_model(tmp_path).model.head).__name__ in SYSTEMS[name].get_config().model.head.name


def test_ratings_are_read_from_the_language_model_s_own_words(tmp_path):
  """Of the embedded world's tokenizer, which has numbers as words; the head has no parameters, so all that is learned is in the backbone."""
  words = ('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
  config = small(oprm.get_config(), **{'train.steps': 4, 'world.train_size': 60, 'world.eval_size': 20, 'data.suffix': ' it is', 'train.length': 160})
  config.model.head = dict(name='rmjax.heads.ordinal:OrdinalTokenHead', tokens=tuple(f' {word}' for word in words))
  result = train_reward.train(config, tmp_path)
  saved = load_reward_model(tmp_path)
  assert set(saved.params) == {'backbone'} and saved.data['suffix'] == ' it is'
  assert saved.model.head.token_ids == tuple(saved.tokenizer.backend.token_to_id(word) for word in words)
  assert 1 < result['eval_reward_min'] and result['eval_reward_max'] < 9 and np.isfinite(result['loss'])
  config.model.head.tokens = (' one', ' sixty six')
  with pytest.raises(InputError, match="the tokenizer splits ' sixty six'"):
    train_reward.train(config, tmp_path / 'other')


def test_the_digits_of_a_language_model():
  config = oprm.get_config('digits')
  assert config.model.head.tokens == tuple('123456789') and config.data.suffix == '\nScore:' and not config.world.name


@pytest.fixture(scope='module', name='whole')
def _whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('claims')
  return workdir, reproduce.reproduce(claimed(), workdir)


def test_verdicts_figures_and_files(whole):
  workdir, report = whole
  assert [claim['holds'] for claim in report['claims']] == [True, False]
  arm = json.loads((workdir / 'arms' / 'plain.json').read_text())
  accuracies = [seed['gold_accuracy'] for seed in arm['figures']]
  assert report['arms']['plain']['gold_accuracy'] == pytest.approx((np.mean(accuracies), np.std(accuracies, ddof=1) / 2**0.5))
  flat = json.loads((workdir / 'result.json').read_text())
  assert flat['plain/gold_accuracy'] == pytest.approx(np.mean(accuracies))
  assert report['arms']['penalty']['num_records'][0] == 20 and report['arms']['plain']['num_records'][0] == 30  # validation records are not measured


@pytest.mark.parametrize('backend', ['cpu', 'tpu'])
def test_seeds_together_are_the_seeds_alone(backend, monkeypatch):
  """Two seeds in one step, in turn or (as on a TPU) side by side, give each what the main program's step would: a seed decides parameters, records, order."""
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  config = claimed()
  together = reproduce.train_seeds(config, (0, 3))
  for seed, scored in zip((0, 3), together, strict=True):
    (alone,) = reproduce.train_seeds(config, (seed,))
    for a, b in zip(scored, alone, strict=True):
      np.testing.assert_allclose(a.rewards, b.rewards, atol=1e-4)
  assert not np.allclose(together[0][0].rewards[:2], together[1][0].rewards[:2], atol=1e-3)


@pytest.mark.parametrize('backend', ['cpu', 'tpu'])
def test_states_of_one_batch_learn_each_by_itself(backend, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  run = setup(claimed(), mesh=one_device_mesh())
  batch = next(pipeline.train_batches(run.train_source, run.encode, seed=0, **run.shape)).trees
  states = lambda: run.init(jax.random.split(jax.random.key(0), 2))  # anew, since a step takes them
  _, together = reproduce.compile_step(run, one_batch=True)(states(), batch)
  alone = [run.step(jax.tree.map(lambda x, i=i: x[i], states()), batch)[1] for i in range(2)]
  loss, _ = together['loss']  # sum and count, each of both states
  np.testing.assert_allclose(loss, [metrics['loss'][0] for metrics in alone], rtol=1e-5)
  assert abs(loss[0] - loss[1]) > 1e-2 * loss[0]


def test_what_is_done_is_not_done_again(whole, monkeypatch):
  workdir, report = whole
  monkeypatch.setattr(reproduce, 'train_seeds', None)
  again = reproduce.reproduce(claimed(), workdir)
  assert again['arms'] == report['arms']
  renamed = claimed(claims=(('plain.gold_accuracy', '>', 'cycle.accuracy - 2', 'another'),))
  assert reproduce.reproduce(renamed, workdir)['claims'][0]['holds']  # what is claimed changes nothing that was measured
  with pytest.raises(InputError, match='holds results of another config'):
    reproduce.reproduce(claimed(**{'train.steps': 7}), workdir)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'claims': (('gpn.accuracy', '>', 0.5, ''),)}, "there is no arm 'gpn'; there are cycle, penalty, plain"),
    ({'arms': dict(plain=(('evaluation.measures', ('rmjax.evaluation.summary:sumary',)),)), 'claims': ()}, "evaluation.measures.name = 'rmjax.*sumary'"),
    ({'arms': dict(a=(('model.heads.dim', 3),))}, 'arms: there is no config.model.heads.dim'),
    ({'arms': dict(a=(('train.steps', 'many'),))}, "arms: config.train.steps = 'many'"),
    ({'arms': dict(plain=(('losses.preference.per', 'batch'), ('train.accumulate', 2)))}, 'losses.preference is of a whole batch and train.accumulate = 2'),
    ({'arms': dict(plain=(('losses.preference.name', 'rmjax.losses.ordinal:quality_cross_entropy'),))}, 'losses.preference needs `quality`'),
  ],
)
def test_bad_input_is_one_clear_line(tmp_path, changes, message):
  config = claimed()
  for name, value in changes.items():
    config[name] = value
  with pytest.raises(InputError, match=message):
    reproduce.reproduce(config, tmp_path)


def test_the_table_shows_what_failed(whole):
  systems = [dict(slug='gpm', title='General Preference', family='preference'), dict(slug='dpo', title='Direct', family='policy')]
  text = systems_table.page(systems, {'gpm': whole[1]}, {'gpm': 'What it means.'}, {'studies': {}, 'real': {'real_x': whole[1]}})
  assert '| 1 | [gpm](#gpm) | General Preference | preference | 1 of 2 | `configs/gpm.py` |' in text and '| 2 | dpo |' in text
  assert '**fails**' in text and 'What it means.' in text and text.index('# On public') < text.index('## real_x') and '1 of 2 systems have a record' in text
  with pytest.raises(InputError, match="results/gpm.json: there is no system 'gpm'"):
    systems_table.page(systems[1:], {'gpm': whole[1]}, {}, {})


def test_the_committed_table_is_the_one_of_the_committed_records():
  root = Path(__file__).parents[2]
  systems, reports, notes, further = systems_table.read(root / 'results')
  assert len(systems) == 62
  assert (root / 'docs' / 'systems.md').read_text() == systems_table.page(systems, reports, notes, further)
  for slug, report in reports.items():
    config = importlib.import_module(f'configs.{slug}').get_config()
    assert [claim['claim'] for claim in report['claims']] == [f'{left} {relation} {right}' for left, relation, right, _ in config.claims]
    assert report['seeds'] == list(config.seeds) and not report['smoke'] and set(report['arms']) == set(config.arms)
