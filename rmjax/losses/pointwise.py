"""Losses on single responses: ratings and yes/no labels. One value per response; nothing is reduced over the batch."""

import chex
import jax.numpy as jnp
from jaxtyping import Float
import optax

from rmjax.trees import Array


def rating_squared_error(rewards: Float[Array, '*B'], ratings: Float[Array, '*B']) -> Float[Array, '*B']:
  """(reward - rating)^2; 0, with no gradient, where the rating is NaN (unknown).

  Reference: regression reward models, Wang et al., HelpSteer2 (2024), section 4.
  """
  chex.assert_equal_shape([rewards, ratings])
  known = ~jnp.isnan(ratings)
  return jnp.where(known, (rewards.astype(jnp.float32) - jnp.where(known, ratings, 0.0)) ** 2, 0.0)


def label_cross_entropy(rewards: Float[Array, '*B'], labels: Float[Array, '*B']) -> Float[Array, '*B']:
  """Cross-entropy of P(good) = sigmoid(reward) against a label in [0, 1]; 0, with no gradient, where it is NaN (unknown).

  Reference: outcome verifiers, Cobbe et al. (2021); TRL's unpaired preference `label`.
  """
  chex.assert_equal_shape([rewards, labels])
  known = ~jnp.isnan(labels)
  return jnp.where(known, optax.sigmoid_binary_cross_entropy(rewards.astype(jnp.float32), jnp.where(known, labels, 0.0)), 0.0)
