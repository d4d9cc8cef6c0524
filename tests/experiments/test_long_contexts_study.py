"""The claim of long contexts from end to end: its two stages, interpolated positions, accuracy by length; and both stages by the main program."""

import itertools
import json

import jax
import numpy as np
import pytest

from configs import longrm
from experiments import long_contexts, reproduce, train_reward
from rmjax import trees
from rmjax.backbones.decoder import DecoderConfig
from rmjax.data import pipeline
from rmjax.errors import InputError
from rmjax.evaluation.claims import named_arms
from rmjax.evaluation.rankings import rank_match
from rmjax.evaluation.scored import Scored
from rmjax.models import build
from rmjax.training.mesh import one_device_mesh
from rmjax.training.saved import init_params, load_reward_model

SMALL = dict(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=2)


TINY = (('model.decoder', SMALL), ('train.steps', 1), ('world.train_size', 30), ('world.eval_size', 6), ('train.eval_every', 0), ('world.responses', 3))


def small(**changes):
  config = longrm.get_config()
  config.model.decoder = SMALL
  return reproduce.arm_config(config, tuple(changes.items()))


def test_arms_run_and_what_they_share_is_trained_once(tmp_path, monkeypatch):
  config, trained, fit = small(**{'world.eval': dict(lengths=(32, 64), reach=0.0)}), [], reproduce.fit_seeds
  assert config.system == 'longrm' and set().union(*map(named_arms, config.claims)) <= set(config.arms)

  config.arms = {name: arm for name, arm in config.arms.to_dict().items() if name != 'short_to_long'}  # the config as it is
  config.claims = tuple(claim for claim in config.claims if named_arms(claim) <= set(config.arms))
  for length in (128, 256, 512):  # which take a compile each
    config.claims = tuple(tuple(part.replace(str(length), '64') for part in claim) for claim in config.claims)

  def counted(config, seeds, **options):
    trained.append((config.train.steps, tuple(config.world.lengths), config.world.reach, bool(options.get('start'))))
    return fit(config, seeds, **options)

  monkeypatch.setattr(long_contexts, 'fit_seeds', counted)
  report = reproduce.reproduce(config, tmp_path, smoke=True)
  assert len(report['claims']) == len(config.claims) and set(report['arms']) == set(config.arms)
  mixed = tuple(config.world.lengths)
  assert sorted(trained) == sorted([(2, (32,), 0.0, False), (2, (32,), 0.0, True), (2, mixed, 100.0, True)])
  assert json.loads((tmp_path / 'arms' / 'short.json').read_text())['figures'][0].keys() >= {'accuracy_32', 'accuracy_64', 'accuracy'}


def test_the_second_stage_goes_on_where_the_first_stopped():
  """With a learning rate of nothing it stays there; each seed at its own."""
  config = small(**{'train.steps': 1, 'world.train_size': 50, 'optimizer.learning_rate': 0.0, 'world.lengths': (32,), 'train.rows': 1})
  run = reproduce.setup(config, mesh=one_device_mesh())
  start = [run.init(jax.random.key(seed)).params['reward'] for seed in (7, 8)]
  found = [params for _, params in reproduce.fit_seeds(config, (100, 101), start=start)]
  for one, other in zip(start, found, strict=True):
    jax.tree.map(np.testing.assert_array_equal, one, other)
  assert any((np.asarray(x) != y).any() for x, y in zip(*map(jax.tree.leaves, found), strict=True))


def test_interpolated_positions_are_fractions():
  """A network scores texts whose positions are all doubled, divided by two, as it did before; and no other way the same."""
  model = build(DecoderConfig(vocab_size=32, **SMALL), dtype='float32', remat='none', head=dict(name='rmjax.heads.scalar:ScalarHead'), lora=dict(rank=0))
  params = init_params(model, '', one_device_mesh(), jax.random.key(0))
  batch = trees.pack([[trees.branch([3, 4, 5, 6], [[7, 8], [9]])]], length=8, slots=1, responses=2)
  spread = trees.Trees(**{**vars(batch), 'positions': 2 * batch.positions})
  plain, back, apart = (m.apply({'params': params}, b) for m, b in ((model, batch), (long_contexts.interpolated(model, 2.0), spread), (model, spread)))
  np.testing.assert_allclose(back, plain, atol=1e-5)
  assert np.abs(apart - plain).max() > 1e-3
  assert long_contexts.interpolated(model, 1.0) is model


def test_accuracy_by_length():
  """Records of two lengths, three pairs: the model's order is right in one of two, and ties in the third."""
  win = np.array([[0, 1], [0, 0]], np.float32)
  make = lambda index, subset, gap: Scored(index, np.zeros(2), np.array([[0, gap], [-gap, 0.0]]), np.ones(2, int), win, group=index, subset=subset)
  found = long_contexts.accuracies([make(0, '32', 1.0), make(1, '32', -1.0), make(2, '64', 0.0)])
  assert found == pytest.approx(dict(accuracy_32=0.5, accuracy_64=0.5, accuracy=0.5))
  assert long_contexts.accuracies([make(0, '32', 1.0), make(2, '64', 0.0)]) == pytest.approx(dict(accuracy_32=1.0, accuracy_64=0.5, accuracy=0.75))


def test_two_stages_by_the_main_program(tmp_path):
  """`:short`, and what a run of the mix that is given its directory starts from."""
  short = longrm.get_config('short')
  assert short.world.lengths == (32,) and 128 in longrm.get_config().world.lengths
  train_reward.train(reproduce.arm_config(short, (*TINY, ('train.length', 64))), tmp_path / 'short')
  first = load_reward_model(tmp_path / 'short').params['backbone']
  again = reproduce.arm_config(longrm.get_config(), (*TINY, ('model.path', str(tmp_path / 'short'))))
  found = reproduce.setup(again, mesh=one_device_mesh()).init(jax.random.key(5)).params['reward']['backbone']
  jax.tree.map(np.testing.assert_array_equal, first, found)


def test_the_loss_of_the_alignment_stage():
  """The first loss is the card's formula on the model's own mean log-probabilities."""
  config = reproduce.arm_config(longrm.get_config('logo'), (*TINY, ('world.lengths', (32,)), ('train.length', 64)))
  run = reproduce.setup(config, mesh=one_device_mesh())
  batch = next(pipeline.train_batches(run.train_source, run.encode, seed=0, **run.shape)).trees
  params = run.init(jax.random.key(0)).params
  sums, counts = jax.jit(run.objective)(params, batch, jax.random.key(0), 0)
  scores = run.model.apply({'params': params['reward']}, batch)
  each, gold = np.asarray(scores.log_probs / np.maximum(scores.num_tokens, 1)), batch.labels['gold']
  expected = []
  for place in zip(*np.nonzero(np.asarray(batch.prompt_ends) >= 0), strict=True):
    (faithful,), wrong = each[place][gold[place] == 1], each[place][gold[place] == 0]
    expected.append(np.logaddexp(0, -(2.5 * (faithful - wrong.mean()) - 0.5)))
  assert len(expected) == counts['loss']['multi'] and sums['loss']['multi'] == pytest.approx(np.sum(expected), rel=1e-4)
  with pytest.raises(InputError, match="configs/longrm.py:long: choose 'short', 'logo' or nothing"):
    longrm.get_config('long')


def test_the_table_s_chance_is_that_of_whole_rankings():
  """Of the 24 orders of four: 1 / 4! are right as a whole (the paper's 4.2 %), and 1 / 4 of all places (what its formula says)."""
  wins = np.triu(np.ones((4, 4)), 1)
  exact, places = np.mean([rank_match(np.array(order, float), wins) for order in itertools.permutations(range(4))], axis=0)
  assert exact == pytest.approx(1 / 24) and places == pytest.approx(1 / 4)
