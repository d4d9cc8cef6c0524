"""Real processes that train together: the same losses as one, checkpoints that any number of them goes on from, and a clear end where one dies."""

import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 240  # seconds, after which everything is killed


def free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def start(workdir, processes, *, program='train_reward', config='configs/small_world.py', devices=1, **settings):
  """Starts so many processes of one run; settings are those of its config."""
  options = [f'--config.{name.replace("__", ".")}={value}' for name, value in settings.items()]
  port, started = free_port(), []
  for i in range(processes):
    command = [sys.executable, '-m', f'experiments.{program}', f'--config={config}', f'--workdir={workdir}', *options]
    if processes > 1:
      command.append(f'--distributed=127.0.0.1:{port},{i},{processes}')
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}
    started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
  return started


def finish(started, patience=PATIENCE):
  """(exit code, errors) of each process; none outlives the patience."""
  ends, found = time.monotonic() + patience, []
  try:
    for process in started:
      _, errors = process.communicate(timeout=max(ends - time.monotonic(), 1))
      found.append((process.returncode, errors))
  finally:
    for process in started:
      process.kill()
  return found


def run(*args, **settings):
  for code, errors in finish(start(*args, **settings)):
    assert code == 0, errors


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return {line['step']: (line['loss'], line['num_tokens'], line['epoch']) for line in lines if 'loss' in line}


# The schedule is the same however many steps there are.
SETTINGS = dict(
  data__shards=4, train__log_every=1, train__save_every=3, world__train_size=64, world__eval_size=16, optimizer__schedule='constant', optimizer__warmup=0.0,
)  # fmt: skip


@pytest.fixture(scope='module', name='alone')
def _alone(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('processes') / 'alone'
  run(workdir, 1, train__steps=6, **SETTINGS)
  return workdir


def check_same(workdir, alone, steps):
  found, expected = losses(workdir), losses(alone)
  assert list(found) == list(range(1, steps + 1))
  for step, (loss, tokens, epoch) in found.items():
    np.testing.assert_allclose(loss, expected[step][0], atol=1e-5, rtol=0)
    assert (tokens, epoch) == expected[step][1:]  # what they read together is what one read


def test_two_processes_train_as_one_and_one_goes_on_from_their_checkpoint(tmp_path, alone):
  workdir = tmp_path / 'two'
  run(workdir, 2, train__steps=3, **SETTINGS)
  check_same(workdir, alone, 3)
  (workdir / 'config.json').write_text((alone / 'config.json').read_text())  # the same run, of more steps
  run(workdir, 1, train__steps=6, **SETTINGS)
  check_same(workdir, alone, 6)
  two, one = (json.loads((path / 'result.json').read_text()) for path in (workdir, alone))
  for name in ('eval_loss', 'eval_accuracy', 'eval_ece'):
    np.testing.assert_allclose(two[name], one[name], atol=1e-4)


def test_processes_that_cannot_share_the_data_say_so(tmp_path):
  for code, errors in finish(start(tmp_path, 2, train__steps=2, **{**SETTINGS, 'data__shards': 1})):
    assert code == 1
    assert 'error: 2 processes cannot share data.shards = 1: set it to a multiple' in errors
    assert 'Traceback' not in errors


@pytest.mark.parametrize('launch', ['10.0.0.1', 'auto,1,2', 'here:1,2'])
def test_a_launch_that_is_none_is_one_line(tmp_path, launch):
  command = [sys.executable, '-m', 'experiments.train_reward', '--config=configs/small_world.py', f'--workdir={tmp_path}', f'--distributed={launch}']
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
  assert result.returncode == 1
  assert f"error: --distributed={launch}: give 'auto', or HOST:PORT,INDEX,COUNT" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize('devices', [1, 2])
def test_four_processes_train_as_one_and_go_on_from_twos_checkpoint(tmp_path, alone, devices):
  workdir = tmp_path / 'four'
  run(workdir, 2, train__steps=3, devices=devices, **SETTINGS)
  (workdir / 'config.json').write_text((alone / 'config.json').read_text())
  run(workdir, 4, train__steps=6, devices=devices, **SETTINGS)
  check_same(workdir, alone, 6)


POLICY = """from configs import grpo


def get_config():
  config = grpo.get_config()
  config.world = dict(name='rmjax.worlds.sequences:Sequences', train_size=16, eval_size=4)
  config.rewards = dict(long=dict(weight=1.0, name='tests.reward_functions:count_tokens'))
  return config
"""


@pytest.mark.slow
def test_two_processes_optimize_a_policy_as_one(tmp_path):
  settings = dict(
    train__steps=2, train__prompts=4, train__log_every=1, data__shards=2, sampling__responses=2, sampling__max_new_tokens=4, data__max_length=16,
    model__decoder__hidden_size=32, model__decoder__intermediate_size=48, model__decoder__num_layers=1, model__dtype='float32',
  )  # fmt: skip
  config = tmp_path / 'config.py'
  config.write_text(POLICY)
  found = []
  for processes in (1, 2):
    workdir = tmp_path / str(processes)
    run(workdir, processes, program='optimize_policy', config=config, **settings)
    found.append([json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()])
  for one, two in zip(*found, strict=True):
    assert one.keys() == two.keys()
    for name in ('reward', 'loss', 'kl', 'objective/kl', 'completions/mean_length'):
      if name in one:
        np.testing.assert_allclose(two[name], one[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_where_one_is_killed_the_other_stops_and_the_run_goes_on(tmp_path, victim):
  whole, workdir = tmp_path / 'whole', tmp_path / 'killed'
  settings = {**SETTINGS, 'train__steps': 300, 'train__save_every': 20, 'train__log_every': 20}
  run(whole, 2, **settings)
  started = start(workdir, 2, **settings)
  ends = time.monotonic() + PATIENCE
  while len(list((workdir / 'checkpoints').glob('[0-9]*'))) == 0 or not (workdir / 'metrics.jsonl').read_text().count('\n') > 1:
    assert time.monotonic() < ends
    time.sleep(0.2)
  started[victim].send_signal(signal.SIGKILL)
  ended = finish(started)
  code, errors = ended[1 - victim]
  assert code not in (0, None), errors
  assert 'lost another' in errors or 'JAX distributed service' in errors
  run(workdir, 2, **settings)
  assert losses(workdir) == losses(whole)  # bit for bit, the place in the data included


@pytest.mark.slow
def test_sigterm_to_one_saves_all_at_the_same_step(tmp_path):
  settings = {**SETTINGS, 'train__steps': 2000, 'train__save_every': 0}
  started = start(tmp_path / 'run', 2, **settings)
  ends = time.monotonic() + PATIENCE
  while not (tmp_path / 'run' / 'metrics.jsonl').exists() or (tmp_path / 'run' / 'metrics.jsonl').read_text().count('\n') < 5:
    assert time.monotonic() < ends
    time.sleep(0.2)
  started[1].send_signal(signal.SIGTERM)
  ended = finish(started)
  assert [code for code, _ in ended] == [143, 143], ended
  (step,) = (int(path.name) for path in (tmp_path / 'run' / 'checkpoints').glob('[0-9]*'))
  assert all(f'SIGTERM at step {step}: saved' in errors for _, errors in ended)
