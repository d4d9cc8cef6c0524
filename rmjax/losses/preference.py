"""Losses on preferences. One value per example, in nats; nothing is reduced over the batch.

Dimensions: B any leading ones, N responses.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Float, Num

from rmjax.trees import Array


def bradley_terry(
  chosen: Float[Array, '*B'], rejected: Float[Array, '*B'], margin: float | Float[Array, '*B'] = 0.0, label: float | Float[Array, '*B'] = 1.0
) -> Float[Array, '*B']:
  """Cross-entropy of P(chosen preferred to rejected) = sigmoid(chosen - rejected - margin).

  Args:
    chosen: rewards of the preferred responses.
    rejected: rewards of the others.
    margin: reward gap asked of a pair, such as a graded preference strength.
    label: probability that `chosen` is truly preferred: 1 for a hard label, 0.5 for a tie, 1 - eps against label noise.

  Reference: Bradley & Terry (1952); margin as in Touvron et al., Llama 2 (2023), eq. 2.
  """
  chex.assert_equal_shape([chosen, rejected])
  gap = (chosen - rejected).astype(jnp.float32)
  return -label * jax.nn.log_sigmoid(gap - margin) - (1 - label) * jax.nn.log_sigmoid(-gap - margin)


def preference_cross_entropy(logits: Float[Array, '*B N N'], wins: Float[Array, '*B N N'], margin: float | Float[Array, '*B'] = 0.0) -> Float[Array, '*B']:
  """Cross-entropy of preference logits against a tournament.

  Args:
    logits: skew-symmetric; logits[i, j] is the logit of P(i preferred to j).
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0; 0.5 each for a tie.
    margin: gap in logits that the winner of a comparison owes; one for each tournament. A margin m inside the division by a temperature, as
      in General Preference Modeling's -log sigmoid((s - m) / temperature), is m / temperature here.

  Returns:
    The sum over compared pairs; `wins.sum((-2, -1))` is their number.

  Reference: Zhang et al., General Preference Modeling (2024), eq. A.1. Bradley-Terry when logits[i, j] = r[i] - r[j].
  """
  chex.assert_equal_shape([logits, wins])
  margin = jnp.broadcast_to(margin, logits.shape[:-2])[..., None, None]
  return -jnp.sum(wins * jax.nn.log_sigmoid(logits.astype(jnp.float32) - margin), axis=(-2, -1))


def preference_squared_error(logits: Float[Array, '*B N N'], wins: Float[Array, '*B N N'], target: float | None = None) -> Float[Array, '*B']:
  """1/2 (logit - target)^2: the regression variant of `preference_cross_entropy`.

  Args:
    logits: skew-symmetric; logits[i, j] is the logit of P(i preferred to j).
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0; 0.5 each for a tie.
    target: logit that the winner should reach, 10 in the released code, and 0 for a tie. None takes the logit of the label wins[i, j], as
      the paper has it; labels of 0 and 1 have none and count as 0.0001 and 0.9999 (9.2103, near the code's 10).

  Returns:
    The sum over compared pairs, each counted once; `wins.sum((-2, -1))` is their number.

  Reference: Zhang et al., General Preference Modeling (2024), the regression loss; constant target as in its code.
  """
  chex.assert_equal_shape([logits, wins])
  wins = wins.astype(jnp.float32)
  if target is None:
    log_label = jnp.log(jnp.clip(wins, 1e-4, 1 - 1e-4))
    wanted = log_label - jnp.swapaxes(log_label, -1, -2)
  else:
    wanted = target * jnp.sign(wins - jnp.swapaxes(wins, -1, -2))
  # A pair stands in both halves of a skew-symmetric matrix with the same square: the label splits its one count between them.
  return 0.5 * jnp.sum(wins * (logits.astype(jnp.float32) - wanted) ** 2, axis=(-2, -1))


def centering(rewards: Float[Array, '*B N'], wins: Float[Array, '*B N N']) -> Float[Array, '*B']:
  """(r[i] + r[j])^2 summed over the compared pairs: holds rewards near zero, which preferences alone leave free.

  Reference: Eisenstein et al., Helping or Herding? (2023), eq. 2; TRL's `center_rewards_coefficient` (0.01 is usual).
  """
  total = (rewards[..., :, None] + rewards[..., None, :]).astype(jnp.float32)
  return jnp.sum(wins * total**2, axis=(-2, -1))


def length_normalized(rewards: Float[Array, '*B N'], lengths: Num[Array, '*B N']) -> Float[Array, '*B N']:
  """What length normalization compares: reward / log(length), lengths below 2 counting as 2.

  Reference: BaseReward (2025), the second regularizer that it rejects [reconstructed].
  """
  return rewards.astype(jnp.float32) / jnp.log(jnp.maximum(lengths, 2).astype(jnp.float32))


def length_normalized_cross_entropy(rewards: Float[Array, '*B N'], wins: Float[Array, '*B N N'], lengths: Num[Array, '*B N']) -> Float[Array, '*B']:
  """`preference_cross_entropy` of rewards that are normalized by length first.

  Args:
    rewards: one a response.
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0.
    lengths: of responses, in tokens.

  Returns:
    The sum over compared pairs.
  """
  normalized = length_normalized(rewards, lengths)
  return preference_cross_entropy(normalized[..., :, None] - normalized[..., None, :], wins)
