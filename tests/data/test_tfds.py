"""A TFDS data set gives back the records that went in, in their order, and tensorflow is never imported."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rmjax.data.records import pairwise_wins, Record
from rmjax.data.sources import open_source
from rmjax.data.tfds_builder import prepare
from rmjax.errors import InputError

NAN = float('nan')
LABELS = lambda n: {'gold': np.linspace(0, 1, n, dtype=np.float32), 'pair': np.full((n, n), NAN, np.float32), 'level': np.int32(n)}
RECORDS = [
  Record('what ?', ('a ü', 'b'), pairwise_wins(2, [(0, 1, 0.75)]), np.array([1.5, NAN], np.float32), 2.0, 0.1, 'x', labels=LABELS(2)),
  Record(
    [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'é\n'}, {'role': 'user', 'content': ''}],
    ('a', 'b', 'c'), pairwise_wins(3, [(0, 1, 1.0), (2, 0, 0.3)]), np.full(3, NAN, np.float32), subset='y', labels=LABELS(3),
  ),
  Record('', ('alone',), np.zeros((1, 1), np.float32), np.ones(1, np.float32), 0.3, subset='y', labels=LABELS(1)),
]  # fmt: skip


def assert_same(got, want):
  for name in ('prompt', 'responses', 'weight', 'margin', 'subset'):
    assert getattr(got, name) == getattr(want, name)
  assert got.labels.keys() == want.labels.keys()
  arrays = lambda record: dict(record.labels, wins=record.wins, ratings=record.ratings)
  for name, value in arrays(want).items():
    np.testing.assert_array_equal(arrays(got)[name], value)
    assert arrays(got)[name].dtype == value.dtype


def test_what_goes_in_comes_out(tmp_path):
  records = RECORDS * 20
  directory = prepare({'train': records, 'eval': RECORDS[:1]}, tmp_path, name='mine')
  train = open_source(f'tfds:{directory}:train')
  assert len(train) == len(records) and len(open_source(f'tfds:{directory}:eval')) == 1
  for i, want in enumerate(records):
    assert_same(train[i], want)
  assert train[4].where == 'mine:5'
  part = open_source(f'tfds:{directory}:train[1:3]+eval')
  assert [len(part[i].responses) for i in range(len(part))] == [3, 1, 2]


def test_records_without_labels_and_a_directory_of_one_split(tmp_path):
  record = Record('p', ('a', 'b'), pairwise_wins(2, [(1, 0, 1.0)]), np.full(2, NAN, np.float32), subset='s')
  source = open_source(str(prepare({'train': [record]}, tmp_path)))
  assert len(source) == 1
  assert_same(source[0], record)


class Others(tfds.core.GeneratorBasedBuilder):
  """Preferences as messages, as others publish them."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    talk = tfds.features.Sequence({'role': tfds.features.Text(), 'content': tfds.features.Text()})
    features = tfds.features.FeaturesDict(dict(chosen=talk, rejected=talk, margin=np.float32, helpful=np.bool_))
    return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {'test': self._generate_examples()}

  def _generate_examples(self):
    talk = lambda text: [dict(role='user', content='hi ü'), dict(role='assistant', content=text)]
    yield 0, dict(chosen=talk('a'), rejected=talk('b'), margin=0.5, helpful=True)
    yield 1, dict(chosen=talk('a'), rejected=talk('b'), margin=NAN, helpful=True)
    yield 2, dict(chosen=talk('a'), rejected=talk('a'), margin=0, helpful=True)


def test_other_people_s_data_sets_are_read_as_files_are(tmp_path):
  builder = Others(data_dir=str(tmp_path), file_format='array_record')
  builder.download_and_prepare()
  source = open_source(f'tfds:{builder.data_dir}:test', bad_rows='lenient')
  assert [source[i].margin for i in range(2)] == [0.5, 0.0]
  assert source[0].prompt == [dict(role='user', content='hi ü')] and source[0].responses == ('a', 'b') and source[0].subset == 'others'
  assert source.bad == ["others:3: column 'rejected': the same as chosen: there is nothing to prefer"]


def test_tensorflow_is_not_imported(tmp_path):
  directory = prepare({'train': RECORDS}, tmp_path)
  code = (
    'import sys; from rmjax.data.sources import open_source; from rmjax.data.tfds_builder import prepare\n'
    f'source = open_source("tfds:{directory}:train"); prepare({{"train": source}}, "{tmp_path}", name="again")\n'
    f'assert len(open_source("tfds:{tmp_path}/again/1.0.0:train")) == 3\n'
    'assert "tensorflow" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('tfds:nowhere', "'tfds:nowhere': give tfds:NAME:SPLIT"),
    ('tfds:{0}', 'give tfds:NAME:SPLIT'),
    ('tfds:no_such_data_set_at_all:train', "'no_such_data_set_at_all' cannot be opened"),
    ('tfds:{0}/none:train', 'none is no directory that TFDS prepared: it has no dataset_info.json'),
    ('tfds:{0}/two/1.0.0:test', r"split 'test' .*/two/1.0.0' cannot be read \(its splits: train, eval\)"),
    ('{0}/two/1.0.0', 'has the splits train, eval: choose one by tfds:.*/two/1.0.0:SPLIT'),
  ],
)
def test_what_there_is_not_is_named(tmp_path, spec, message):
  prepare({'train': RECORDS, 'eval': RECORDS}, tmp_path, name='two')
  with pytest.raises(InputError, match=message) as error:
    open_source(spec.format(tmp_path))
  assert '\n' not in str(error.value)


def test_prepared_data_is_never_taken_for_other_data(tmp_path):
  prepare({'train': RECORDS}, tmp_path)
  with pytest.raises(InputError, match='preferences/1.0.0 exists: remove it, or choose another name or data_dir'):
    prepare({'train': RECORDS[:1]}, tmp_path)


@pytest.mark.parametrize(
  ('records', 'message'),
  [
    ([], "split 'train' has no records"),
    ([RECORDS[0], Record('p', ('a',), np.zeros((1, 1), np.float32), np.zeros(1, np.float32), where='f:2')], "f:2: labels .*'gold'.* are not in all records"),
  ],
)
def test_records_that_make_no_data_set(tmp_path, records, message):
  with pytest.raises(InputError, match=message):
    prepare({'train': records}, tmp_path)
  assert not (tmp_path / 'preferences' / '1.0.0').exists()
