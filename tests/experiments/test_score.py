"""The scoring program: every row comes out, in order, with the reward that the model gives it alone."""

import gzip
import json
import subprocess
import sys
import tracemalloc

import jax
import numpy as np
import pytest

from experiments import inference, score
from rmjax import trees
from rmjax.errors import InputError
from rmjax.training.saved import load_reward_model


@pytest.fixture(scope='module', name='scorer')
def _scorer(reward_model):
  return inference.load(reward_model, rows=8, length=128)


def words(rng, most=12):
  return ' '.join(f'w{i}' for i in rng.integers(0, 60, rng.integers(1, most)))


def mixed_rows(count=60):
  rng = np.random.default_rng(0)
  rows = []
  for k in range(count):
    single, pair, many = (
      dict(prompt=words(rng) + ' ', response=words(rng)),
      dict(chosen=[dict(role='user', content=words(rng)), dict(role='assistant', content='w1 ' + words(rng))], id=k, note='naïve 雪'),
      dict(responses=[words(rng), words(rng), words(rng)], prompt=words(rng) + ' '),
    )
    pair['rejected'] = [pair['chosen'][0], dict(role='assistant', content='w2 ' + words(rng))]
    rows.append((single, pair, many)[k % 3])
  return rows


def write(path, rows):
  lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
  path.write_text('\n'.join(lines) + '\n')
  return path


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_comes_out_as_it_was_with_its_reward(scorer, reward_model, tmp_path):
  rows = mixed_rows()
  target = tmp_path / 'new' / 'out.jsonl'
  counts = score.score_file(scorer, write(tmp_path / 'in.jsonl', rows), target)
  assert counts == dict(scored=60, truncated=0, refused=0, bad=0)
  found = read(target)
  assert [{name: value for name, value in row.items() if name != 'reward'} for row in found] == rows
  model, params, tokenizer, _ = load_reward_model(reward_model)[:4]
  apply = jax.jit(lambda tree: model.apply({'params': params}, tree)[0, 0, 0])

  def alone(prompt, response):
    ids, first = tokenizer.encode_path(prompt, response)
    rows = [[trees.branch(ids[:first], [ids[first:]])], *[[]] * 7]  # of the scorer's shape: this model is so steep that another's rounding moves 5e-5
    return float(apply(trees.pack(rows, length=128, slots=1, responses=1)))

  for row in found[:12]:
    if 'response' in row:
      expected = alone(row['prompt'], row['response'])
    elif 'chosen' in row:
      expected = [alone(row[side][:1], row[side][1]['content']) for side in ('chosen', 'rejected')]
    else:
      expected = [alone(row['prompt'], response) for response in row['responses']]
    np.testing.assert_allclose(row['reward'], expected, atol=1e-5)
  assert np.std([row['reward'] for row in found[::3]]) > 0.1  # the comparison above is of rewards that differ


def test_rewards_do_not_depend_on_their_batch(scorer, reward_model, tmp_path):
  source = write(tmp_path / 'in.jsonl', mixed_rows())
  score.score_file(scorer, source, tmp_path / 'one.jsonl')
  score.score_file(scorer, source, tmp_path / 'again.jsonl')
  assert (tmp_path / 'one.jsonl').read_bytes() == (tmp_path / 'again.jsonl').read_bytes()
  score.score_file(inference.load(reward_model, rows=16, length=64), source, tmp_path / 'two.jsonl')
  for one, two in zip(read(tmp_path / 'one.jsonl'), read(tmp_path / 'two.jsonl'), strict=True):
    np.testing.assert_allclose(one['reward'], two['reward'], atol=1e-5)


@pytest.mark.parametrize('bad', ['{"prompt": "w1", "respons', '{"prompt": "w1 ", "response": ""}', '{"text": "w1"}', '[1]'])
def test_a_bad_row_stops_a_strict_run_and_what_was_scored_is_kept(scorer, tmp_path, bad):
  rows = mixed_rows(30)
  source, target = write(tmp_path / 'in.jsonl', [*rows[:21], bad, *rows[21:]]), tmp_path / 'out.jsonl'
  with pytest.raises(InputError, match=r'in.jsonl:22: .*the 21 rows before it are scored in .*out.jsonl.partial') as e:
    score.score_file(scorer, source, target)
  assert '\n' not in str(e.value)
  assert not target.exists()
  assert len(read(tmp_path / 'out.jsonl.partial')) == 21


def test_a_lenient_run_writes_bad_rows_with_what_is_wrong(scorer, tmp_path):
  rows = mixed_rows(6)
  source, target = write(tmp_path / 'in.jsonl', ['{', *rows[:3], {'prompt': 'w1', 'response': ' ', 'id': 7}, *rows[3:]]), tmp_path / 'out.jsonl'
  assert score.score_file(scorer, source, target, bad_rows='lenient') == dict(scored=6, truncated=0, refused=0, bad=2)
  found = read(target)
  assert [row['reward'] is None for row in found] == [True, False, False, False, True, False, False, False]
  assert 'in.jsonl:1:' in found[0]['error'] and found[4]['id'] == 7 and 'in.jsonl:5:' in found[4]['error']


def test_a_long_response_is_cut_and_says_so(scorer, tmp_path):
  source = write(tmp_path / 'in.jsonl', [dict(prompt='w1 ', response='w2 ' * 99), dict(prompt='w1 ', response='w2')])
  assert score.score_file(scorer, source, tmp_path / 'out.jsonl')['truncated'] == 1
  assert [row.get('truncated') for row in read(tmp_path / 'out.jsonl')] == [True, None]


def test_a_refused_response_has_no_reward_and_the_reason(scorer, tmp_path):
  encode = scorer.encode.func
  refusing = scorer._replace(encode=lambda record: encode(record, max_length=16, too_long='refuse'))
  source = write(tmp_path / 'in.jsonl', [dict(prompt='w1 ', response='w2 ' * 99), dict(prompt='w1 ', response='w2')])
  assert score.score_file(refusing, source, tmp_path / 'out.jsonl') == dict(scored=1, truncated=0, refused=1, bad=0)
  first, second = read(tmp_path / 'out.jsonl')
  assert first['reward'] is None and '102 tokens' in first['error'] and second['reward'] is not None


def test_columns_are_never_overwritten(scorer, tmp_path):
  source = write(tmp_path / 'in.jsonl', [dict(prompt='w1 ', response='w2', reward=3)])
  with pytest.raises(InputError, match=r"in.jsonl:1: column 'reward'"):
    score.score_file(scorer, source, tmp_path / 'out.jsonl')
  assert list(tmp_path.iterdir()) == [source]


def test_compressed_files_and_renamed_columns(scorer, tmp_path):
  with gzip.open(tmp_path / 'in.jsonl.gz', 'wt') as file:
    file.write(json.dumps(dict(q='w1 ', a='w2 w3')) + '\n')
  score.score_file(scorer, tmp_path / 'in.jsonl.gz', tmp_path / 'out.jsonl.gz', columns=dict(prompt='q', response='a'))
  with gzip.open(tmp_path / 'out.jsonl.gz', 'rt') as file:
    row = json.loads(file.read())
  assert (row['q'], row['a']) == ('w1 ', 'w2 w3') and isinstance(row['reward'], float)


def test_memory_does_not_grow_with_the_file(scorer, tmp_path):
  def peak(count):
    source = write(tmp_path / 'in.jsonl', [dict(prompt='w1 ', response='w2 w3', note='x' * 2000)] * count)
    tracemalloc.start()
    score.score_file(scorer, source, tmp_path / 'out.jsonl')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak

  peak(200)  # compiles
  assert peak(2400) < peak(600) + 500_000  # the file grows by 3.6 MB


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--input=absent.jsonl', '--output=out.jsonl'], '--input=absent.jsonl does not exist'),
    (['--input=absent.jsonl', '--output=out.csv'], '--output=out.csv: it is written as JSON Lines'),
    (['--input=setup.cfg', '--output=out.jsonl', '--columns=prompt'], '--columns=prompt: give'),
    (['--input=setup.cfg', '--output=out.jsonl'], 'nowhere does not exist'),
  ],
)
def test_bad_flags_are_one_line(flags, message, tmp_path):
  command = [sys.executable, '-m', 'experiments.score', '--checkpoint=nowhere', *flags]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1 and done.stdout == ''
  assert len(done.stderr.strip().splitlines()) == 1 and message in done.stderr
