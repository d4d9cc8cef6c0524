"""Losses against length bias: FiMi's fit and decorrelation, and ODIN's two heads. A correlation is of a whole batch, so these give ONE value a batch.

Dimensions: R rows, S slots, N responses.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Num

from rmjax.losses.preference import preference_cross_entropy
from rmjax.trees import Array


def pearson(a: Num[Array, '*B'], b: Num[Array, '*B'], mask: Bool[Array, '*B']) -> Float[Array, '']:
  """Pearson correlation over the whole batch, wherever its rows lie, in float32.

  Args:
    a: one variable.
    b: the other.
    mask: which entries count.

  Returns:
    rho; 0, with a gradient of 0, where a variable is constant (to within float32) or fewer than three entries count.

  Reference: FiMi-RM (2025), definition of rho. Averages of the correlations of parts of a batch are another number.
  """
  chex.assert_equal_shape([a, b, mask])
  count = jnp.sum(mask, dtype=jnp.float32)
  a, b = (_centred(x.astype(jnp.float32), mask, count) for x in (a, b))
  (a, va), (b, vb) = a, b
  usable = (va > 0) & (vb > 0) & (count > 2)
  scale = jnp.where(usable, va * vb, 1.0)  # a root of 0 has no gradient
  return jnp.where(usable, jnp.sum(a * b) / jnp.sqrt(scale), 0.0)


def _centred(x: Float[Array, '*B'], mask: Bool[Array, '*B'], count: Float[Array, '']) -> tuple[Float[Array, '*B'], Float[Array, '']]:
  """Values less their mean, divided by the largest of them, and their sum of squares; 0 for both where they differ by rounding alone."""
  x = jnp.where(mask, x, 0.0)
  mean = jnp.sum(x) / jnp.maximum(count, 1)
  x = jnp.where(mask, x - mean, 0.0)
  largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
  varies = largest > 1e-6 * jnp.abs(jax.lax.stop_gradient(mean))
  x = jnp.where(varies, x / jnp.where(varies, largest, 1.0), 0.0)  # squares of tiny values would underflow; rho does not depend on scale
  return x, jnp.sum(x**2)


def bias_fit(
  rewards: Float[Array, 'R S N'], fit: Float[Array, 'R S N'], lengths: Int[Array, 'R S N'], mse_weight: float = 0.0
) -> Float[Array, '']:
  """-|rho(reward, fit)| + mse_weight * mean (reward - fit)^2: the fitting model finds what length explains. No gradient reaches the rewards.

  Args:
    rewards: of the reward model.
    fit: the fitting model's, a function of the lengths.
    lengths: tokens of each response; 0 where absent.
    mse_weight: 0 in the paper's second version, 1 in its first.

  Reference: FiMi-RM (2025), stage 2.
  """
  rewards, present = jax.lax.stop_gradient(rewards), lengths > 0
  error = jnp.where(present, (rewards - fit).astype(jnp.float32) ** 2, 0.0)
  return -jnp.abs(pearson(rewards, fit, present)) + mse_weight * jnp.sum(error) / jnp.maximum(jnp.sum(present), 1)


def bias_decorrelate(rewards: Float[Array, 'R S N'], fit: Float[Array, 'R S N'], lengths: Int[Array, 'R S N']) -> Float[Array, '']:
  """|rho(reward, fit)|: the reward model loses what length explains. No gradient reaches the fitting model.

  The absolute value matters: without it the optimum is a model that loves short answers.

  Reference: FiMi-RM (2025), stage 3.
  """
  return jnp.abs(pearson(rewards, jax.lax.stop_gradient(fit), lengths > 0))


def odin_cross_entropy(scores, wins: Float[Array, 'R S N N']) -> Float[Array, 'R S']:
  """`preference_cross_entropy` of the sum of ODIN's two rewards (`rmjax.heads.length.OdinScores`).

  Reference: Chen et al., ODIN (2024), eq. 3.
  """
  total = scores.quality + scores.length
  return preference_cross_entropy(total[..., :, None] - total[..., None, :], wins)


def odin_disentangle(scores, lengths: Int[Array, 'R S N'], orthogonality: float = 1.0) -> Float[Array, '']:
  """|rho(quality, length)| - rho(length head, length) + orthogonality * |cosine of the heads|.

  The weight of the last term and its normalisation are ours; the paper has |W_Q W_L^T| under weight normalisation.

  Reference: Chen et al., ODIN (2024), eq. 4 and 5.
  """
  tokens, present = lengths.astype(jnp.float32), lengths > 0
  correlations = jnp.abs(pearson(scores.quality, tokens, present)) - pearson(scores.length, tokens, present)
  return correlations + orthogonality * jnp.mean(scores.overlap)
