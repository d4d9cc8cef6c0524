"""Short-to-long synthesis: nothing is cut, every place is as likely, nothing forbidden gets in; and a vote that drops what has no consensus."""

from random import Random

import numpy as np
import pytest

from rmjax.data.short_to_long import consistency_vote, short_to_long
from rmjax.errors import InputError

OTHERS = [f'd{k} ' + 'x ' * (k % 3) + '.' for k in range(40)]


@pytest.mark.parametrize('length', [6, 7, 20, 61])
def test_critical_chunks_are_whole_in_their_order_and_nothing_is_too_long(length):
  for seed in range(50):
    chunks = short_to_long(['first a b', 'second c d'], OTHERS, length, Random(seed))
    assert [chunk for chunk in chunks if chunk[0] in 'fs'] == ['first a b', 'second c d']
    words = sum(len(chunk.split()) for chunk in chunks)
    assert length - 2 < words <= length  # the shortest distractor has two
    rest = [chunk for chunk in chunks if chunk[0] == 'd']
    assert len(set(rest)) == len(rest) and set(rest) <= set(OTHERS)


def test_any_place_is_as_likely():
  """Of the critical chunk among four others, over 5,000 draws: five standard errors."""
  places = [short_to_long(['c'], ['d'] * 9, 5, Random(seed)).index('c') for seed in range(5000)]
  counts = np.bincount(places, minlength=5)
  assert len(counts) == 5 and np.abs(counts - 1000).max() < 5 * np.sqrt(5000 * 0.2 * 0.8)


def test_what_holds_the_answer_is_left_out():
  chunks = short_to_long(['kate has lamp .'], ['ben has lamp .', 'ben has cup .', 'lamp'], 50, Random(0), forbidden=('lamp',))
  assert sorted(chunks) == ['ben has cup .', 'kate has lamp .']


def test_size_is_the_tokenizer_s():
  chunks = short_to_long(['ab'], ['cdef', 'ghi'], 5, Random(0), size=len)
  assert sorted(chunks) == ['ab', 'ghi']


def test_what_does_not_fit_is_named():
  with pytest.raises(InputError, match='1 critical chunks of 3 and a length of 2'):
    short_to_long(['a b c'], [], 2, Random(0))
  with pytest.raises(InputError, match='there must be some'):
    short_to_long([], ['a'], 2, Random(0))


def test_a_vote():
  vote = consistency_vote(np.array([[7.0, 3.0], [7.0, 4.0], [2.0, 3.0]]))
  assert vote.preferred == 0 and vote.consensus == (7.0, 3.0)
  np.testing.assert_array_equal(vote.agrees, [[True, True], [True, False], [False, True]])
  assert consistency_vote(np.array([[1.0, 5.0]] * 2 + [[9.0, np.nan]])).preferred == 1


@pytest.mark.parametrize(
  'scores',
  [
    [[7, 3], [6, 3], [5, 3]],  # three judges, three scores
    [[7, 3], [7, 3], [2, 4], [1, 4]],  # half is not more than half
    [[7, 7], [7, 7], [1, 2]],  # the same of both
    [[7, np.nan], [7, np.nan], [7, 3]],  # most judgments of one could not be read
    [[np.nan, np.nan]],
  ],
)
def test_no_consensus_is_dropped(scores):
  assert consistency_vote(np.array(scores, float)) is None
