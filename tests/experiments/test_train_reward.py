"""The training program as a user runs it: to the end, through crashes, and into walls."""

import json
import os
from pathlib import Path
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import quickstart
from experiments import train_reward
from rmjax.errors import InputError
from rmjax.training import checkpoints, loop
from rmjax.training.saved import load_reward_model
from rmjax.worlds.preferences import Preferences

TINY = {
  'model.decoder': dict(hidden_size=16, intermediate_size=24, num_layers=3, num_heads=2, num_kv_heads=2),
  'train.steps': 12, 'train.rows': 8, 'train.log_every': 4, 'train.eval_every': 5, 'train.save_every': 3,
  'train.best': 'eval_accuracy',
  'world.eval_size': 20, 'world.train_size': 60,
}  # fmt: skip


def tiny(**changes):
  config = quickstart.get_config()
  config.model.decoder = TINY['model.decoder']
  config.update_from_flattened_dict({name: value for name, value in {**TINY, **changes}.items() if name != 'model.decoder'})
  return config.lock()


def final_params(workdir):
  return jax.tree.map(np.asarray, load_reward_model(workdir).params)


def figures(workdir):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [{name: value for name, value in line.items() if name != 'tokens_per_second'} for line in lines]


@pytest.fixture(scope='module', name='whole')
def _whole(tmp_path_factory):
  """A run that nothing interrupts."""
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, train_reward.train(tiny(), workdir)


def test_a_run_leaves_what_it_says(whole):
  workdir, result = whole
  for name in ('config.json', 'metrics.jsonl', 'result.json', 'tokenizer/tokenizer.json', 'figures/training.png', 'figures/reliability.png'):
    assert (workdir / name).stat().st_size > 0
  assert list((workdir / 'tensorboard').glob('events*'))
  saved = json.loads((workdir / 'result.json').read_text())
  assert saved['eval_accuracy'] == result['eval_accuracy'] and saved['eval_num_records'] == 20
  assert {'loss', 'accuracy', 'margin', 'mean_reward', 'num_tokens', 'grad_norm', 'learning_rate', 'epoch', 'tokens_per_second', 'eval_loss'} <= saved.keys()
  lines = figures(workdir)
  assert [line['step'] for line in lines if 'loss' in line] == [4, 8, 12] and [line['step'] for line in lines if 'eval_loss' in line] == [5, 10, 12]
  # The loop's own evaluation and the scorer's, which packs differently, are the same measurement.
  np.testing.assert_allclose(lines[-1]['eval_accuracy'], saved['eval_accuracy'], atol=1e-6)
  np.testing.assert_allclose(lines[-1]['eval_loss'], saved['eval_nll'], rtol=1e-5)
  assert saved['num_tokens'] == lines[-2]['num_tokens'] > 0


class Crash(Exception):
  """Stands for anything that ends a process."""


@pytest.mark.parametrize('moment', [2, 7])
def test_a_crashed_run_resumes_bit_for_bit(whole, tmp_path, monkeypatch, moment):
  calls = iter(range(100))
  real = loop.shard_batch

  def shard_or_crash(batch, mesh):
    if next(calls) == moment:
      raise Crash
    return real(batch, mesh)

  with monkeypatch.context() as patch:
    patch.setattr(loop, 'shard_batch', shard_or_crash)
    with pytest.raises(Crash):
      train_reward.train(tiny(), tmp_path)
  train_reward.train(tiny(), tmp_path)
  jax.tree.map(np.testing.assert_array_equal, final_params(tmp_path), final_params(whole[0]))
  assert figures(tmp_path) == figures(whole[0])  # the order of the data is in them


def test_resuming_onto_another_mesh(whole, tmp_path, monkeypatch):
  monkeypatch.setattr(loop.signal, 'signal', _stop_at_once(loop.signal.signal))
  with pytest.raises(loop.Preempted, match='SIGTERM at step 1: saved'):
    train_reward.train(tiny(**{'mesh.data': 4, 'mesh.fsdp': 2}), tmp_path)
  monkeypatch.undo()
  train_reward.train(tiny(**{'mesh.data': 8}), tmp_path)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), final_params(tmp_path), final_params(whole[0]))


def _stop_at_once(real):
  """Registers a handler and sends it the signal as if it had come right then."""

  def register(number, handler):
    previous = real(number, handler)
    if callable(handler):
      os.kill(os.getpid(), number)
    return previous

  return register


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
  config = tiny(**{'optimizer.learning_rate': 1e30, 'optimizer.warmup': 0.5, 'optimizer.schedule': 'linear', 'train.save_every': 1})
  with pytest.raises(loop.Diverged, match=r'loss is (nan|inf) at step \d+; its batch holds records [\d, -]+; (the last good checkpoint is|no checkpoint)'):
    train_reward.train(config, tmp_path)
  if (tmp_path / 'checkpoints').exists() and any((tmp_path / 'checkpoints').iterdir()):
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(final_params(tmp_path)))


def test_a_directory_holds_one_run(whole):
  with pytest.raises(InputError, match='holds a run with config.optimizer.learning_rate = 0.001, not 0.5: choose another --workdir'):
    train_reward.train(tiny(**{'optimizer.learning_rate': 0.5}), whole[0])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'data.train': 'nowhere.jsonl', 'data.eval': 'x.jsonl'}, 'nowhere.jsonl does not exist'),
    ({'data.train': '', 'world.name': ''}, 'config.data.train is empty: give --config.data.train=FILE'),
    ({'train.responses': 3}, r'train:\d+: 4 responses, and config.train.responses is 3'),
    ({'train.length': 16, 'data.too_long': 'refuse'}, r'every record of the training data was refused, the last one because: train:\d+: .* a row has 16'),
    ({'train.rows': 6}, r'train.rows / train.accumulate = 6 cannot be split 8 ways'),
    ({'mesh.tensor': 8, 'mesh.data': 1, 'train.rows': 1}, r'num_heads = 2 cannot be split 8 ways'),
    ({'mesh.tensor': 3}, 'does not fit 8 devices'),
    ({'model.path': 'nowhere'}, 'nowhere holds no config.json'),
    ({'data.tokenizer': 'nowhere'}, 'nowhere holds no tokenizer.json'),
    ({'model.remat': 'some'}, "remat = 'some': choose one of"),
    ({'optimizer.schedule': 'steps'}, "optimizer.schedule = 'steps': choose"),
    ({'train.best': 'eval_acuracy'}, "train.best = 'eval_acuracy': the evaluation gives eval_accuracy, eval_loss"),
    ({'world.temperature': 0.0}, 'world.temperature = 0.0: it must be above 0'),
  ],
)
def test_bad_input_is_one_clear_line(tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    train_reward.train(tiny(**changes), tmp_path)


def test_a_tokenizer_larger_than_the_embedding(tmp_path, reward_model):
  with pytest.raises(InputError, match=r'the tokenizer has \d{3} tokens and the embedding 64: set config.data.tokenizer to the one that .* was trained with'):
    train_reward.train(tiny(**{'model.path': str(reward_model), 'data.tokenizer': str(Preferences.tokenizer_path)}), tmp_path)


def test_a_checkpoint_of_another_architecture(tmp_path, whole):
  shutil.copytree(whole[0] / 'checkpoints', tmp_path / 'checkpoints')
  config = tiny()
  with config.unlocked():
    config.model.decoder.num_layers = 2
  with pytest.raises(InputError, match=r'checkpoints/12 is of another architecture: .* is \(3, 16, 16\) there, \(2, 16, 16\) in this config'):
    train_reward.train(config, tmp_path)


def run(workdir, *flags, **options):
  command = [sys.executable, '-m', 'experiments.train_reward', '--config=configs/quickstart.py', f'--workdir={workdir}']
  sizes = [f'--config.model.decoder.{name}={value}' for name, value in TINY['model.decoder'].items()]
  settings = [f'--config.{name}={value}' for name, value in TINY.items() if name != 'model.decoder']
  root = Path(__file__).parents[2]
  cache = dict(JAX_PLATFORMS='cpu', JAX_COMPILATION_CACHE_DIR=str(root / '.jax_cache'), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0')
  return subprocess.Popen([*command, *sizes, *settings, *flags], cwd=root, env={**os.environ, **cache}, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(
  ('flag', 'message'),
  [('--config.train.nope=1', 'nope'), ('--config.train.steps=many', 'many'), ('--config.data.eval=nowhere.jsonl', 'config.data.train is empty')],
)
def test_the_command_line_says_one_line_and_fails(tmp_path, flag, message):
  process = run(tmp_path, *([flag] if 'data' not in flag else [flag, '--config.world.name=']))
  error = process.communicate(timeout=120)[1]
  (line,) = [line for line in error.splitlines() if line.startswith('error: ')]
  assert process.returncode == 1 and message in line and 'Traceback' not in error


def test_a_bad_row_says_how_to_leave_it_out(tmp_path):
  (tmp_path / 'bad.jsonl').write_text('{"prompt": "w1", "chosen": "w1"}\n')
  process = run(tmp_path / 'run', f'--config.data.train={tmp_path}/bad.jsonl', f'--config.data.eval={tmp_path}/bad.jsonl')
  error = process.communicate(timeout=120)[1]
  assert process.returncode == 1 and "bad.jsonl:1: column 'rejected': missing" in error
  assert error.strip().endswith('; --config.data.bad_rows=lenient leaves such rows out')


def test_sigterm_saves_and_says_so(tmp_path):
  process = run(tmp_path, '--config.train.steps=100000', '--config.train.save_every=0', '--config.train.eval_every=0')
  wait_for(lambda: (tmp_path / 'metrics.jsonl').exists() and (tmp_path / 'metrics.jsonl').read_text(), process)
  process.send_signal(signal.SIGTERM)
  error = process.communicate(timeout=60)[1]
  assert process.returncode == 143 and 'saved; run the same command to go on' in error
  assert checkpoints.read_meta(tmp_path)['totals']['records'] > 0


def test_a_full_disk_is_said_before_it_is_filled(tmp_path, monkeypatch):
  real, free = checkpoints.shutil.disk_usage, iter([10**9, 10**9, 1000])
  monkeypatch.setattr(checkpoints.shutil, 'disk_usage', lambda path: real(path)._replace(free=next(free)))
  with pytest.raises(OSError, match=r'^step 9 could not be saved; the checkpoint of step 6 is whole; make room .* has 1,000 bytes free, and [\d,]+ are needed'):
    train_reward.train(tiny(), tmp_path)
  assert [path.name for path in (tmp_path / 'checkpoints').iterdir() if 'tmp' not in path.name][-1] == '6'
  final_params(tmp_path)


def test_a_write_that_fails_keeps_the_last_good_checkpoint(tmp_path):
  """A file size limit makes the kernel refuse the writes of a live process, as a disk that fills up meanwhile does."""
  process = run(tmp_path, '--config.train.steps=100000', '--config.train.save_every=2', '--config.train.eval_every=0', '--config.train.best=')
  saved = lambda: [int(path.name) for path in tmp_path.glob('checkpoints/*') if path.name.isdigit()]
  wait_for(saved, process)
  limit = max(path.stat().st_size for path in tmp_path.rglob('events*')) + 2000
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
  error = process.communicate(timeout=60)[1]
  assert process.returncode == 1 and 'Traceback' not in error
  last = error.splitlines()[-1]
  assert re.match(r'error: OSError: step \d+ could not be saved; the checkpoint of step \d+ is whole; make room and run the same command', last), last
  good = int(re.search(r'checkpoint of step (\d+)', last)[1])
  assert checkpoints.read_meta(tmp_path)['totals']['records'] > 0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(final_params(tmp_path)))
  again = run(tmp_path, '--config.train.steps=100000', '--config.train.save_every=2', '--config.train.eval_every=0', '--config.train.best=')
  wait_for(lambda: max(saved(), default=0) > good, again)
  again.kill()
  again.communicate()


def test_the_best_checkpoint_is_kept_through_a_crash_and_found(tmp_path, monkeypatch):
  """The evaluations are made up: the best comes first, the crash after it."""
  qualities, real = {2: 0.9, 4: 0.5, 6: 0.7, 8: 0.6}, checkpoints.Checkpoints.save

  def save(self, state, iterator, meta, metrics=None):
    if int(state.step) == 6 and not (tmp_path / 'crashed').exists():
      (tmp_path / 'crashed').touch()
      raise Crash
    real(self, state, iterator, meta, {'eval_accuracy': qualities[int(state.step)]})

  monkeypatch.setattr(checkpoints.Checkpoints, 'save', save)
  config = tiny(**{'train.steps': 8, 'train.save_every': 2, 'train.eval_every': 2})
  with pytest.raises(Crash):
    train_reward.train(config, tmp_path)
  train_reward.train(config, tmp_path)
  assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['2', '8']
  best, newest = (load_reward_model(tmp_path, best=best) for best in (True, False))
  difference = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), best.params, newest.params)
  assert max(jax.tree.leaves(difference)) > 1e-3
  shutil.rmtree(tmp_path / 'checkpoints' / '2')
  shutil.rmtree(tmp_path / 'checkpoints' / '8' / 'metrics')
  with pytest.raises(InputError, match='has no best checkpoint'):
    load_reward_model(tmp_path, best=True)


@pytest.mark.parametrize('item', ['params', 'training', 'data', 'meta'])
def test_a_truncated_checkpoint_is_one_clear_line(tmp_path, whole, item):
  shutil.copytree(whole[0], tmp_path / 'run')
  (checkpoint,) = [path for path in (tmp_path / 'run' / 'checkpoints').iterdir() if path.name == '12']
  for path in (checkpoint / item).rglob('*'):
    if path.is_file() and path.name != 'commit_success.txt':
      path.write_bytes(path.read_bytes()[:7])
  with pytest.raises(InputError, match=r'checkpoint .*/checkpoints/12 cannot be read; (delete it to go on from step \d+|there is no other)'):
    train_reward.train(tiny(), tmp_path / 'run')


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments(tmp_path):
  """Each run is killed once and resumed; all end in the same bits."""
  flags = ('--config.train.steps=60', '--config.train.save_every=1', '--config.train.eval_every=0')
  whole = run(tmp_path / 'whole', *flags)
  whole.communicate(timeout=300)
  rng = random.Random(0)
  for number in range(20):
    workdir = tmp_path / str(number)
    process = run(workdir, *flags)
    wait_for(lambda workdir=workdir: (workdir / 'checkpoints').exists(), process)
    time.sleep(rng.uniform(0, 6))
    assert process.poll() is None  # else nothing is killed
    process.kill()
    process.communicate()
    again = run(workdir, *flags)
    error = again.communicate(timeout=300)[1]
    assert again.returncode == 0, error
    jax.tree.map(np.testing.assert_array_equal, final_params(workdir), final_params(tmp_path / 'whole'))
    assert figures(workdir) == figures(tmp_path / 'whole')


def wait_for(condition, process):
  for _ in range(600):
    if condition():
      return
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.2)
  raise TimeoutError


def test_the_step_is_compiled_once(tmp_path):
  """However full the rows are, and with checkpoints between: the state that a step gives lies as the one that it took."""
  compiled = []
  listen = lambda event, seconds, fun_name='', **_: compiled.append(fun_name) if event.endswith('backend_compile_duration') else None
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    train_reward.train(tiny(**{'train.steps': 6, 'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2}), tmp_path)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert compiled.count('jit(step)') == 1, compiled
