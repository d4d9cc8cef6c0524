"""Models whose scores depend on the order of the responses: averages over orders, accuracy by place, and how much the order decides.

Records come from `rmjax.data.ordering.Orders`, each in several orders, with the labels `record` and `order`.

Dimensions: N responses of a record.
"""

from collections.abc import Callable, Sequence
import dataclasses
import itertools

from jaxtyping import Bool, Float
import numpy as np

from rmjax.data.ordering import permuted
from rmjax.data.records import Record
from rmjax.errors import InputError
from rmjax.evaluation.scored import Scored


def order_average(validation: Sequence[Scored]) -> Callable[[Sequence[Scored]], list[Scored]]:
  """A correction that makes one of the records that are one record in several orders: means of rewards and logits, in the record's own order.

  Rewards of a group are known up to what is added to all, so each order's are taken from their mean first. A record of which any order was
  refused is refused. `scores` are left out.
  """
  del validation
  return lambda scored: [_average(same) for same in _by_record(scored)]


def _average(same: Sequence[Scored]) -> Scored:
  refused = next((one for one in same if one.refused), None)
  back = [_in_own_order(one) for one in same]
  mean = lambda values: np.mean(np.stack(list(values)), 0)
  return dataclasses.replace(
    back[0],
    rewards=mean(one.rewards - one.rewards.mean() for one in back),
    logits=mean(one.logits for one in back),
    scores=None,
    truncated=any(one.truncated for one in same),
    refused=refused.refused if refused else None,
  )


def _in_own_order(scored: Scored) -> Scored:
  back = np.argsort(scored.labels['order'])
  known = dict(labels=scored.labels, wins=scored.wins, ratings=scored.ratings if scored.ratings is not None else np.full(len(back), np.nan))
  record = permuted(Record('', ('',) * len(back), **known), back)
  return dataclasses.replace(
    scored,
    rewards=scored.rewards[back],
    logits=scored.logits[np.ix_(back, back)],
    lengths=scored.lengths[back],
    wins=record.wins,
    ratings=record.ratings,
    gold=record.labels.get('gold'),
    probability=record.labels.get('probability'),
    labels=record.labels,
  )


def order_figures(scored: Sequence[Scored]) -> dict[str, float]:
  """What the order of the responses does.

  Several responses have the highest reward where the best one's text stands twice.

  Returns:
    place_accuracy_<n>: share of comparisons ordered as gold, of those of the response in place n (from 1); where gold is known.
    chosen_at_<n>: how often the highest reward stands in place n; 1 / N each where places are alike and orders balanced.
    best_found: how often the response of the highest reward is one of the highest gold; where gold is known.
    order_flips: probability that two orders of one record have no response in common that is of the highest reward; of records in several orders.
    order_gold_loss: gold quality that the choice loses on average against the choice by the mean over orders; of records in several orders.
  """
  kept = [record for record in scored if not record.refused]
  places = max((len(record.rewards) for record in kept), default=0)
  figures, chosen, found = {}, [[] for _ in range(places)], []
  right = [[] for _ in range(places)]
  for record in kept:
    highest = _highest(record.rewards)
    for n, share in enumerate(highest / highest.sum()):
      chosen[n].append(float(share))
    if record.gold is None:
      continue
    found.append(float(np.mean(record.gold[highest] == record.gold.max())))
    gap = record.gold[:, None] - record.gold[None, :]
    agrees = 0.5 + 0.5 * np.sign(gap) * np.sign(record.logits)
    for n in range(len(record.rewards)):
      right[n] += agrees[n][gap[n] != 0].tolist()
  for n in range(places):
    figures[f'chosen_at_{n + 1}'] = float(np.mean(chosen[n]))
    if right[n]:
      figures[f'place_accuracy_{n + 1}'] = float(np.mean(right[n]))
  if found:
    figures['best_found'] = float(np.mean(found))
  groups = [same for same in _by_record(kept) if len(same) > 1] if kept and 'order' in kept[0].labels else []
  if groups:
    figures |= _between_orders(groups)
  return figures


def _between_orders(groups: Sequence[Sequence[Scored]]) -> dict[str, float]:
  flips, losses = [], []
  for same in groups:
    choices = [{*one.labels['order'][_highest(one.rewards)].tolist()} for one in same]
    flips.append(float(np.mean([not a & b for a, b in itertools.combinations(choices, 2)])))
    mean = _average(same)
    if mean.gold is not None:
      chosen = np.mean([mean.gold[sorted(choice)].mean() for choice in choices])
      losses.append(float(mean.gold[_highest(mean.rewards)].mean() - chosen))
  return {'order_flips': float(np.mean(flips)), **({'order_gold_loss': float(np.mean(losses))} if losses else {})}


def _highest(rewards: Float[np.ndarray, 'N']) -> Bool[np.ndarray, 'N']:
  """Equal texts have equal rewards but for the rounding of float32."""
  return rewards >= rewards.max() - 1e-5


def _by_record(scored: Sequence[Scored]) -> list[list[Scored]]:
  if scored and 'order' not in scored[0].labels:
    raise InputError('the records are not in several orders: set data.orders above 1')
  return [list(same) for _, same in itertools.groupby(scored, lambda record: int(record.labels['record']))]
