"""The probing program: dimensions that texts have and have not, labels in every form, and bad input in one line."""

import functools
import json

from absl import flags
import numpy as np
import pytest

from experiments import inference, probe
from rmjax.errors import InputError

NAMES = ['ending', 'mood', 'noise']


def rows(seed, count=260):
  """Short texts: `ending` (0 to 3) is the last word, `mood` (0 or 1) the first; `noise` is nowhere in them."""
  rng = np.random.default_rng(seed)
  made = []
  for _ in range(count):
    ending, mood, filler = rng.integers(0, 4), rng.integers(0, 2), ' '.join(['w9'] * rng.integers(1, 3))
    made.append(dict(prompt=f'w{5 + mood}', response=f' {filler} w{ending}', ending=int(ending), mood=int(mood), noise=int(rng.integers(0, 5))))
  return made


def write(path, lines):
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return str(path)


def run(monkeypatch, *arguments):
  """The program with these flags, in this process: starting one takes seconds."""
  own = flags.FlagValues()
  monkeypatch.setattr(flags, 'FLAGS', own)
  for kind in ('string', 'bool', 'enum', 'integer'):
    define = getattr(flags, f'DEFINE_{kind}')
    monkeypatch.setattr(flags, f'DEFINE_{kind}', functools.partial(define, flag_values=own))
  probe.define_flags()
  own(['probe', *arguments])
  probe.main()


@pytest.fixture(scope='module', name='files')
def _files(tmp_path_factory):
  path = tmp_path_factory.mktemp('data')
  return write(path / 'train.jsonl', rows(0, 800)), write(path / 'test.jsonl', rows(1))


@pytest.fixture(scope='module', name='parts')
def _parts(reward_model, files):
  scorer = inference.load(str(reward_model), rows=8, length=128)
  return probe.represent(scorer, {name: probe.read(file, NAMES)[0] for name, file in zip(('train', 'test'), files, strict=True)}, NAMES)


@pytest.fixture(scope='module', name='report')
def _report(parts):
  return probe.probe(parts['train'], parts['test'])


def test_what_the_text_tells_is_found_and_what_it_does_not_is_not(report):
  figures = report.figures
  assert figures['mood/easy/accuracy'] > 0.95
  for level in ('easy', 'hard'):
    assert figures[f'ending/{level}/random_init_accuracy'] > 0.95  # no training is needed to remember a word: what the baseline is for
    assert figures[f'ending/{level}/above_random_init'] == pytest.approx(figures[f'ending/{level}/accuracy'] - figures[f'ending/{level}/random_init_accuracy'])
    prior, count = figures[f'noise/{level}/majority_accuracy'], figures[f'noise/{level}/num_test']
    assert abs(figures[f'noise/{level}/accuracy'] - prior) < 3 * np.sqrt(0.25 / count) + 0.05  # of a fifth-of-levels label no probe knows more
    assert figures[f'noise/{level}/above_random_init_p_value'] > 0.001
  assert figures['mood/easy/bag_of_tokens_accuracy'] > 0.95
  assert 'mood/hard/accuracy' not in figures  # two levels only
  assert figures['average/easy/accuracy'] == pytest.approx(np.mean([figures[f'{name}/easy/accuracy'] for name in NAMES]))


def test_a_function_of_text_has_no_representation():
  scorer = inference.load('builtins:len', rows=8, length=128)
  with pytest.raises(InputError, match='no representation'):
    probe.represent(scorer, {'train': []}, NAMES)


def test_cuts_priors_and_sizes_are_reported(report):
  figures = report.figures
  assert figures['ending/easy/cut_1'] == 2 and {figures['ending/hard/cut_1'], figures['ending/hard/cut_2']} <= {1, 2, 3}
  ending = np.array([row['ending'] for row in rows(1)])
  assert figures['ending/easy/prior_1'] == pytest.approx(np.mean(ending >= 2))
  assert (figures['ending/easy/num_train'], figures['ending/easy/num_test']) == (800, 260)
  assert figures['noise/easy/accuracy_low'] < figures['noise/easy/accuracy'] < figures['noise/easy/accuracy_high']


def test_distances_say_how_they_go_with_length_and_what_is_dropped(parts, report):
  figures = report.figures
  assert sorted(figures[f'{name}/distance_rank'] for name in NAMES) == [1, 2, 3]
  assert report.distances.shape == parts['test'].lengths.shape and figures['distance/limit'] > 0
  assert figures['distance/kept'] == pytest.approx(np.mean(report.distances <= figures['distance/limit'])) and 0.6 < figures['distance/kept'] <= 1
  assert -1 <= figures['distance/length_spearman'] <= 1


def test_far_texts_are_dropped(parts):
  test = parts['test']
  far = test._replace(states=test.states + 10 * np.std(parts['train'].states))
  assert probe.probe(parts['train'], far).figures['distance/kept'] < 0.05


def test_given_cuts_take_the_place_of_balanced_ones(parts):
  figures = probe.probe(parts['train'], parts['test'], cuts=probe.parse_cuts('ending=1,ending=1:2')).figures
  assert (figures['ending/easy/cut_1'], figures['ending/hard/cut_1'], figures['ending/hard/cut_2']) == (1, 1, 2)
  assert figures['ending/easy/prior_0'] < 0.35 and figures['noise/easy/cut_1'] in (2, 3)


def test_labels_of_several_responses_and_unknown_ones(tmp_path):
  lines = [
    dict(prompt='w1 ', responses=['w2', 'w3'], labels=dict(a=[1, 2]), b=[None, 4.5]),
    dict(prompt='w1 ', chosen='w2', rejected='w3', a=[3, 0]),
    dict(prompt='w1 ', response='w2', b=7, a=None),
  ]
  records, bad = probe.read(write(tmp_path / 'x.jsonl', lines), ['a', 'b'])
  found = [np.concatenate([record.labels[name] for record in records]) for name in 'ab']
  np.testing.assert_array_equal(found, [[1, 2, 3, 0, np.nan], [np.nan, 4.5, np.nan, np.nan, 7]])
  assert not bad
  broken = write(tmp_path / 'y.jsonl', [*lines, dict(prompt='w1 ', response='w2', a='much')])
  with pytest.raises(InputError, match=r"y.jsonl:4: column 'a': a number wanted, not 'much'"):
    probe.read(broken, ['a'])
  assert len(probe.read(broken, ['a'], bad_rows='lenient')[0]) == 3


@pytest.mark.parametrize(
  'lines, options, message',
  [
    (rows(0, 9), ['--labels=ending,honesty'], "no row of .*train.jsonl has a number in a column 'honesty'"),
    ([dict(row, noise=2) for row in rows(0, 9)], ['--labels=noise'], r"'noise' of the training data: 1 levels \(2\) do not make 2 classes"),
    (rows(0, 9), ['--labels=ending', '--cuts=ending=9'], "'ending' of the training data has one class only, when its levels are cut at 9"),
    (rows(0, 9), ['--labels=ending', '--cuts=ending=2:1'], "'ending=2:1' is not a dimension and"),
    (rows(0, 9), ['--labels=ending', '--cuts=mood=1'], "'mood' is not in --labels=ending"),
    (rows(0, 9), ['--labels=,'], 'name columns, separated by commas'),
  ],
)
def test_bad_input_is_one_line(lines, options, message, tmp_path, monkeypatch):
  file = write(tmp_path / 'train.jsonl', lines)
  with pytest.raises(InputError, match=message) as e:
    run(monkeypatch, '--checkpoint=nowhere', f'--data={file}', f'--eval={file}', *options)
  assert '\n' not in str(e.value)


def test_the_program_prints_and_writes_all_of_it(reward_model, files, tmp_path, monkeypatch, capsys):
  arguments = [f'--checkpoint={reward_model}', f'--data={files[0]}', f'--eval={files[1]}', '--labels=ending,mood', '--length=128', '--rows=8']
  run(monkeypatch, *arguments, f'--output={tmp_path}/new/out.json', f'--figures={tmp_path}/png')
  result = json.loads((tmp_path / 'new' / 'out.json').read_text())
  printed = capsys.readouterr().out
  lines = [line.split() for line in printed.splitlines()]
  assert [line[:2] for line in lines[1:6]] == [['ending', 'easy'], ['mood', 'easy'], ['average', 'easy'], ['ending', 'hard'], ['average', 'hard']]
  assert f'{result["ending/easy/accuracy"]:.3f}' in lines[1] and '800/260' in lines[1]
  assert 'rank correlation of distance and length' in printed
  assert {path.name for path in (tmp_path / 'png').iterdir()} == {'probes.png', 'distances.png'}
