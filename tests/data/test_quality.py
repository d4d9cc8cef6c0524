"""Comparisons that quality levels contradict are taken out and counted; levels that cannot be are named."""

import dataclasses

import numpy as np
import pytest

from rmjax.data.pipeline import train_batches
from rmjax.data.quality import compatible
from rmjax.data.records import BadRecord, pairwise_wins, Record
from rmjax.data.tokenizer import Tokenizer
from rmjax.worlds.preferences import Preferences


def record(quality, pairs, **labels):
  count = len(quality)
  label = {'quality': np.array(quality), **labels}
  return Record('p', tuple(f'r{n}' for n in range(count)), pairwise_wins(count, pairs), np.full(count, np.nan), where='f:7', labels=label)


def test_what_the_levels_contradict_is_taken_out():
  # 0 is good, 1 bad, 2 unknown, 3 good. Preferring 1 to 0, or a tie of 1 and 3, contradicts; equal levels and unknown ones do not.
  pairs = [(0, 2, 0.0), (0, 3, 0.0), (1, 2, 1.0), (0, 1, 0.2), (1, 3, 0.5)]
  found = compatible(record([2, 0, -1, 2], pairs), 3)
  np.testing.assert_array_equal(found.wins, pairwise_wins(4, pairs[:3]))
  assert found.labels['incompatible'] == 2 and found.responses == ('r0', 'r1', 'r2', 'r3')


@pytest.mark.parametrize('quality', [[0, 3], [-2, 1]])
def test_a_level_that_there_is_not(quality):
  with pytest.raises(BadRecord, match=r"f:7: column 'labels.quality': \[.*\]: one level a response is wanted, 0 to 2, or -1"):
    compatible(record(quality, []), 3)
  with pytest.raises(BadRecord, match="f:7: column 'labels.quality': missing"):
    compatible(dataclasses.replace(record([0, 1], []), labels={}), 3)


def test_they_are_counted_with_the_batch():
  world = Preferences(split='train', size=50, marks=2, grade=1.0, temperature=2.0, levels=3, labelled=1.0)
  tokenizer = Tokenizer.load(Preferences.tokenizer_path)
  encode = lambda record: tokenizer.encode_record(compatible(record, 3), max_length=64)
  batches = train_batches(world, encode, rows=2, length=256, slots=4, responses=4, seed=0)
  batch = next(batches)
  taken = sum(int(compatible(world[int(i)], 3).labels['incompatible']) for i in batch.trees.labels['index'].ravel() if i >= 0)
  assert batch.counts['incompatible'] == taken > 0
  batches.close()
