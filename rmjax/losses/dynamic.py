"""Direct preference optimization whose strength depends on how sure a reward is of a pair (MM-DPO), as its paper has it and as its code has it.

Both are losses for `rmjax.heads.implicit:ImplicitRewardHead`, whose `beta` is beta_ori, over all the pairs of a ranking. The SFT term of the code is
`rmjax.losses.implicit:chosen_negative_log_likelihood` with average=True and weight 0.25.

Dimensions: B any leading ones, N responses, M pairs.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Num, PRNGKeyArray, ScalarLike

from rmjax.errors import InputError
from rmjax.losses.preference import preference_cross_entropy
from rmjax.trees import Array


def dynamic_beta(delta: Num[Array, '*M'], beta0: ScalarLike = 0.1, w: ScalarLike = 0.5, k: ScalarLike = 0.5) -> Float[Array, '*M']:
  """beta0 (1 + w (1 - exp(-k delta))), clipped to [beta0, (1 + w) beta0]; no gradient passes it.

  Args:
    delta: reward of the preferred response less that of the other, of a frozen reward model. Below 0, where label and reward disagree, it is beta0.
    beta0: of a pair that the reward does not tell apart.
    w: the most that a large margin adds, as a share of beta0.
    k: how soon. A reward's scale is free in Bradley-Terry: k is in units of one over it.

  Reference: Zhang et al., MM-RLHF (2025), dynamic reward scaling; w = k = 0.5 there.
  """
  # Clipping the margin is the same as clipping beta, and does not overflow.
  return jax.lax.stop_gradient(beta0 * (1 + w * -jnp.expm1(-k * jnp.maximum(jnp.asarray(delta, jnp.float32), 0.0))))


def mm_dpo(
  logits: Float[Array, '*B N N'], wins: Float[Array, '*B N N'], ref_rewards: Float[Array, '*B N'], w: float = 0.5, k: float = 0.5, scale: float = 1.0
) -> Float[Array, '*B']:
  """-log sigmoid(beta(delta) h), with a beta of each pair: `dynamic_beta` of its margin in a frozen reward model.

  Args:
    logits: skew-symmetric, beta0 h[i, j], with h the difference of two log-ratios.
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0.
    ref_rewards: of the frozen reward model, a label of the data. One that was trained on the same pairs is too sure of them: cross-fit it.
    w: see `dynamic_beta`.
    k: likewise.
    scale: margins are divided by this, such as their standard deviation `margin_std`, so that k does not depend on the reward's scale [ours].

  Returns:
    The sum over compared pairs.

  Raises:
    InputError: scale is not positive.

  Reference: Zhang et al., MM-RLHF (2025), MM-DPO.
  """
  if not scale > 0:
    raise InputError(f'losses: mm_dpo with scale = {scale}: it must be positive')
  delta = (ref_rewards[..., :, None] - ref_rewards[..., None, :]) / scale
  return preference_cross_entropy(dynamic_beta(delta, 1.0, w, k) * logits.astype(jnp.float32), wins)


def margin_std(rewards: Float[Array, '*B N'], wins: Float[Array, '*B N N']) -> Float[Array, '']:
  """Standard deviation of the margins, winner less loser, of all decided pairs; a tie counts for nothing."""
  delta, preferred = rewards[..., :, None] - rewards[..., None, :], wins > 0.5
  return jnp.std(delta, where=preferred)


def mm_dpo_released(
  logits: Float[Array, '*B N N'],
  wins: Float[Array, '*B N N'],
  beta: Float[Array, '*B'],
  key: PRNGKeyArray | None = None,
  w: float = 0.1,
  keep: float = 0.8,
) -> Float[Array, '']:
  """-log sigmoid(beta' h) with one beta' for the whole batch, from the implicit margins: what the code of MM-RLHF runs in place of `mm_dpo`.

  One number a batch, the mean over compared pairs: its config says per='batch'.

  Args:
    logits: skew-symmetric, beta h[i, j].
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0.
    beta: the head's, one number everywhere.
    key: see `batch_beta`.
    w: likewise.
    keep: likewise.

  Reference: Kwai-YuanQi/MM-RLHF, dpo_trainer.py [recalled]; its loss line is ordinary DPO with label_smoothing = 1 in another meaning.
  """
  chex.assert_equal_shape([logits, wins])
  logits, count = logits.astype(jnp.float32), jnp.maximum(jnp.sum(wins), 1.0)
  at = jnp.reshape(beta, -1)[0]
  scale = batch_beta(jnp.ravel(logits / at), jnp.ravel(wins > 0.5), at, w, keep, key=key) / at
  return jnp.sum(preference_cross_entropy(scale * logits, wins)) / count


def batch_beta(
  margins: Float[Array, 'M'],
  present: Bool[Array, 'M'],
  beta0: ScalarLike = 0.1,
  w: ScalarLike = 0.1,
  keep: float = 0.8,
  minimum: float = 1e-3,
  *,
  key: PRNGKeyArray | None = None,
) -> Float[Array, '']:
  """beta0 (1 + w (mean of the margins that are kept - mean of all)), at least `minimum`; no gradient passes it.

  A share `keep` of the margins (rounded down, at least one) is kept: drawn without replacement, with weights exp(-z^2 / 2), z a margin in standard
  deviations from the mean, so that outliers are dropped.

  Args:
    margins: implicit ones h, winner less loser.
    present: which of them are there.
    beta0: beta_ori.
    w: weight of the difference.
    keep: share that is kept.
    minimum: least beta.
    key: of the draw; without one those of largest weight are kept [ours].

  Reference: Kwai-YuanQi/MM-RLHF, dpo_trainer.py [recalled]; the filter is that of Wu et al., beta-DPO (2024). It has a running mean; this is the batch's.
  """
  margins = jax.lax.stop_gradient(jnp.where(present, margins, 0.0))
  count = jnp.sum(present)
  mean = jnp.sum(margins) / jnp.maximum(count, 1)
  variance = jnp.sum(jnp.where(present, (margins - mean) ** 2, 0.0)) / jnp.maximum(count, 1)
  log_weight = -((margins - mean) ** 2) / (2 * jnp.maximum(variance, 1e-12))
  if key is not None:  # the largest of these are a draw without replacement (Gumbel top-k)
    log_weight += jax.random.gumbel(key, margins.shape)
  rank = jnp.argsort(jnp.argsort(jnp.where(present, -log_weight, jnp.inf)))
  kept = present & (rank < jnp.maximum(jnp.floor(keep * count), 1))
  change = jnp.sum(jnp.where(kept, margins, 0.0)) / jnp.maximum(jnp.sum(kept), 1) - mean
  return jnp.maximum(beta0 * (1 + w * change), minimum)
