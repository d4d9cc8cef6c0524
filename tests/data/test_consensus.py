"""Consensus of annotators: by hand, against a loop over people, and as a source."""

import numpy as np
import pytest

from rmjax.data.consensus import Agreed, consensus_filter
from rmjax.data.records import Record
from rmjax.errors import InputError


def at(*degrees):
  angles = np.deg2rad(degrees)
  return np.stack([np.cos(angles), np.sin(angles)], 1)


def test_every_other_annotator_has_to_confirm_a_principle():
  vectors = at(0, 10, 20, 90, 95)  # cos 36.87 degrees = 0.8
  annotators, labels = np.array([0, 1, 2, 0, 1]), np.ones(5)
  np.testing.assert_array_equal(consensus_filter(vectors, annotators, labels, 0.8), [True, True, True, False, False])
  np.testing.assert_array_equal(consensus_filter(vectors[:4], np.array([0, 1, 1, 0]), labels[:4], 0.8), [True, True, True, False])
  np.testing.assert_array_equal(consensus_filter(vectors, annotators, labels, 0.95), [False, True, False, False, False])  # 0 and 20 are 0.94


def test_the_label_has_to_be_the_same():
  vectors, annotators = at(0, 0, 0), np.array([0, 1, 2])
  assert consensus_filter(vectors, annotators, np.array([1.0, 1.0, 1.0]), 0.8).all()
  assert not consensus_filter(vectors, annotators, np.array([1.0, 1.0, 0.0]), 0.8).any()
  # Somebody who says both confirms both.
  twice = consensus_filter(at(0, 0, 0, 0), np.array([0, 1, 2, 2]), np.array([1.0, 1.0, 1.0, 0.0]), 0.8)
  np.testing.assert_array_equal(twice, [True, True, True, False])


def test_the_cosine_has_to_be_above_the_threshold_whatever_the_lengths():
  vectors = np.array([[2.0, 0.0], [8.0, 6.0]])  # cosine exactly 0.8
  pair = np.array([0, 1]), np.ones(2)
  assert not consensus_filter(vectors, *pair, 0.8).any()
  assert consensus_filter(vectors, *pair, 0.79).all()


def test_a_single_annotator_is_no_consensus():
  """Who has nobody to be confirmed by would have everything kept."""
  assert not consensus_filter(at(0, 0, 5), np.zeros(3, int), np.ones(3), 0.0).any()
  assert consensus_filter(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0), 0.8).shape == (0,)


def loop(vectors, who, labels, threshold):
  cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  like = lambda p, q: labels[q] == labels[p] and cosine(vectors[p], vectors[q]) > threshold
  confirmed = lambda p, one: any(who[q] == one and like(p, q) for q in range(len(who)))
  return [len(set(who)) > 1 and all(confirmed(p, one) for one in set(who) - {who[p]}) for p in range(len(who))]


@pytest.mark.parametrize('threshold', [-1.0, 0.0, 0.5, 0.9])
def test_it_is_a_loop_over_people(threshold):
  rng = np.random.default_rng(0)
  for _ in range(20):
    count = int(rng.integers(2, 9))
    given = rng.normal(size=(count, 3)), rng.integers(0, 3, count), rng.integers(0, 2, count).astype(float), threshold
    np.testing.assert_array_equal(consensus_filter(*given), loop(*given))


TEXTS = {'clear': 0, 'readable': 10, 'short': 90}


def named(*triples):
  """A record of (annotator, principle, verdict)."""
  who, principles, ratings = zip(*triples, strict=True)
  count = len(who)
  return Record(
    'p', tuple(f'is it {text}' for text in principles), np.zeros((count, count), np.float32), np.array(ratings, np.float32),
    labels={'annotator': np.array(who), 'topic': np.int32(3)}, columns={'principles': principles, 'id': 7},
  )  # fmt: skip


EMBED = lambda texts: at(*(TEXTS[text] for text in texts))


def test_a_source_keeps_what_is_agreed_on_and_counts_it():
  source = [named((0, 'clear', 1), (1, 'readable', 1), (1, 'short', 0)), named((0, 'short', 1), (1, 'clear', 1)), named((0, 'short', 0), (1, 'short', 0))]
  agreed = Agreed(source, EMBED, 0.8)
  assert len(agreed) == 2 and (agreed.given, agreed.kept) == (7, 4)
  first = agreed[0]
  assert first.responses == ('is it clear', 'is it readable') and first.columns == {'principles': ('clear', 'readable'), 'id': 7}
  np.testing.assert_array_equal(first.ratings, [1, 1])
  np.testing.assert_array_equal(first.labels['annotator'], [0, 1])
  assert first.wins.shape == (2, 2) and first.labels['topic'] == 3
  assert agreed[1].responses == ('is it short',) * 2 and not agreed[1].ratings.any()
  with pytest.raises(InputError, match='consensus at 0.8 kept none of 1 principles: lower it, or ask more than one annotator'):
    Agreed([named((0, 'clear', 1))], EMBED, 0.8)
