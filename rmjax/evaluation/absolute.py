"""Absolute quality: whether a model that was trained on comparisons knows how good a response is, and how sure it is.

Dimensions: N responses, L levels of rating, Q levels of quality.
"""

from collections.abc import Sequence

import jax
from jaxtyping import Bool, Float, Int, Num
import numpy as np

from rmjax.evaluation import length
from rmjax.evaluation.scored import Scored
from rmjax.heads.quality import QualityScores
from rmjax.losses.ordinal import region_mass
from rmjax.ratings import variance


def absolute_quality(scored: Sequence[Scored]) -> dict[str, float]:
  """What heads say of single responses, against labels that the loss saw for some of them or for none.

  Args:
    scored: records with the label `quality` (levels from 0; -1 where unknown), by an ordinal head, a `ScalarAndQualityHead`, or a scalar head.

  Returns:
    absolute_spearman: of gold and the expected level, over all responses; of the reward, where there are no levels.
    quality_accuracy: whether the most probable level is the labelled one; an ordinal head's levels are its regions. Ordinal and quality
      heads alone.
    region_mass: mean probability in the labelled region; ordinal heads alone.
    variance_auroc: of the rating's variance as a test of whether the prompt is contested (label `contested`); ordinal heads alone.
  """
  kept = [record for record in scored if not record.refused and record.gold is not None]
  if not kept:
    return {}
  join = lambda parts: np.concatenate(list(parts))
  gold = join(record.gold for record in kept)
  quality = join(np.broadcast_to(record.labels.get('quality', -1), record.gold.shape) for record in kept)
  first = kept[0].scores
  if isinstance(first, QualityScores):
    logits = join(record.scores.quality_logits[: len(record.gold)] for record in kept)
    levels = np.exp(jax.nn.log_softmax(logits))
    expected = levels @ np.arange(levels.shape[-1])
    return {'absolute_spearman': length.spearman(expected, gold), **_accuracy(levels, quality)}
  if np.ndim(first) < 2:  # one number a response
    return {'absolute_spearman': length.spearman(join(record.rewards for record in kept), gold)}
  log_p = join(record.scores[: len(record.gold)] for record in kept)
  figures = {'absolute_spearman': length.spearman(np.exp(log_p) @ np.arange(1.0, log_p.shape[-1] + 1), gold)}
  regions = int(quality.max()) + 1
  if regions > 1:
    levels = np.exp(log_p).reshape(len(log_p), regions, -1).sum(-1)
    figures |= {'region_mass': float(np.nanmean(region_mass(log_p, quality, regions))), **_accuracy(levels, quality)}
  if 'contested' in kept[0].labels:
    contested = join(np.full(len(record.gold), bool(record.labels['contested'])) for record in kept)
    figures['variance_auroc'] = auroc(np.asarray(variance(log_p)), contested)
  return figures


def _accuracy(levels: Float[np.ndarray, 'N Q'], quality: Int[np.ndarray, 'N']) -> dict[str, float]:
  known = quality >= 0
  return {'quality_accuracy': float(np.mean(np.argmax(levels, -1)[known] == quality[known]))} if known.any() else {}


def auroc(values: Num[np.ndarray, 'N'], positive: Bool[np.ndarray, 'N']) -> float:
  """Probability that a positive has a larger value than a negative, ties half; NaN where there are no two kinds.

  Reference: Mann & Whitney (1947); Hanley & McNeil (1982).
  """
  count, others = int(positive.sum()), int((~positive).sum())
  if not count or not others:
    return float('nan')
  return float((length.ranks(values)[positive].sum() - count * (count + 1) / 2) / (count * others))
