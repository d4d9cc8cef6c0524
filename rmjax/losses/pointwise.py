"""Losses on single responses: ratings and yes/no labels. One value per response; nothing is reduced over the batch."""

import math

import chex
import jax.numpy as jnp
from jaxtyping import Float
import optax

from rmjax.errors import InputError
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


def binary_cross_entropy(
  rewards: Float[Array, '*B'], ratings: Float[Array, '*B'], positive_weight: float = 1.0, keep_rate: float = 1.0
) -> Float[Array, '*B']:
  """Cross-entropy of P(1) = sigmoid(reward) against sparse reactions, rated 0 or 1; 0, with no gradient, where the rating is NaN (unknown).

  Args:
    rewards: logits.
    ratings: in [0, 1].
    positive_weight: how much a 1 counts for beside a 0; another one than 1 moves all logits by about its logarithm, so that sigmoid(reward) is no
      longer the rate of ones.
    keep_rate: share of the zeros that was kept where the data was down-sampled: the loss is of the logits that the kept data has, so that
      sigmoid(reward) is the rate in all of it, see `logit_correction`.

  Reference: Reinforcement Learning from User Feedback (2025); weights and correction reconstructed.
  """
  loss = label_cross_entropy(rewards - logit_correction(keep_rate), ratings)
  return loss * jnp.where(ratings > 0, 1.0 + (positive_weight - 1.0) * ratings, 1.0)


def logit_correction(keep_rate: float) -> float:
  """What is added to a logit that was learned from data of whose zeros a share was kept: log(keep_rate).

  Down-sampling multiplies the odds of a 1 by 1 / keep_rate, whatever the input.

  Raises:
    InputError: it is no share above 0.

  Reference: King & Zeng, Logistic Regression in Rare Events Data (2001), prior correction.
  """
  if not 0 < keep_rate <= 1:
    raise InputError(f'keep_rate = {keep_rate}: the share of zeros that were kept is above 0 and at most 1')
  return math.log(keep_rate)
