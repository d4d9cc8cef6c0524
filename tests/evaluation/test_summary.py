"""The flat dict of figures: what is in it, and what must not change it."""

import dataclasses

import numpy as np
import pytest

from rmjax.data.records import pairwise_wins, wins_from_ratings
from rmjax.errors import InputError
from rmjax.evaluation.scored import compared_pairs, Scored
from rmjax.evaluation.summary import summary


def _scored(index, rewards, wins, lengths=None, **fields):
  rewards = np.asarray(rewards, float)
  lengths = np.arange(1, len(rewards) + 1) if lengths is None else np.asarray(lengths)
  return Scored(index, rewards, rewards[:, None] - rewards[None, :], lengths, wins, **{'group': index, **fields})


def _refused(index, n=2):
  return _scored(index, np.full(n, np.nan), pairwise_wins(n, [(0, 1, 1.0)]), np.full(n, -1), refused='too long')


def _records(seed=0, records=60):
  rng = np.random.default_rng(seed)
  return [
    _scored(k, rng.normal(size=n), wins_from_ratings(rng.integers(0, 4, n)), rng.integers(1, 50, n), subset='ab'[k % 2], gold=rng.normal(size=n))
    for k, n in enumerate(rng.integers(2, 6, records))
  ]


def test_figures_by_hand():
  first = pairwise_wins(2, [(0, 1, 1.0)])
  tie = pairwise_wins(2, [(0, 1, 0.5)])
  found = summary([
    _scored(0, [2, 1], first, [5, 3], subset='x', gold=np.array([1.0, 2.0])),
    _scored(1, [1, 2], first, [5, 3], subset='x', gold=np.array([0.0, 1.0])),
    _scored(2, [1, 1], first, [3, 5], subset='y', truncated=True),
    _scored(3, [0, 4], tie, [3, 5], subset='y'),
    _refused(4),
  ])  # fmt: skip
  expected = {
    'num_records': 5, 'num_refused': 1, 'num_truncated': 1, 'num_responses': 8, 'num_pairs': 3, 'num_ties': 1, 'num_score_ties': 1,
    'accuracy': 0.5, 'accuracy/x': 0.5, 'accuracy/y': 0.5, 'num_pairs/x': 2, 'num_pairs/y': 1, 'gold_accuracy': 0.5,
    'accuracy_chosen_longer': 0.5, 'accuracy_rejected_longer': 0.5, 'share_chosen_longer': 2 / 3, 'share_longer_preferred': 2.5 / 4,
    'reward_mean': 1.5, 'reward_min': 0, 'reward_max': 4,
  }  # fmt: skip
  assert {name: found[name] for name in expected} == pytest.approx(expected)
  assert found['accuracy_se'] == pytest.approx(0.5 / np.sqrt(3))  # of 1, 0, 0.5
  assert 'best_of_n_accuracy' not in found and 'accuracy_se/y' not in found  # what the data cannot give is absent
  assert all(np.isfinite(value) for value in found.values())


def test_a_constant_model_is_chance_everywhere():
  records = [dataclasses.replace(r, rewards=0 * r.rewards, logits=0 * r.logits) for r in _records()]
  found = summary(records)
  assert found['accuracy'] == found['gold_accuracy'] == 0.5
  assert found['brier'] == pytest.approx(0.25) and found['nll'] == pytest.approx(np.log(2)) and found['ece'] == pytest.approx(0)
  assert found['best_of_n_accuracy'] == pytest.approx(found['best_of_n_chance'])
  assert 'length_pearson' not in found


def test_order_of_responses_and_of_records_changes_nothing():
  records, rng = _records(), np.random.default_rng(1)

  def shuffled(record):
    order = rng.permutation(len(record.rewards))
    square = np.ix_(order, order)
    fields = {name: getattr(record, name)[order] for name in ('rewards', 'lengths', 'gold')}
    return dataclasses.replace(record, logits=record.logits[square], wins=record.wins[square], **fields)

  baseline = np.array([0.01, 0.3])
  moved = summary([shuffled(records[k]) for k in rng.permutation(len(records))], length_baseline=baseline)
  assert moved == pytest.approx(summary(records, length_baseline=baseline))


def test_a_monotone_transform_of_rewards_leaves_ranks_and_accuracies_alone():
  records = _records()
  rewards = [np.exp(2 * r.rewards) + 5 for r in records]
  moved = summary([dataclasses.replace(r, rewards=x, logits=x[:, None] - x[None, :]) for r, x in zip(records, rewards, strict=True)])
  found = summary(records)
  same = [name for name in found if 'accuracy' in name or 'spearman' in name or 'share' in name or name.startswith('num_')]
  assert len(same) > 15
  assert {name: moved[name] for name in same} == pytest.approx({name: found[name] for name in same})


def test_a_model_of_length_alone_is_no_better_than_the_length_baseline():
  records = [dataclasses.replace(r, rewards=r.lengths * 1.0, logits=r.lengths[:, None] * 1.0 - r.lengths) for r in _records()]
  found = summary(records, length_baseline=np.array([0.01, 0.0]))
  assert found['length_baseline_accuracy'] == found['accuracy']
  assert found['accuracy_above_length_baseline'] == found['accuracy_above_length_baseline_se'] == 0
  assert found['length_pearson'] == pytest.approx(1)


def test_ratings_are_compared_where_they_are_known():
  rated = [_scored(k, [k], np.zeros((1, 1)), [5 - k], ratings=np.array([r])) for k, r in enumerate([0.0, 10.0, np.nan, 20.0])]
  found = summary([*rated, _scored(9, [50], np.zeros((1, 1)))])
  assert (found['num_rated'], found['rating_spearman'], found['rating_length_spearman']) == pytest.approx((3, 1, -1))
  assert found['rating_pearson'] == pytest.approx(np.corrcoef([0, 1, 3], [0, 10, 20])[0, 1])
  assert found['num_pairs'] == 0 and 'accuracy' not in found and 'ece' not in found


def test_ratings_by_subset_and_the_errors_of_their_correlations():
  rng = np.random.default_rng(0)
  ratings = rng.normal(size=800)
  rewards = np.where(np.arange(800) % 2, 0.6, -0.6) * ratings + 0.8 * rng.normal(size=800)
  found = summary([_scored(k, [rewards[k]], np.zeros((1, 1)), ratings=ratings[k : k + 1], subset='ab'[k % 2]) for k in range(800)])
  assert found['rating_pearson/a'] == pytest.approx(-0.6, abs=0.1) and found['rating_pearson/b'] == pytest.approx(0.6, abs=0.1)
  assert abs(found['rating_spearman']) < 0.1
  assert found['rating_pearson_se/b'] == pytest.approx((1 - 0.6**2) / 20, rel=0.25)  # of a normal sample of 400: (1 - r^2) / sqrt(400)


def test_pairs_stand_once_and_refused_records_not_at_all():
  pairs = compared_pairs([_scored(7, [1, 2, 4], wins_from_ratings([1, np.nan, 3])), _refused(8)])
  assert (pairs.logits.tolist(), pairs.wins.tolist(), pairs.lengths.tolist(), pairs.groups.tolist()) == ([-3], [0], [[1, 3]], [7])


def test_nothing_to_evaluate_is_said():
  with pytest.raises(InputError, match='no records to evaluate'):
    summary([])
  assert {name: value for name, value in summary([_refused(0)]).items() if value} == {'num_records': 1, 'num_refused': 1}
