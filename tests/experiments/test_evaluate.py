"""The evaluation program: all files in one command, figures that agree with the rewards themselves."""

import json
import subprocess
import sys

import numpy as np
import pytest

from experiments import evaluate, inference, score
from rmjax.errors import InputError


@pytest.fixture(scope='module', name='scorer')
def _scorer(reward_model):
  return inference.load(reward_model, rows=8, length=128)


def words(rng, most=12):
  return ' '.join(f'w{i}' for i in rng.integers(0, 60, rng.integers(1, most)))


def write(path, rows):
  path.parent.mkdir(exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def pairs(seed, count=40):
  rng = np.random.default_rng(seed)
  return [dict(prompt=words(rng) + ' ', chosen='w1 ' + words(rng), rejected='w2 ' + words(rng), subset='xy'[k % 2]) for k in range(count)]


def best_of_four(seed, count=20):
  rng = np.random.default_rng(seed)
  return [dict(prompt=words(rng), chosen=[' w1 ' + words(rng)], rejected=[f' w{n} ' + words(rng) for n in (2, 3, 4)]) for _ in range(count)]


def open_all(*parts, bad_rows='strict'):
  return evaluate.open_sources(','.join(parts), columns={}, bad_rows=bad_rows)


def test_figures_are_those_of_the_rewards(scorer, tmp_path):
  files = write(tmp_path / 'pairs.jsonl', pairs(0)), write(tmp_path / 'four.jsonl', best_of_four(1))
  result = evaluate.evaluate(scorer, open_all(*files), directory=tmp_path / 'figures')
  rewards = {}
  for name in ('pairs', 'four'):
    score.score_file(scorer, tmp_path / f'{name}.jsonl', tmp_path / 'scored.jsonl')
    rewards[name] = np.array([json.loads(line)['reward'] for line in (tmp_path / 'scored.jsonl').read_text().splitlines()])
  right = rewards['pairs'][:, 0] > rewards['pairs'][:, 1]
  won = rewards['four'][:, :1] > rewards['four'][:, 1:]
  expected = {
    'pairs/accuracy': right.mean(),
    'pairs/accuracy/x': right[::2].mean(),
    'pairs/accuracy_se': right.std(ddof=1) / np.sqrt(40),
    'four/accuracy': won.mean(),
    'four/best_of_n_accuracy': won.all(1).mean(),
    'four/best_of_n_chance': 0.25,
    'overall/num_pairs': 100,
    'overall/accuracy': (right.sum() + won.sum()) / 100,
    'overall/accuracy/four': won.mean(),
    'overall/reward_mean': np.concatenate([rewards['pairs'].ravel(), rewards['four'].ravel()]).mean(),
    'pairs/num_bad_rows': 0,
  }
  assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-5)
  assert 0.05 < right.mean() < 0.95  # neither is trivial
  assert {str(path.relative_to(tmp_path / 'figures')) for path in (tmp_path / 'figures').rglob('*.png')} >= {'pairs/subsets.png', 'overall/rewards.png'}


def test_records_of_two_files_are_not_taken_for_one(scorer, tmp_path):
  one, two = (write(tmp_path / f'{name}.jsonl', best_of_four(seed)) for seed, name in enumerate('ab'))
  both = evaluate.evaluate(scorer, open_all(one, two))
  whole = evaluate.evaluate(scorer, open_all(write(tmp_path / 'c.jsonl', best_of_four(0) + best_of_four(1))))
  for metric in ('length_pearson_within', 'length_spearman_within', 'accuracy_se', 'ece'):
    assert both[f'overall/{metric}'] == pytest.approx(whole[f'c/{metric}'], rel=1e-4)


def test_a_baseline_of_length_alone_is_fitted_to_the_training_data(scorer, tmp_path):
  rng = np.random.default_rng(0)
  text = lambda count: ' '.join(['w5'] * count)
  shorter = [dict(prompt='w1 ', chosen=text(n), rejected=text(n + rng.integers(1, 9))) for n in rng.integers(1, 20, 30)]
  train = open_all(write(tmp_path / 'train.jsonl', shorter))['train']
  longer = [dict(row, chosen=row['rejected'], rejected=row['chosen']) for row in shorter]
  files = write(tmp_path / 'same.jsonl', shorter), write(tmp_path / 'opposite.jsonl', longer)
  result = evaluate.evaluate(scorer, open_all(*files), length_baseline=train)
  assert (result['same/length_baseline_accuracy'], result['opposite/length_baseline_accuracy']) == (1, 0)
  assert result['overall/length_baseline_accuracy'] == 0.5


def test_files_of_one_name_are_told_apart_and_twice_the_same_is_refused(tmp_path):
  one, two = (write(tmp_path / name / 'test.jsonl', pairs(0, 1)) for name in 'ab')
  assert list(open_all(one, two)) == ['a-test', 'b-test']
  with pytest.raises(InputError, match='one name'):
    open_all(one, one)


def test_the_command_prints_and_writes_all_of_it(reward_model, tmp_path):
  (tmp_path / 'pairs.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in pairs(0)) + '{"prompt": "w1"}\n')
  files = f'{tmp_path}/pairs.jsonl,' + write(tmp_path / 'four.jsonl', best_of_four(1))
  command = [sys.executable, '-m', 'experiments.evaluate', f'--checkpoint={reward_model}', f'--data={files}', '--length=128', f'--output={tmp_path}/out.json']
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1 and 'pairs.jsonl:41' in done.stderr and len(done.stderr.strip().splitlines()) == 1
  assert not (tmp_path / 'out.json').exists()
  done = subprocess.run([*command, '--bad_rows=lenient'], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  result = json.loads((tmp_path / 'out.json').read_text())
  assert result['pairs/num_bad_rows'] == 1 and result['pairs/num_records'] == 40
  assert 'pairs: 40 records, of which 0 truncated and 0 refused; 1 bad rows left out' in done.stdout
  lines = [line.split() for line in done.stdout.splitlines()]
  assert [line[0] for line in lines[:6]] == ['data', 'pairs', 'x', 'y', 'four', 'overall']
  assert lines[1][2:5] == [f'{result["pairs/accuracy"]:.3f}', '±', f'{result["pairs/accuracy_se"]:.3f}']
