"""Averages over orders, accuracy by place, flips: by hand, and of a scorer whose dependence on the order is known."""

import dataclasses

import numpy as np
import pytest

from rmjax.data.ordering import Orders
from rmjax.errors import InputError
from rmjax.evaluation.orders import order_average, order_figures
from rmjax.evaluation.scored import Scored
from rmjax.evaluation.summary import summary
from rmjax.worlds.traits import Traits

SOURCE = Traits(split='eval', size=30)


def scored(count, reward):
  """Records in `count` orders; `reward(record)` gives the scores."""
  found = []
  for index in range(len(SOURCE) * count):
    record = Orders(SOURCE, count)[index]
    rewards = np.asarray(reward(record), np.float64)
    found.append(
      Scored(
        index=index,
        rewards=rewards,
        logits=rewards[:, None] - rewards[None, :],
        lengths=np.ones(len(rewards), np.int64),
        wins=record.wins,
        ratings=record.ratings,
        gold=record.labels['gold'],
        probability=record.labels['probability'],
        labels=record.labels,
        group=index // count,
      )
    )
  return found


def test_a_scorer_that_knows_gold_and_no_order():
  found = scored(4, lambda record: record.labels['gold'])
  figures = order_figures(found)
  assert figures['order_flips'] == 0 and figures['best_found'] == 1 and figures['order_gold_loss'] == pytest.approx(0)
  assert all(figures[f'place_accuracy_{n}'] == 1 and figures[f'chosen_at_{n}'] == 0.25 for n in range(1, 5))
  averaged = order_average([])(found)
  assert len(averaged) == len(SOURCE)
  for number, one in enumerate(averaged):
    record = SOURCE[number]
    np.testing.assert_allclose(one.gold, record.labels['gold'])
    np.testing.assert_allclose(one.wins, record.wins)
    np.testing.assert_allclose(one.probability, record.labels['probability'])
    np.testing.assert_allclose(one.rewards, record.labels['gold'] - record.labels['gold'].mean(), rtol=1e-5, atol=1e-6)
  assert summary(averaged)['gold_accuracy'] == 1


def test_a_scorer_that_always_likes_the_first_is_nothing_on_average():
  found = scored(4, lambda record: [4.0, 3.0, 2.0, 1.0])
  figures = order_figures(found)
  assert figures['order_flips'] == 1 and figures['chosen_at_1'] == 1 and figures['best_found'] == pytest.approx(0.25)
  for one in order_average([])(found):
    np.testing.assert_allclose(one.rewards, 0, atol=1e-12)
    np.testing.assert_allclose(one.logits, 0, atol=1e-12)


def test_equal_texts_are_one_choice():
  """Two responses that are best alike, but for rounding: whichever comes first in an order is no flip."""
  rng = np.random.default_rng(0)
  tied = lambda record: np.where(record.labels['gold'] >= np.sort(record.labels['gold'])[-2], 1.0, 0.0) + 1e-7 * rng.normal(size=4)
  figures = order_figures(scored(4, tied))
  assert figures['order_flips'] == 0 and figures['best_found'] == pytest.approx(0.5) and figures['chosen_at_3'] == pytest.approx(0.25)
  assert figures['order_gold_loss'] == pytest.approx(0, abs=1e-6)


def test_what_the_place_adds_is_averaged_away():
  found = scored(4, lambda record: record.labels['gold'] + np.array([0.0, 5.0, 0.0, 0.0]))
  assert order_figures(found)['order_gold_loss'] > 0.05
  averaged = order_average([])(found)
  assert summary(averaged)['gold_accuracy'] == 1 > summary(found)['gold_accuracy']


def test_a_constant_of_each_pass_does_not_matter():
  constants = iter(100.0 * np.arange(1000))
  found = scored(2, lambda record: record.labels['gold'] + next(constants))
  for one in order_average([])(found):
    np.testing.assert_allclose(one.rewards, one.gold - one.gold.mean(), atol=1e-4)


def test_refused_in_one_order_is_refused():
  found = scored(2, lambda record: record.labels['gold'])
  found[3] = dataclasses.replace(found[3], refused='too long')
  averaged = order_average([])(found)
  assert [one.refused for one in averaged] == [None, 'too long'] + [None] * 28


def test_one_order_has_no_flips_and_no_orders_no_average():
  found = scored(1, lambda record: record.labels['gold'])
  assert 'order_flips' not in order_figures(found) and order_figures(found)['best_found'] == 1
  plain = [dataclasses.replace(one, labels={}) for one in found]
  assert 'order_flips' not in order_figures(plain)
  with pytest.raises(InputError, match='set data.orders above 1'):
    order_average([])(plain)
