"""The evaluation program: all files in one command, figures that agree with the rewards themselves."""

import contextlib
import functools
import json
import os
import subprocess
import sys

from absl import flags
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from experiments import evaluate, inference, score
from rmjax.errors import InputError
from rmjax.evaluation import items
from rmjax.evaluation.benchmarks import BENCHMARKS


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
  assert done.stderr.strip().endswith('; --bad_rows=lenient leaves such rows out')
  assert not (tmp_path / 'out.json').exists()
  done = subprocess.run([*command, '--bad_rows=lenient'], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  result = json.loads((tmp_path / 'out.json').read_text())
  assert result['pairs/num_bad_rows'] == 1 and result['pairs/num_records'] == 40
  assert 'pairs: 40 records, of which 0 truncated and 0 refused; 1 bad rows left out' in done.stdout
  lines = [line.split() for line in done.stdout.splitlines()]
  assert [line[0] for line in lines[:6]] == ['data', 'pairs', 'x', 'y', 'four', 'overall']
  assert lines[1][2:5] == [f'{result["pairs/accuracy"]:.3f}', '±', f'{result["pairs/accuracy_se"]:.3f}']


def rewardbench2(seed, count=12):
  rng = np.random.default_rng(seed)
  names = ['Factuality', 'Math', 'Focus']
  return [dict(row, chosen=row['chosen'], subset=names[n % 3], id=str(n), num_correct=1) for n, row in enumerate(best_of_four(int(rng.integers(99)), count))]


def test_a_benchmark_does_not_depend_on_the_batch(reward_model, tmp_path):
  path = write(tmp_path / 'data.jsonl', rewardbench2(3))
  records = items.read(BENCHMARKS['rewardbench2'], path)[0]
  found = [evaluate.benchmark_answers(inference.load(reward_model, rows=rows, length=128), BENCHMARKS['rewardbench2'], records) for rows in (1, 8)]
  one, eight = (np.array([answer.rewards for answer in answers]) for answers in found)
  assert np.abs(one - eight).max() <= 1e-5 and one.std() > 0.01
  assert [answer.tokens for answer in found[0]] == [answer.tokens for answer in found[1]]
  figures = [BENCHMARKS['rewardbench2'].measure(answers).figures for answers in found]
  assert figures[0] == pytest.approx(figures[1])


def test_longest_paths_are_those_of_the_text(scorer, tmp_path):
  rows = [dict(prompt='w1 w2 ', chosen='w3 w4 w5', rejected='w6', subset='donotanswer', id=0)]
  records = items.read(BENCHMARKS['rewardbench'], write(tmp_path / 'data.jsonl', rows))[0]
  (answer,) = evaluate.benchmark_answers(scorer, BENCHMARKS['rewardbench'], records)
  assert answer.tokens == 1 + 2 + 3 + 1  # with BOS and EOS


FUNCTION = """
def length(prompts, completions, subset, **columns):
  assert len(subset) == len(prompts) == len(completions)
  return [float(len(text)) for text in completions]

def some(prompts, completions):
  return [None if 'w1' in text.split() else 1.0 for text in completions]

def knows(prompts, completions, label, **columns):
  return [6.0 if 0 <= first < len(text.split()) else 7.0 for text, first in zip(completions, label)]

def broken(prompts, completions):
  raise KeyError('weights')

def short(prompts, completions):
  return [1.0]

def nan(prompts, completions):
  return [float('nan')] * len(completions)
"""


@pytest.fixture(name='functions')
def _functions(tmp_path, monkeypatch):
  (tmp_path / 'text_rewards.py').write_text(FUNCTION)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'text_rewards', raising=False)


def test_a_function_of_text_is_a_reward_model(functions, tmp_path):
  rows = pairs(0)
  files = open_all(write(tmp_path / 'pairs.jsonl', rows))
  result = evaluate.evaluate(inference.load('text_rewards:length'), files)
  right = [0.5 + 0.5 * np.sign(len(row['chosen']) - len(row['rejected'])) for row in rows]
  assert result['pairs/accuracy'] == pytest.approx(np.mean(right)) and result['pairs/num_refused'] == 0
  result = evaluate.evaluate(inference.load('text_rewards:some'), files)  # every chosen response has w1
  assert result['pairs/num_refused'] == 40 and 'pairs/accuracy' not in result
  messages = [
    dict(prompt=[{'role': 'user', 'content': 'hi'}], chosen=[{'role': 'assistant', 'content': 'abc'}], rejected=[{'role': 'assistant', 'content': 'd'}])
  ]
  found = list(inference.load('text_rewards:length').score(_all(open_all(write(tmp_path / 'm.jsonl', messages))['m']), inference.encode_words))
  assert found[0].rewards.tolist() == [1, 1]  # a list of one message each, as TRL gives them


def _all(source):
  return [source[k] for k in range(len(source))]


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('text_rewards:broken', "'text_rewards:broken' raised KeyError: 'weights'"),
    ('text_rewards:short', "'text_rewards:short' gave 1 rewards for 64 completions"),
    ('text_rewards:nan', 'gave nan for completion 0'),
    ('text_rewards:none', 'no attribute'),
    ('no_such_module:f', 'No module named'),
  ],
)
def test_what_a_function_does_wrong_is_one_line(name, message, functions, tmp_path):
  with pytest.raises(InputError) as e:
    evaluate.evaluate(inference.load(name), open_all(write(tmp_path / 'pairs.jsonl', pairs(0))))
  assert message in str(e.value) and '\n' not in str(e.value)


def test_the_command_runs_a_benchmark(reward_model, functions, tmp_path):
  """Table, JSON, RewardBench's own file, figure, and a paired test against a function of text; bad flags are one line."""
  rows = [dict(row, subset=name, id=n) for n, row in enumerate(pairs(5, 24)) for name in [['alpacaeval-easy', 'math-prm', 'hep-go'][n % 3]]]
  command = [sys.executable, '-m', 'experiments.evaluate', f'--checkpoint={reward_model}', f'--data={write(tmp_path / "rows.jsonl", rows)}', '--length=128']
  env = dict(os.environ, PYTHONPATH=f'{tmp_path}:{os.getcwd()}')
  outputs = [f'--output={tmp_path}/out.json', f'--rewardbench_json={tmp_path}/rb.json', f'--figures={tmp_path}/png', '--against=text_rewards:length']
  done = subprocess.run([*command, '--benchmark=rewardbench', *outputs], capture_output=True, text=True, env=env)
  assert done.returncode == 0, done.stderr
  result, theirs = (json.loads((tmp_path / name).read_text()) for name in ('out.json', 'rb.json'))
  assert set(theirs) == {'alpacaeval-easy', 'math-prm', 'hep-go', 'model', 'model_type', 'chat_template'} and theirs['model_type'] == 'Seq. Classifier'
  assert result['rewardbench/score/Chat'] == theirs['alpacaeval-easy']
  reasoning = (984 * theirs['math-prm'] + 164 * theirs['hep-go']) / 1148
  assert result['rewardbench/score'] == pytest.approx((theirs['alpacaeval-easy'] + reasoning) / 2)
  assert result['rewardbench/score_low'] <= result['rewardbench/score'] <= result['rewardbench/score_high']
  length = np.mean([len(row['chosen']) > len(row['rejected']) for row in rows])
  assert result['rewardbench/against_difference'] == pytest.approx(np.mean(_own(result, theirs)) - length) and 0 < result['rewardbench/against_p_value'] <= 1
  assert f'{result["rewardbench/score"]:.3f} [{result["rewardbench/score_low"]:.3f}' in done.stdout and 'no items of Chat Hard, Safety' in done.stdout
  assert (tmp_path / 'png' / 'reliability.png').exists()
  for flag, message in (
    ('--benchmark=x', 'choose one of rewardbench'),
    ('--benchmark=processbench', 'either --threshold or --validation'),
    ('--threshold=1', 'give --benchmark'),
  ):
    with pytest.raises(InputError, match=message):
      with flagsaver_of(evaluate, [*command[3:], flag]):
        evaluate.main()


def _own(result, theirs):
  return [theirs[name] for name in ('alpacaeval-easy', 'math-prm', 'hep-go')]  # eight items each


@contextlib.contextmanager
def flagsaver_of(program, arguments):
  """The program's flags, parsed from arguments, and forgotten afterwards."""
  values = flags.FlagValues()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(flags, 'FLAGS', values)
    for name in ('DEFINE_string', 'DEFINE_bool', 'DEFINE_enum', 'DEFINE_integer', 'DEFINE_float'):
      patch.setattr(flags, name, functools.partial(getattr(flags, name), flag_values=values))
    program.define_flags()
    values(['evaluate', *arguments])
    yield


def test_directories_of_hugging_face_data_sets(scorer, tmp_path):
  """As downloaded, and as `datasets` saves them: Arrow streams that are named in state.json."""
  rows = pairs(0, 6)
  (tmp_path / 'hub' / 'data').mkdir(parents=True)
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:3]), tmp_path / 'hub' / 'data' / 'train-00000-of-00002.parquet')
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[3:]), tmp_path / 'hub' / 'data' / 'train-00001-of-00002.parquet')
  saved = tmp_path / 'saved' / 'test'
  saved.mkdir(parents=True)
  table = pyarrow.Table.from_pylist(rows)
  with pyarrow.ipc.new_stream(saved / 'data-00000-of-00001.arrow', table.schema) as writer:
    writer.write_table(table)
  (saved / 'state.json').write_text(json.dumps({'_data_files': [{'filename': 'data-00000-of-00001.arrow'}]}))
  (saved / 'dataset_info.json').write_text('{}')
  (tmp_path / 'saved' / 'dataset_dict.json').write_text('{"splits": ["test"]}')
  found = [_all(next(iter(open_all(str(path)).values()))) for path in (tmp_path / 'hub', saved)]
  assert [[record.responses for record in records] for records in found] == 2 * [[(row['chosen'], row['rejected']) for row in rows]]
  with pytest.raises(InputError, match=r'has the splits test: choose one, such as .*saved/test'):
    open_all(str(tmp_path / 'saved'))


def test_the_threshold_of_processbench_comes_from_validation_data(functions, tmp_path, capsys):
  """A function that knows the labels; items that are in both files are counted."""
  solution = lambda n: dict(id=f'gsm8k-{n}', problem=f'p{n}', steps=[f'{n}a', f'{n}b'], label=-1 if n % 2 else n % 4 // 2)
  data, validation = (write(tmp_path / f'{name}.jsonl', list(map(solution, numbers))) for name, numbers in (('data', range(8)), ('valid', range(6, 14))))
  arguments = [f'--data={data}', f'--output={tmp_path}/out.json', '--checkpoint=text_rewards:knows', '--benchmark=processbench', f'--validation={validation}']
  with flagsaver_of(evaluate, arguments):
    evaluate.main()
  result = json.loads((tmp_path / 'out.json').read_text())
  assert result['processbench/f1'] == 1 and result['processbench/num_in_validation'] == 2 and result['processbench/threshold'] == pytest.approx(6.5)
  assert 'processbench: threshold 6.5' in capsys.readouterr().out
