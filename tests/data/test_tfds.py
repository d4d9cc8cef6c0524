"""A TFDS data set gives back the records that went in, and tensorflow is never imported."""

import sys

import numpy as np
import pytest

from rmjax.data.records import pairwise_wins, Record
from rmjax.data.sources import open_source
from rmjax.data.tfds_builder import prepare
from rmjax.errors import InputError

NAN = float('nan')
RECORDS = [
  Record('what ?', ('a ü', 'b'), pairwise_wins(2, [(0, 1, 0.75)]), np.array([1.5, NAN], np.float32), weight=2.0, margin=0.5, subset='x'),
  Record([{'role': 'user', 'content': 'hi'}], ('a', 'b', 'c'), pairwise_wins(3, [(0, 1, 1.0), (2, 0, 0.5)]), np.full(3, NAN, np.float32), subset='y'),
  Record('', ('alone',), np.zeros((1, 1), np.float32), np.ones(1, np.float32), subset='y'),
]


def test_what_goes_in_comes_out(tmp_path):
  directory = prepare({'train': RECORDS, 'eval': RECORDS[:1]}, tmp_path)
  train = open_source(f'tfds:{directory}:train')
  assert 'tensorflow' not in sys.modules
  assert len(train) == 3 and len(open_source(f'tfds:{directory}:eval')) == 1
  by_subset = sorted((train[i] for i in range(3)), key=lambda record: (record.subset, len(record.responses) == 1))
  for got, want in zip(by_subset, RECORDS, strict=True):
    assert (got.prompt, got.responses, got.weight, got.margin, got.subset) == (want.prompt, want.responses, want.weight, want.margin, want.subset)
    np.testing.assert_array_equal(got.wins, want.wins)
    np.testing.assert_array_equal(got.ratings, want.ratings)


@pytest.mark.parametrize('spec', ['tfds:nowhere', 'tfds:no_such_data_set_at_all:train'])
def test_what_there_is_not_is_named(spec):
  with pytest.raises(InputError, match=spec):
    open_source(spec)
