"""Scored records to one flat dict of figures."""

from collections.abc import Sequence

from jaxtyping import Float
import numpy as np

from rmjax.errors import InputError
from rmjax.evaluation import accuracy, calibration, length
from rmjax.evaluation.scored import compared_pairs, Pairs, Scored


def summary(scored: Sequence[Scored], *, length_baseline: Float[np.ndarray, '2'] | None = None) -> dict[str, float]:
  """Everything that is measured of a reward model on a data set.

  Args:
    scored: the records, refused ones too.
    length_baseline: coefficients of `length.fit_length_baseline`, fitted on training data.

  Returns:
    Floats, and ints for what starts with `num_`; a figure that the data cannot give is absent, never 0 or NaN.
      num_records, num_refused, num_truncated, num_responses (scored ones)
      num_pairs: compared pairs with a preference; num_ties: those without, which count for calibration alone
      accuracy, accuracy_se (clustered by prompt), num_score_ties (pairs the model does not order, half right)
      accuracy/<subset>, accuracy_se/<subset>, num_pairs/<subset>: where there are several subsets
      gold_accuracy, gold_accuracy_se: compared pairs that the gold quality tells apart, ordered by it
      majority_accuracy, majority_accuracy_se: compared pairs on which a world's annotators are not divided in half, ordered as most of them would
      gold_spearman: of reward and gold quality over all responses, of whatever prompt
      bayes_accuracy: what the best predictor of a world's annotator would reach on these pairs, mean of max(p, 1 - p)
      best_of_n_accuracy, best_of_n_accuracy_se, best_of_n_chance, num_best_of_n: records of more than two responses
      best_of_n_gold, best_of_n_length: mean gold quality and tokens of the response with the highest reward, beside best_of_n_gold_most, what
        the best choice has, and best_of_n_gold_mean, what a random one has; where gold is known
      rating_pearson, rating_spearman, num_rated: of reward and rating, over rated responses; and rating_length_spearman, what length alone
        has; their _se, and all of them by /<subset> where there are several
      ece, brier, nll (nats)
      length_pearson, length_spearman, length_pearson_within, length_spearman_within: of reward and tokens, over all responses and
        after each record's mean is taken out
      accuracy_chosen_longer, accuracy_rejected_longer, their _se; share_chosen_longer, by the labels, and share_longer_preferred, by
        the model: shares of the pairs of unequal length
      length_baseline_accuracy, length_baseline_accuracy_se; accuracy_above_length_baseline, its _se (paired)
      reward_mean, reward_std, reward_min, reward_max

  Raises:
    InputError: no records.
  """
  if not scored:
    raise InputError('there are no records to evaluate: the data is empty')
  kept = [record for record in scored if not record.refused]
  pairs = compared_pairs(kept)
  figures = {
    'num_records': len(scored),
    'num_refused': len(scored) - len(kept),
    'num_truncated': sum(record.truncated for record in kept),
    'num_responses': sum(len(record.rewards) for record in kept),
    **_accuracy(pairs),
    **_best_of_n(kept),
    **_gold(kept),
    **_ratings(kept),
    **_calibration(pairs),
    **_length(kept, pairs),
    **_rewards(kept),
  }
  if length_baseline is not None:
    figures |= _against_length(pairs, length_baseline)
  return {name: value for name, value in figures.items() if not np.isnan(value)}


def _accuracy(pairs: Pairs) -> dict[str, float]:
  right = accuracy.agreement(pairs.logits, pairs.wins)
  told = ~np.isnan(right)
  figures = {'num_pairs': int(told.sum()), 'num_ties': int((~told).sum()), 'num_score_ties': int((right == 0.5).sum())}
  figures |= _with_error('accuracy', right, pairs.groups)
  figures |= _with_error('gold_accuracy', accuracy.agreement(pairs.logits, 0.5 + pairs.gold), pairs.groups)
  figures |= _with_error('majority_accuracy', accuracy.agreement(pairs.logits, pairs.probability), pairs.groups)
  figures['bayes_accuracy'] = accuracy.clustered_mean(np.maximum(pairs.probability, 1 - pairs.probability), pairs.groups)[0]
  subsets = np.unique(pairs.subsets)
  for subset in subsets if len(subsets) > 1 else ():
    part = pairs.subsets == subset
    name = subset or 'none'
    figures[f'accuracy/{name}'], figures[f'accuracy_se/{name}'] = accuracy.clustered_mean(right[part], pairs.groups[part])
    figures[f'num_pairs/{name}'] = int(told[part].sum())
  return figures


def _best_of_n(records: Sequence[Scored]) -> dict[str, float]:
  several = [record for record in records if len(record.rewards) > 2]
  found = np.array([accuracy.best_of_n(record.rewards, record.wins) for record in several]).reshape(-1, 2)
  if not np.any(~np.isnan(found)):
    return {}
  figures = _with_error('best_of_n_accuracy', found[:, 0], np.array([record.group for record in several]))
  return {**figures, 'best_of_n_chance': float(np.nanmean(found[:, 1])), 'num_best_of_n': int(np.sum(~np.isnan(found[:, 0])))}


def _gold(records: Sequence[Scored]) -> dict[str, float]:
  known = [record for record in records if record.gold is not None]
  if not known:
    return {}
  figures = {'gold_spearman': length.spearman(np.concatenate([record.rewards for record in known]), np.concatenate([record.gold for record in known]))}
  several = [record for record in known if len(record.rewards) > 2]
  if several:
    best = [int(np.argmax(record.rewards)) for record in several]
    figures['best_of_n_gold'] = float(np.mean([record.gold[n] for record, n in zip(several, best, strict=True)]))
    figures['best_of_n_length'] = float(np.mean([record.lengths[n] for record, n in zip(several, best, strict=True)]))
    figures['best_of_n_gold_most'] = float(np.mean([record.gold.max() for record in several]))
    figures['best_of_n_gold_mean'] = float(np.mean([record.gold.mean() for record in several]))
  return figures


def _ratings(records: Sequence[Scored]) -> dict[str, float]:
  kept = [record for record in records if record.ratings is not None]
  rewards, lengths, _ = flat_responses(kept)
  ratings = np.concatenate([np.empty(0), *(record.ratings for record in kept)])
  groups, subsets = (np.repeat([getattr(record, name) for record in kept], [len(record.rewards) for record in kept]) for name in ('group', 'subset'))
  rated = ~np.isnan(ratings)
  if not rated.any():
    return {}
  names = np.unique(subsets[rated])
  figures = {'num_rated': int(rated.sum())}
  for suffix, part in [('', rated), *((f'/{name or "none"}', rated & (subsets == name)) for name in names if len(names) > 1)]:
    for figure, statistic, values in (
      ('rating_pearson', length.pearson, rewards),
      ('rating_spearman', length.spearman, rewards),
      ('rating_length_spearman', length.spearman, lengths),
    ):
      figures[figure + suffix] = statistic(values[part], ratings[part])
      figures[f'{figure}_se{suffix}'] = accuracy.clustered_bootstrap(statistic, values[part], ratings[part], groups=groups[part])
  return figures


def _calibration(pairs: Pairs) -> dict[str, float]:
  if not len(pairs.logits):
    return {}
  return {
    'ece': calibration.expected_calibration_error(calibration.reliability(pairs.logits, pairs.wins)),
    'brier': float(calibration.brier(pairs.logits, pairs.wins).mean()),
    'nll': float(calibration.negative_log_likelihood(pairs.logits, pairs.wins).mean()),
  }


def _length(records: Sequence[Scored], pairs: Pairs) -> dict[str, float]:
  rewards, lengths, owners = flat_responses(records)
  right = accuracy.agreement(pairs.logits, pairs.wins)
  longer = length.longer_won(pairs.wins, pairs.lengths)
  return {
    'length_pearson': length.pearson(rewards, lengths),
    'length_spearman': length.spearman(rewards, lengths),
    'length_pearson_within': length.pearson(length.within(rewards, owners), length.within(lengths, owners)),
    'length_spearman_within': length.pearson(length.ranks_within(rewards, owners), length.ranks_within(lengths, owners)),
    **_with_error('accuracy_chosen_longer', np.where(longer == 1, right, np.nan), pairs.groups),
    **_with_error('accuracy_rejected_longer', np.where(longer == 0, right, np.nan), pairs.groups),
    'share_chosen_longer': accuracy.clustered_mean(longer, pairs.groups)[0],
    'share_longer_preferred': accuracy.clustered_mean(accuracy.agreement(pairs.logits, 0.5 + pairs.lengths @ [1, -1]), pairs.groups)[0],
  }


def _rewards(records: Sequence[Scored]) -> dict[str, float]:
  rewards, _, _ = flat_responses(records)
  if not len(rewards):
    return {}
  return {f'reward_{name}': float(getattr(rewards, name)()) for name in ('mean', 'std', 'min', 'max')}


def _against_length(pairs: Pairs, coefficients: Float[np.ndarray, '2']) -> dict[str, float]:
  baseline = accuracy.agreement(length.length_features(pairs.lengths) @ coefficients, pairs.wins)
  gain = accuracy.agreement(pairs.logits, pairs.wins) - baseline
  return {**_with_error('length_baseline_accuracy', baseline, pairs.groups), **_with_error('accuracy_above_length_baseline', gain, pairs.groups)}


def _with_error(name: str, values: np.ndarray, groups: np.ndarray) -> dict[str, float]:
  return dict(zip((name, f'{name}_se'), accuracy.clustered_mean(values, groups), strict=True))


def flat_responses(records: Sequence[Scored]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Rewards, lengths in tokens and record numbers of all responses that were scored."""
  kept = [record for record in records if not record.refused]
  join = lambda parts: np.concatenate([np.empty(0), *parts])
  return (
    join([record.rewards for record in kept]),
    join([record.lengths for record in kept]),
    join([np.full(len(record.rewards), record.index) for record in kept]),
  )
