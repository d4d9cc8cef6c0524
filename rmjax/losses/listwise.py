"""Losses on whole rankings. One value per example, in nats; nothing is reduced over the batch.

Dimensions: B any leading ones, N responses.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Float

from rmjax.trees import Array


def plackett_luce(rewards: Float[Array, '*B N'], wins: Float[Array, '*B N N']) -> Float[Array, '*B']:
  """-log P(ranking): the best is chosen among all with probability softmax(reward), the next among the rest, and so on.

  Args:
    rewards: one a response.
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0. Responses are ranked by their share of wins, which gives back the
      ranking that the wins were made of; equal shares tie, and each of the tied is chosen among all of them (Breslow's likelihood).

  Returns:
    The sum over responses that were compared; 0 where none were. Bradley-Terry for two.

  Reference: Plackett (1975); Luce (1959); ties as Breslow (1974).
  """
  chex.assert_equal_shape_prefix([rewards, wins], rewards.ndim)
  compared = (wins + jnp.swapaxes(wins, -1, -2)).sum(-1)
  present = compared > 0
  share = wins.sum(-1) / jnp.maximum(compared, 1)
  below = (share[..., None, :] <= share[..., :, None] + 1e-6) & present[..., None, :]  # [i, j]: j is still there when i is chosen
  left = jax.nn.logsumexp(rewards.astype(jnp.float32)[..., None, :], axis=-1, where=below | ~present[..., :, None])
  return jnp.sum(jnp.where(present, left - rewards, 0.0), -1)


def best_cross_entropy(rewards: Float[Array, '*B N'], wins: Float[Array, '*B N N']) -> Float[Array, '*B']:
  """Cross-entropy of softmax(reward) over a prompt's responses against the best of them.

  Args:
    rewards: one a response.
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0. The best has the largest share of wins; several of that share have the
      target's mass in equal parts.

  Returns:
    One value a prompt, over responses that were compared; 0 where none were. Bradley-Terry for two.

  Reference: YOJO (2026), code: `-log softmax(s)[best]`; ties [reconstructed], its code has one label.
  """
  chex.assert_equal_shape_prefix([rewards, wins], rewards.ndim)
  compared = (wins + jnp.swapaxes(wins, -1, -2)).sum(-1)
  present = compared > 0
  share = jnp.where(present, wins.sum(-1) / jnp.maximum(compared, 1), -1.0)
  best = present & (share >= share.max(-1, keepdims=True) - 1e-6)
  target = best / jnp.maximum(best.sum(-1, keepdims=True), 1)
  # A finite filler where absent: -inf less -inf would be a NaN in the gradient even if it is masked later.
  log_p = jax.nn.log_softmax(jnp.where(present, rewards.astype(jnp.float32), jnp.finfo(jnp.float32).min))
  return -jnp.sum(jnp.where(best, target * log_p, 0.0), -1)
