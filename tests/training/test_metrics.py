"""Figures merge as sums and counts, and files hold what was written."""

import json
import math

import jax.numpy as jnp
import pytest

from rmjax.training import metrics


def test_means_are_over_everything_never_means_of_means():
  mean = metrics.Mean()
  mean.add({'accuracy': (jnp.float32(3), jnp.float32(3)), 'empty': (jnp.float32(0), jnp.float32(0))})
  mean.add({'accuracy': (jnp.float32(0), jnp.float32(1))})
  assert mean.means()['accuracy'] == 0.75  # 0.5 as a mean of means
  assert 'empty' not in mean.means()  # neither 0 nor NaN
  on = metrics.Mean(mean.totals)
  on.add({'accuracy': (1.0, 4.0)})
  assert on.means()['accuracy'] == 0.5


def test_a_resumed_run_leaves_each_step_once(tmp_path):
  writer = metrics.Writer(tmp_path)
  for step in (1, 2, 3):
    writer.write(step, {'loss': step / 10})
  writer.close()
  with (tmp_path / 'metrics.jsonl').open('a') as f:
    f.write('{"step": 4, "lo')  # a kill in the middle of a line
  writer = metrics.Writer(tmp_path, resume_step=2)
  writer.write(3, {'loss': math.nan})
  writer.close()
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert lines == [{'step': 1, 'loss': 0.1}, {'step': 2, 'loss': 0.2}, {'step': 3, 'loss': None}]
  assert list((tmp_path / 'tensorboard').glob('events*'))


def test_json_is_whole_or_as_before(tmp_path):
  path = tmp_path / 'result.json'
  metrics.write_json(path, {'a': 1.0, 'b': [math.inf]})
  with pytest.raises(TypeError):
    metrics.write_json(path, {'a': object()})
  assert json.loads(path.read_text()) == {'a': 1.0, 'b': [None]}


def test_throughput_leaves_out_the_first_step_and_pauses(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(metrics.time, 'perf_counter', lambda: now[0])
  clock = metrics.Throughput()
  for seconds, tokens in ((30.0, 100), (1.0, 100)):
    now[0] += seconds
    clock.tick(tokens)
  with clock.paused():
    now[0] += 50.0
  now[0] += 1.0
  clock.tick(300)
  assert clock.rate() == 200.0
