"""Benchmarks of several responses: whole rankings, the best of n by a model, and win rates of systems against one of them.

Dimensions: N responses of an item.
"""

from collections.abc import Sequence

from jaxtyping import Float
import numpy as np

from rmjax.data.records import BadRecord, Record
from rmjax.errors import InputError
from rmjax.evaluation.items import Answer, Benchmark, counts, Facts, make_items, pair_ties, pairs_right, Report, with_interval

BASELINE = 'gpt4_1106_preview'  # of AlpacaEval 2


def rank_match(rewards: Float[np.ndarray, 'N'], wins: Float[np.ndarray, 'N N']) -> tuple[float, float]:
  """Whether a ranking is the data's.

  Args:
    rewards: one a response.
    wins: wins[i, j] is how much i was preferred to j.

  Returns:
    (1 if every compared pair with a winner is ordered as the data has it, else 0; the share of responses whose place, counted by how many
    are above them in the data's comparisons, is the data's). 0 for both with a NaN.
  """
  if np.isnan(rewards).any():
    return 0.0, 0.0
  decided = (wins > 0.5) | (wins.T > 0.5)  # the data's ties are not held against the model
  own, model = np.sum(wins.T > 0.5, 1), np.sum(decided & (rewards[None, :] > rewards[:, None]), 1)
  winner, loser = np.nonzero(wins > 0.5)
  exact = bool(np.all(rewards[winner] > rewards[loser]))
  return float(exact), float(np.mean(own == model))


def _ranking_facts(record: Record) -> Facts:
  if not np.any(record.wins > 0.5):
    raise BadRecord(f'{record.where}: no response is preferred to another: a ranking has ranks, ratings, or chosen and rejected')
  return dict(id=_name(record), subset=record.subset)


def _rankings(found: Sequence[Answer]) -> Report:
  matches = np.array([rank_match(answer.rewards, answer.wins) for answer in found])
  right = [pairs_right(answer) for answer in found]
  items = make_items(found, [pairs.mean() for pairs in right])
  names, group = np.unique(items.groups, return_inverse=True)
  every = np.ones(len(names))
  np.minimum.at(every, group, [pairs.min() for pairs in right])
  figures = counts(found) | {'num_score_ties': pair_ties(found), 'num_groups': len(names)}
  pairs, owners = np.concatenate(right), np.repeat(items.groups, [len(x) for x in right])
  figures |= with_interval('accuracy', '', np.mean, pairs, groups=owners)
  figures |= with_interval('accuracy_plus', '', np.mean, every, groups=names)
  figures |= with_interval('exact_match', '', np.mean, matches[:, 0], groups=items.groups)
  figures |= with_interval('rank_match', '', np.mean, matches[:, 1], groups=items.groups)
  columns = (('items', 'num_items'), ('pairs right', 'accuracy'), ('all of a prompt', 'accuracy_plus'), ('exact', 'exact_match'), ('places', 'rank_match'))
  return Report(figures, items, columns, [('all', '')])


def _best_facts(record: Record) -> Facts:
  if len(record.responses) < 2 or np.isnan(record.ratings).any():
    raise BadRecord(f'{record.where}: best_of_n has several responses, and a rating (or whether it is right) of each')
  return dict(id=_name(record), subset=record.subset)


def _best(found: Sequence[Answer]) -> Report:
  def chosen(answer: Answer) -> float:
    if np.isnan(answer.rewards).any():
      return float(answer.ratings.min())  # what is not scored is not found: the worst
    return float(answer.ratings[answer.rewards == answer.rewards.max()].mean())

  items = make_items(found, [chosen(answer) for answer in found])
  figures = counts(found) | with_interval('best_of_n', '', np.mean, items.correct, groups=items.groups)
  for name, pick in (('random', np.mean), ('most', np.max)):
    figures |= with_interval(name, '', np.mean, np.array([pick(answer.ratings) for answer in found], np.float64), groups=items.groups)
  columns = (('items', 'num_items'), ('best of n', 'best_of_n'), ('random choice', 'random'), ('best choice', 'most'))
  return Report(figures, items, columns, [('all', '')])


def _alpaca_facts(record: Record) -> Facts:
  outputs = record.columns.get('outputs')
  if outputs is None or BASELINE not in outputs:
    raise BadRecord(f"{record.where}: column 'outputs': alpaca_eval has an object of system -> text, {BASELINE} among them")
  return dict(id=_name(record), subset=record.subset, systems=[name for name, text in outputs.items() if text is not None])


def _win_rates(found: Sequence[Answer]) -> Report:
  systems = sorted({name for answer in found for name in answer.facts['systems']} - {BASELINE})
  if not systems:
    raise InputError(f'alpaca_eval: the rows have no system but {BASELINE}: there is nothing to compare')
  groups = np.array([answer.group for answer in found], str)
  wins = np.full((len(found), len(systems)), np.nan)
  for k, answer in enumerate(found):
    place = {name: n for n, name in enumerate(answer.facts['systems'])}
    for s, system in enumerate(systems):
      if system in place:
        logit = answer.logits[place[system], place[BASELINE]]
        wins[k, s] = 0.0 if np.isnan(logit) else 0.5 * (1 + np.tanh(logit / 2))
  figures = counts(found) | {'num_systems': len(systems)}
  for s, system in enumerate(systems):
    figures |= with_interval('win_rate', f'/{system}', np.nanmean, wins[:, s], groups=groups)
  best = sorted(systems, key=lambda system: -figures[f'win_rate/{system}'])
  notes = [f'alpaca_eval: win rates are mean P(better than {BASELINE}) by this model, which is no human: compare their order, not their size']
  items = make_items(found, np.nanmean(wins, 1))
  return Report(figures, items, (('win rate', 'win_rate'),), [(system, f'/{system}') for system in best], notes)


def _name(record: Record) -> str:
  return str(next((record.columns[name] for name in ('id', 'idx') if record.columns.get(name) is not None), record.where))


rankings = Benchmark(_ranking_facts, _rankings)
best_of_n = Benchmark(_best_facts, _best)
alpaca_eval = Benchmark(_alpaca_facts, _win_rates)
