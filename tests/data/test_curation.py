"""Curation's decisions against the paper's own numbers and by hand; its source is one that training takes."""

import grain
import numpy as np
import pytest

from rmjax.data import curation
from rmjax.data.curation import Choice, Curated
from rmjax.data.pipeline import train_batches
from rmjax.data.records import pairwise_wins, Record
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.worlds.traits import Traits

POOL = Traits(split='train', size=40, responses=2)


def pair(prompt='p', responses=('a', 'b'), first=1.0, **more):
  return Record(prompt, responses, pairwise_wins(2, [(0, 1, first)]), np.array([0.9, 0.1], np.float32), where='f:1', **more)


def test_how_many_are_retrieved():
  np.testing.assert_array_equal(curation.retrieve_k(np.array([0.5, 0.51, 0.6, 0.9, 0.99, 1.0])), [8, 4, 4, 1, 1, 0])
  np.testing.assert_array_equal(curation.retrieve_k(np.array([0.0, 0.2, 0.75]), 4), [4, 4, 1])
  assert curation.retrieve_k(np.array(0.7), 10) == 3  # 10 * (1 - 0.7) is 3.0000000000000004
  with pytest.raises(InputError, match='p must be probabilities'):
    curation.retrieve_k(np.array([0.5, np.nan]))


def test_the_nearest_are_retrieved():
  pool = np.array([[1.0, 0.0], [0.0, 5.0], [3.0, 0.1], [1.0, 1.0], [0.0, 0.0]])
  found = curation.knn_retrieve(np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), pool, np.array([3, 0, 1]))
  np.testing.assert_array_equal(found, [[0, 2, 3], [-1, -1, -1], [3, -1, -1]])  # by angle, not by size
  np.testing.assert_array_equal(curation.knn_retrieve(np.array([[1.0, 0.0]]), pool[[0, 0, 0]], np.array([9])), [[0, 1, 2]])  # ties in their order


def test_embeddings_are_bags_of_words():
  found = curation.embed(['the red cat', 'cat  RED the', 'the blue dog', 'the red dog', ''], 512)
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 1, 1, 0])
  near = found @ found.T
  np.testing.assert_allclose(near[0, 1], 1.0)
  assert near[0, 2] < near[0, 3] < 1 and near[0, 2] < 1 / 3  # they share `the`, which all have


@pytest.mark.parametrize(
  ('labels', 'said'),
  [
    ([[1, 1, 0], [1, 0, 1], [0, 0, 0]], 1.0),  # by samples five of nine say 0
    ([[1, 1, 1], [0, 0, 1], [0, 1, 0]], 0.0),  # by samples five of nine say 1
    ([[1, 0, 0.5], [0, 0, 0]], 0.0),  # who is divided does not vote
    ([[1, 1], [0, 0]], 0.5),
    ([[np.nan, np.nan], [1, np.nan]], 1.0),
    ([[np.nan, np.nan]], 0.5),
  ],
)
def test_votes_within_a_model_and_then_across(labels, said):
  assert curation.vote(np.array(labels, float)) == said


def test_what_is_kept_and_what_is_recycled():
  best, gold = np.array([0.9, 0.9, 0.4, 0.4, 0.4, 0.5, 0.2, 0.05]), np.array([0.9, 0.5, 0.9, 0.9, 0.9, 0.9, 0.4, 0.1])
  asked = np.array([np.nan, 1, 1, 0, np.nan, 0.5, 1, 0])
  np.testing.assert_array_equal(curation.consistency_filter(best, gold, asked), [1, 0, 1, 0, 0, 0, 0, 0])
  np.testing.assert_array_equal(curation.consistency_filter(best, gold), [1, 0, 0, 0, 0, 0, 0, 0])
  np.testing.assert_array_equal(curation.both_reject(best, gold), [0, 0, 0, 0, 0, 0, 1, 1])
  np.testing.assert_array_equal(curation.both_reject(best, gold, 0.8), [0, 0, 0, 0, 0, 0, 0, 1])  # confident, both
  with pytest.raises(InputError, match='from 0.5 to below 1'):
    curation.both_reject(best, gold, 0.2)


def test_a_recycled_pair_is_turned_around():
  turned = curation.recycle_flip(pair(margin=0.7))
  np.testing.assert_array_equal(turned.wins, [[0, 0], [1, 0]])
  assert turned.margin == 0 and np.isnan(turned.ratings).all() and turned.responses == ('a', 'b')
  np.testing.assert_array_equal(curation.recycle_flip(curation.recycle_flip(pair())).wins, pair().wins)


def test_doubles_and_prompts_of_the_evaluation():
  records = [pair('One  two'), pair('one two', ('B', 'a'), first=0.0), pair('one two', ('a', 'c')), pair([dict(role='user', content='One two')])]
  np.testing.assert_array_equal(curation.duplicates(records), [0, 1, 0, 1])
  long = ' '.join(f'w{i}' for i in range(20))
  pool = [pair('ONE two '), pair('one two three'), pair(f'please say {long} and no more'), pair(long[:40]), pair('')]
  np.testing.assert_array_equal(curation.contaminated(pool, ['one two', long, '']), [1, 0, 1, 0, 0])
  np.testing.assert_array_equal(curation.contaminated(pool, ['one two', long], words=0), [1, 0, 0, 0, 0])


def test_a_curated_source_says_where_each_label_comes_from():
  given = [float(POOL[i].wins[0, 1]) for i in range(4)]
  source = Curated(POOL, [Choice(3), Choice(1, 'human', 0.0), Choice(2, 'recycled'), Choice(0, 'annotators', 1.0)])
  records = [source[i] for i in range(len(source))]
  assert [r.where for r in records] == ['train:3 (given)', 'train:1 (human)', 'train:2 (recycled)', 'train:0 (annotators)']
  assert [int(r.labels['origin']) for r in records] == [0, 1, 3, 2]
  assert [float(r.wins[0, 1]) for r in records] == [given[3], 0.0, 1 - given[2], 1.0] and all(r.wins.sum() == 1 for r in records)
  assert [r.prompt for r in records] == [POOL[i].prompt for i in (3, 1, 2, 0)]


def test_a_curated_source_is_trained_on_and_mapped_over():
  choices = [Choice(i, 'recycled') for i in range(0, 40, 2)]
  encode = lambda record: Tokenizer.load(POOL.tokenizer_path).encode_record(record, max_length=64)
  batch = next(train_batches(Curated(POOL, choices), encode, rows=2, length=128, slots=3, responses=2, seed=0)).trees
  assert set(batch.labels['origin'][batch.prompt_ends >= 0].ravel()) == {3}
  source = grain.MapDataset.source(Curated(POOL, choices)).map(curation.recycle_flip)
  np.testing.assert_array_equal(source[1].wins, POOL[2].wins)  # twice turned


@pytest.mark.parametrize(
  ('choices', 'message'),
  [([], 'kept none of 40'), ([Choice(40)], 'the pool has 40'), ([Choice(0, 'guess')], "origin 'guess': there are given, human")],
)
def test_choices_that_there_are_not(choices, message):
  with pytest.raises(InputError, match=message):
    Curated(POOL, choices)


def test_only_pairs_are_relabelled():
  assert curation.label(pair(first=0.5)) == 0.5
  with pytest.raises(InputError, match='train:0: curation is of pairs.*4 responses'):
    Curated(Traits(split='train', size=2), [Choice(0, 'human', 1.0)])[0]


def test_margins_before_and_after():
  p = np.array([0.5, 0.55, 0.9, 0.1, 0.99])
  found = curation.margins(p, p > 0.8)
  assert found['near_half_pool'] == pytest.approx(0.4) and found['near_half_kept'] == 0
  assert found['margin_pool_50'] == pytest.approx(np.log(9)) and found['margin_kept_50'] == pytest.approx((np.log(9) + np.log(99)) / 2)
  assert not any('kept' in name for name in curation.margins(p, p > 2))
