"""Policies as reward models through the programs: pretrained, trained on preferences against a reference, resumed, scored, exported."""

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import dpo, sft
from experiments import train_reward
from experiments.evaluate import evaluate
from experiments.export import export
from experiments.inference import load
from experiments.setup import setup
from rmjax import trees
from rmjax.backbones import pretrained
from rmjax.data import pipeline
from rmjax.data.records import pairwise_wins, Record
from rmjax.data.unpaired import Unpaired
from rmjax.errors import InputError
from rmjax.evaluation.scoring import score_records
from rmjax.evaluation.summary import summary
from rmjax.training import loop
from rmjax.training.mesh import one_device_mesh, use_mesh
from rmjax.training.saved import abstract_params, load_backbone, load_reward_model
from rmjax.worlds.preferences import Preferences

SIZES = {'world.eval_size': 20, 'world.train_size': 60, 'train.log_every': 1, 'train.steps': 6, 'mesh.data': 8}
LORA = dict(rank=2, alpha=4.0, modules='.*/(query|value)$')


def tiny(config: ml_collections.ConfigDict, **changes):
  config.model.decoder = dict(hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=2)
  config.update_from_flattened_dict({**SIZES, **changes})
  return config.lock()


def policy(variant, path, **changes):
  return tiny(dpo.get_config(f'world,{variant}'), **{'model.path': str(path), **changes})


def lines(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def params_of(workdir):
  return jax.tree.map(np.asarray, load_reward_model(workdir).params)


@pytest.fixture(scope='module', name='start')
def _start(tmp_path_factory):
  """A policy that has seen a little text."""
  workdir = tmp_path_factory.mktemp('sft')
  train_reward.train(tiny(sft.get_config(), **{'train.steps': 20}), workdir)
  return workdir


@pytest.fixture(scope='module', name='frozen')
def _frozen(start, tmp_path_factory):
  """DPO against the policy that it started from."""
  workdir = tmp_path_factory.mktemp('frozen')
  return workdir, train_reward.train(policy('dpo', start, **{'optimizer.learning_rate': 3e-3}), workdir)


def test_sft_is_nats_a_token(start):
  loss = [line['loss'] for line in lines(start) if 'loss' in line]
  vocabulary = load_reward_model(start).model.backbone.config.vocab_size
  assert np.log(vocabulary) < loss[0] < 4 * np.log(vocabulary) and loss[-1] < loss[0] - 1


def test_a_run_of_dpo_starts_at_ln_2_and_leaves_its_reference_as_it_was(start, frozen):
  workdir, result = frozen
  first, *_, last = [line for line in lines(workdir) if 'loss' in line]
  np.testing.assert_allclose(first['loss'], np.log(2), atol=1e-5)
  assert last['loss'] < first['loss'] - 1e-3
  assert {'rewards/chosen', 'rewards/rejected', 'rewards/accuracies', 'rewards/margins', 'logps/chosen', 'logps/rejected'} <= last.keys()
  np.testing.assert_allclose(last['rewards/margins'], last['rewards/chosen'] - last['rewards/rejected'], atol=1e-5)
  before, after = params_of(start), params_of(workdir)
  jax.tree.map(np.testing.assert_array_equal, after['reference'], before['backbone'])
  assert max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(after['backbone']), jax.tree.leaves(before['backbone']), strict=True)) > 1e-3
  np.testing.assert_allclose(result['eval_loss'], result['eval_nll'], rtol=1e-4)  # the scorer, which packs differently, measures the same


def test_the_evaluation_program_finds_what_training_found(frozen):
  workdir, result = frozen
  found = evaluate(load(str(workdir), length=128), {'world': Preferences(**_world_of(workdir))})
  np.testing.assert_allclose(found['world/nll'], result['eval_nll'], rtol=1e-5)
  assert found['world/accuracy'] == pytest.approx(result['eval_accuracy'])


def _world_of(workdir):
  config = json.loads((workdir / 'config.json').read_text())
  world = {name: tuple(x) if isinstance(x, list) else x for name, x in config['world'].items() if name not in ('name', 'train_size', 'eval_size')}
  return dict(split='eval', seed=config['seed'], size=config['world']['eval_size'], **world)


class Crash(Exception):
  """Stands for anything that ends a process."""


def test_a_crashed_run_resumes_bit_for_bit(start, frozen, tmp_path, monkeypatch):
  calls, real = iter(range(100)), loop.shard_batch

  def shard_or_crash(batch, mesh):
    if next(calls) == 4:
      raise Crash
    return real(batch, mesh)

  config = policy('dpo', start, **{'optimizer.learning_rate': 3e-3})
  with config.unlocked():
    config.train.save_every = 2  # the first run saved at its end alone
  with monkeypatch.context() as patch:
    patch.setattr(loop, 'shard_batch', shard_or_crash)
    with pytest.raises(Crash):
      train_reward.train(config, tmp_path)
  train_reward.train(config, tmp_path)
  jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path), params_of(frozen[0]))


def test_a_cached_reference_trains_as_a_live_one(start, frozen, tmp_path):
  workdir, result = frozen
  cached = train_reward.train(policy('dpo', start, **{'model.head.reference': 'cached', 'optimizer.learning_rate': 3e-3}), tmp_path)
  for name in ('loss', 'eval_loss', 'eval_nll', 'eval_accuracy', 'rewards/chosen'):
    np.testing.assert_allclose(cached[name], result[name], rtol=1e-3, atol=1e-5)
  saved = load_reward_model(tmp_path)  # other data have no such label: the reference is read again, and lives
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), saved.params['reference'], params_of(workdir)['reference'])
  found = evaluate(load(str(tmp_path), length=128), {'world': Preferences(**_world_of(tmp_path))})
  np.testing.assert_allclose(found['world/nll'], cached['eval_nll'], rtol=1e-5)


def test_an_exported_policy_is_a_language_model(start, frozen, tmp_path):
  assert export(frozen[0], tmp_path) == 'AutoModelForCausalLM'
  assert json.loads((tmp_path / 'config.json').read_text())['architectures'] == ['LlamaForCausalLM'] and pretrained.load_score(tmp_path) is None
  run = setup(policy('dpo', tmp_path))
  found, expected = run.init(jax.random.key(0)).params['reward'], params_of(frozen[0])['backbone']
  for part in ('backbone', 'reference'):
    jax.tree.map(np.testing.assert_array_equal, found[part], expected)
  with pytest.raises(InputError, match='has no reward head'):
    load_reward_model(tmp_path)


def one_batch(run, config):
  return next(pipeline.train_batches(run.train_source, run.encode, seed=config.seed, **run.shape)).trees


@pytest.mark.parametrize('variant', [name for name in dpo.VARIANTS if name != 'dpo'])
def test_every_variant_finds_what_its_losses_ask_for(start, variant):
  config = policy(variant, start)
  run = setup(config, mesh=one_device_mesh())
  params = {'reward': abstract_params(run.model, run.mesh)}
  sums, counts = jax.eval_shape(run.objective, params, one_batch(run, config), jax.random.key(0), jnp.int32(0))
  assert set(sums['loss']) == set(counts['loss']) == set(config.losses)
  assert ('reference' in params['reward']) == (config.model.head.reference == 'frozen')


def test_kto_starts_at_one_half(start):
  """Every rated response has reward 0 and so has the baseline; mismatched responses are seen and count for nothing else."""
  config = policy('kto', start)
  run = setup(config, mesh=one_device_mesh())
  batch, params = one_batch(run, config), run.init(jax.random.key(0)).params
  sums, counts = jax.jit(run.objective)(params, batch, jax.random.key(0), jnp.int32(0))
  np.testing.assert_allclose(sums['loss']['preference'] / counts['loss']['preference'], 0.5, atol=1e-5)
  rated = ~np.isnan(batch.labels['ratings'])
  assert counts['loss']['preference'] == rated.sum() and (batch.labels['mismatched'] == 1).sum() == (batch.prompt_ends >= 0).sum()
  assert not (rated & (batch.labels['mismatched'] == 1)).any()
  scored = list(score_records(run.model, params['reward'], (run.eval_source[i] for i in range(3)), run.encode_all, mesh=run.mesh, **run.shape))
  figures = summary(scored)
  assert figures['num_pairs'] == 3 * 6 and np.isfinite(figures['nll'])


def test_adapters_need_no_second_copy(start):
  """The reference is the policy without them; a run of adapters is merged where another starts from it."""
  config = policy('dpo', start)
  with config.unlocked():
    config.model.lora = LORA
  run = setup(config, mesh=one_device_mesh())
  with use_mesh(run.mesh):
    state = run.init(jax.random.key(0))
    assert state.params['reward'].keys() == {'backbone'}
    step = jax.jit(run.step)
    moved, metrics = step(state, one_batch(run, config))
    np.testing.assert_allclose(metrics['loss'][0] / metrics['loss'][1], np.log(2), atol=1e-5)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(moved.params), jax.tree.leaves(state.params), strict=True):
      assert (np.asarray(a) != np.asarray(b)).any() == ('kernel_lora_b' in jax.tree_util.keystr(path))


def test_a_run_without_what_is_needed_is_named(start):
  abstract = load_reward_model(start).params['backbone']
  with pytest.raises(InputError, match=r"the run in .* is of another architecture: \['unembedding'\]\['kernel'\] is absent there"):
    load_backbone(start, {**abstract, 'unembedding': {'kernel': jnp.zeros((16, 8))}})
  with pytest.raises(InputError, match='config.model.path is empty: a reference is a trained model'):
    setup(policy('dpo', '', **{'model.head.reference': 'cached'}))
  with pytest.raises(InputError, match=r'configs/dpo.py:ppo: choose one of dpo, ipo, '):
    dpo.get_config('ppo')


class Few:
  """Records in a list."""

  bad = ()

  def __init__(self, *records):
    self.records = records

  def __len__(self):
    return len(self.records)

  def __getitem__(self, index):
    return self.records[index]


def record(prompt, *responses, wins=(), ratings=None, **labels):
  ratings = np.full(len(responses), np.nan, np.float32) if ratings is None else np.array(ratings, np.float32)
  return Record(prompt, responses, pairwise_wins(len(responses), wins), ratings, where=f'here:{prompt}', labels=labels)


def test_unpaired_records():
  gold = np.array([1.0, 2.0, 3.0], np.float32)
  ranked = record('a', 'x', 'y', 'z', wins=[(0, 1, 1.0), (0, 2, 1.0), (1, 2, 1.0)], gold=gold, size=np.int32(3))
  again, rated = record('a', 'w', ratings=[1.0], gold=gold[:1], size=np.int32(3)), record('b', 'v', ratings=[0.0], gold=gold[:1], size=np.int32(3))
  source = Unpaired(Few(ranked, again, rated))
  first = source[0]
  assert first.responses == ('x', 'y', 'z', 'v')
  np.testing.assert_array_equal(first.ratings, [1, np.nan, 0, np.nan])  # the second won half of its comparisons
  np.testing.assert_array_equal(first.labels['mismatched'], [0, 0, 0, 1])
  np.testing.assert_array_equal(first.labels['gold'], [1, 2, 3, np.nan])
  assert first.labels['size'] == 3 and first.wins.shape == (4, 4) and (first.wins[3] + first.wins[:, 3] == 0).all()
  assert source[1].responses == ('w', 'v')  # the record before has the same prompt
  np.testing.assert_array_equal(source[2].ratings, [0, np.nan])
  with pytest.raises(InputError, match='here:a: all records have one prompt'):
    Unpaired(Few(ranked, again))[0]
  with pytest.raises(InputError, match='the data has 1 record'):
    Unpaired(Few(ranked))


def test_labels_that_scoring_keeps(start):
  """A record that was refused has no reference, and is refused again."""
  run = setup(policy('dpo', start, **{'model.head.reference': 'cached', 'data.too_long': 'refuse', 'data.max_length': 24, 'world.train_size': 40}))
  labels = [run.train_source[i].labels['ref_log_probs'] for i in range(40)]
  refused = [isinstance(run.encode(run.train_source[i]), str) for i in range(40)]
  assert 0 < sum(refused) < 40
  assert [bool(np.isnan(x).all()) for x in labels] == refused
  params = run.init(jax.random.key(0)).params['reward']
  scored = list(score_records(run.model, params, (run.train_source[i] for i in range(40)), run.encode_all, mesh=run.mesh, **run.shape))
  for item, label in zip(scored, labels, strict=True):
    if not item.refused:
      np.testing.assert_allclose(item.rewards, 0.0, atol=1e-5)
      assert (label < 0).all()
  tree = run.encode(run.train_source[refused.index(False)])
  assert isinstance(tree, trees.Tree) and 'ref_log_probs' in tree.labels
