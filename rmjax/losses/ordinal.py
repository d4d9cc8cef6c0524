"""Losses on distributions over ratings. One value per example, in nats; nothing is reduced over the batch.

Dimensions: B any leading ones, N responses, L levels, Q regions of them.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from rmjax.errors import InputError
from rmjax.ratings import log_exceeds
from rmjax.trees import Array

LANDSCAPES = ('none', 'region', 'flood', 'tent')
TINY = float(np.finfo(np.float32).tiny)  # stands for a weight of 0, whose log is not finite


def region_weights(levels: int, regions: int, landscape: str, half_width: float = 2.0) -> tuple[Float[np.ndarray, 'Q L'], Float[np.ndarray, 'Q L']]:
  """Weights of a rating, by the labelled quality of the response that it is given to.

  Quality q owns the q-th of `regions` equal runs of levels, lo..hi; with nine levels and three regions bad is {1, 2, 3}, normal {4, 5, 6}
  and good {7, 8, 9}.

  Args:
    levels: L.
    regions: Q.
    landscape: 'none', 1 everywhere; 'region', 1 inside the region and 0 outside; 'flood', inside (k - lo + 1) / width for the preferred and
      (hi - k + 1) / width for the other, so that the margin keeps growing within the regions; 'tent', max(0, 1 - |k - centre| / half_width).
    half_width: of the tent, in levels; 3 lets it reach into the neighbouring regions where a region is 3 wide.

  Returns:
    Weights of the preferred response's rating, and of the other's.

  Raises:
    InputError: the regions do not split the levels evenly, or there is no such landscape.

  Reference: OPRM (2026), Region Flooding Tuning. All presets are reconstructed [R]: the paper's formula was not to be read, only that a
  rectangle of the joint distribution becomes a "triangular landscape".
  """
  if regions < 1 or levels % regions:
    raise InputError(f'regions = {regions} do not split {levels} levels evenly: choose a divisor')
  if landscape not in LANDSCAPES:
    raise InputError(f"landscape = '{landscape}': choose one of {', '.join(LANDSCAPES)}")
  if not half_width > 0:
    raise InputError(f'half_width = {half_width}: it must be positive')
  width = levels // regions
  k, low = np.arange(1, levels + 1), 1 + width * np.arange(regions)[:, None]
  high = low + width - 1
  inside = (low <= k) & (k <= high)
  if landscape == 'none':
    one = two = np.ones((regions, levels))
  elif landscape == 'region':
    one = two = inside
  elif landscape == 'flood':
    one, two = inside * (k - low + 1) / width, inside * (high - k + 1) / width
  else:
    one = two = np.maximum(0, 1 - np.abs(k - (low + high) / 2) / half_width)
  return one.astype(np.float32), two.astype(np.float32)


def ordinal_preference(
  scores: Float[Array, '*B N L'],
  wins: Float[Array, '*B N N'],
  quality: Int[Array, '*B N'] | None = None,
  landscape: str = 'flood',
  regions: int = 3,
  floor: float = 1e-6,
  half_width: float = 2.0,
) -> Float[Array, '*B']:
  """-log P(preferred rated higher than the other), its mass weighted by where labelled quality says that the ratings belong.

  -log sum_{k > l} W(k, l) p_i(k) p_j(l) for i preferred to j, with W(k, l) = floor + (1 - floor) a_{q_i}(k) b_{q_j}(l) and a, b of
  `region_weights`. A tie in the ratings counts as a failure, so the pressure to separate lasts. Where i and j are unlabelled, W = 1: the
  plain loss -log P(s_i > s_j), whose gradient with respect to p_i(k) is P(s_j < k) / P.

  Args:
    scores: log-probabilities of each response's rating, of `OrdinalHead` or `OrdinalTokenHead`.
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0.
    quality: region that each response belongs to, 0 the lowest (bad, normal, good); -1 = unlabelled. None for a data set without labels.
      Filter pairs whose labels contradict the preference before training: no rating satisfies them, and only `floor` keeps them finite.
    landscape: 'region', 'flood' or 'tent'; 'none' for the plain loss.
    regions: Q, of equal width.
    floor: least weight of the allowed ratings k > l, without which a region far from all mass has no gradient.
    half_width: of the tent.

  Returns:
    The sum over compared pairs; `wins.sum((-2, -1))` is their number. It is large and finite where P is 0. A labelled pair starts higher than
    an unlabelled one (1/9 of the mass is in its regions): weigh examples where that matters.

  Raises:
    InputError: the regions do not split the levels evenly, there is no such landscape, or `floor` is not in [0, 1).

  Reference: OPRM, Learning Ordinal Probabilistic Reward from Preferences (2026): plain loss exact; weights and floor reconstructed [R].
  """
  chex.assert_equal_shape_prefix([scores, wins], scores.ndim - 1)
  if not 0 <= floor < 1:
    raise InputError(f'floor = {floor}: it must be in [0, 1)')
  weights = region_weights(scores.shape[-1], regions, landscape, half_width)
  log_p = log_exceeds(scores, scores)
  if quality is not None and landscape != 'none':
    known = (quality >= 0)[..., None]
    one, two = (jnp.where(known, jnp.log(jnp.maximum(w, TINY))[jnp.maximum(quality, 0)], 0.0) for w in weights)
    inside = log_exceeds(scores + one, scores + two)
    log_p = jnp.logaddexp(np.log1p(-floor) + inside, np.log(max(floor, TINY)) + log_p)
  return -jnp.sum(wins * log_p, axis=(-2, -1))


def quality_cross_entropy(scores: Any, quality: Int[Array, '*B N']) -> Float[Array, '*B N']:
  """Cross-entropy of the classes of quality: what quality labels alone teach a Bradley-Terry model, the control of `ordinal_preference`.

  Args:
    scores: `ScalarAndQualityHead`'s, or anything with `quality_logits` Float[*B N Q].
    quality: class of each response, 0 the lowest; -1 = unlabelled.

  Returns:
    One value a response; 0, with no gradient, where it is unlabelled.
  """
  log_p = jax.nn.log_softmax(scores.quality_logits.astype(jnp.float32))
  picked = jnp.take_along_axis(log_p, jnp.maximum(quality, 0)[..., None], -1)[..., 0]
  return jnp.where(quality >= 0, -picked, 0.0)


def region_mass(log_p: Float[Array, '*B N L'], quality: Int[Array, '*B N'], regions: int = 3) -> Float[Array, '*B N']:
  """Probability that a rating lies in the region of the response's labelled quality: a metric of absolute quality.

  Args:
    log_p: log-probabilities of each response's rating.
    quality: region that each response belongs to, 0 the lowest; -1 = unlabelled.
    regions: Q, of equal width.

  Returns:
    The probability; NaN where unlabelled.

  Raises:
    InputError: the regions do not split the levels evenly.
  """
  inside, _ = region_weights(log_p.shape[-1], regions, 'region')
  mass = jnp.sum(jnp.exp(log_p.astype(jnp.float32)) * jnp.asarray(inside)[jnp.maximum(quality, 0)], -1)
  return jnp.where(quality >= 0, mass, jnp.nan)
