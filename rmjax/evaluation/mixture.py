"""Mixtures of preferences: how far from the best prediction, and which component speaks for which group.

No figure depends on the order of the components. Dimensions: N responses, K components, G groups.
"""

from collections.abc import Sequence
import re

from jaxtyping import Float
import numpy as np
from scipy.optimize import linear_sum_assignment

from rmjax.evaluation.accuracy import agreement
from rmjax.evaluation.scored import compared_pairs, Scored
from rmjax.heads.mixture import MixtureScores


def mixture_figures(scored: Sequence[Scored]) -> dict[str, float]:
  """Figures of a model on records that several groups of annotators judge.

  Args:
    scored: records with the labels `probability`, of an annotator to come, and `gold_0`, `gold_1`, ... of each group; by any head for
      `excess_nll`, by a `MixtureHead` for the others.

  Returns:
    excess_nll: cross-entropy of the model against `probability` less the best possible, in nats a compared pair: a mean KL divergence.
    gate_entropy: mean over records, in nats; log K is uniform.
    best_head_accuracy: mean over groups of the accuracy, against the group's gold, of the component that is best for it HERE. That is an
      oracle's selection on the test, and not comparable with what a router reaches.
    matched_accuracy: the same where no component may be taken twice; K >= G alone.
  """
  kept = [record for record in scored if not record.refused]
  pairs = compared_pairs(kept)
  p = np.clip(pairs.probability, 1e-12, 1 - 1e-12)
  log_q, log_not_q = -np.logaddexp(0, -pairs.logits), -np.logaddexp(0, pairs.logits)
  figures = {'excess_nll': float(np.mean(p * (np.log(p) - log_q) + (1 - p) * (np.log1p(-p) - log_not_q)))}
  if not kept or not isinstance(kept[0].scores, MixtureScores):
    return {name: value for name, value in figures.items() if not np.isnan(value)}
  gate = np.stack([record.scores.log_gate for record in kept])
  figures['gate_entropy'] = float(-np.sum(np.exp(gate) * gate, -1).mean())
  found = head_accuracies([record.scores.components[: len(record.rewards)] for record in kept], group_golds(kept))
  if found.size:
    figures['best_head_accuracy'] = float(found.max(0).mean())
    if found.shape[0] >= found.shape[1]:
      figures['matched_accuracy'] = float(found[linear_sum_assignment(found, maximize=True)].mean())
  return {name: value for name, value in figures.items() if not np.isnan(value)}


def group_golds(records: Sequence[Scored]) -> list[Float[np.ndarray, 'G N']]:
  """Gold of each group, of each record; of the only group where there is one."""
  groups = sorted(name for name in records[0].labels if re.fullmatch(r'gold_\d+', name)) or ['gold']
  return [np.stack([record.labels[name] for name in groups]) for record in records]


def head_accuracies(components: Sequence[Float[np.ndarray, 'N K']], golds: Sequence[Float[np.ndarray, 'G N']]) -> Float[np.ndarray, 'K G']:
  """How often each component orders two responses as each group's gold does, over all pairs of all records."""
  gaps = lambda values: values[..., :, None] - values[..., None, :]
  right, count = 0.0, 0.0
  for rewards, gold in zip(components, golds, strict=True):
    agrees = agreement(*np.broadcast_arrays(gaps(rewards.T)[:, None], 0.5 + gaps(gold)[None]))  # [K, G, N, N]
    right, count = right + np.nansum(agrees, (-2, -1)), count + np.sum(~np.isnan(agrees), (-2, -1))
  return right / np.maximum(count, 1)
