"""Several rewards of one response made into one: means, what members disagree on subtracted, rules beside models.

Dimensions: E members, B any further ones, M calibration responses.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from rmjax.models import RewardModel
from rmjax.trees import Array, Trees


def ensemble(rewards: Float[Array, 'E *B'], *, uncertainty: float = 0.0, calibration: Float[Array, 'E M'] | None = None) -> Float[Array, '*B']:
  """Mean over members, less `uncertainty` times their standard deviation.

  Args:
    rewards: of each member; NaN where one of them has none makes a NaN.
    uncertainty: how much disagreement costs; 0 is the plain mean.
    calibration: rewards of each member on responses that all of them scored, by whose mean and standard deviation it is standardised first;
      None takes rewards as they are, and the member of the largest scale decides.

  Reference: BaseReward (2025), mean of two [reconstructed: standardised]; variance penalty as Coste et al., Reward Model Ensembles Help
  Mitigate Overoptimization (2023), eq. 5, with the standard deviation in place of the variance, so that it scales as the rewards do.
  """
  rewards = jnp.asarray(rewards, jnp.float32)
  if calibration is not None:
    rewards = standardized(rewards, calibration)
  return jnp.mean(rewards, 0) - uncertainty * jnp.std(rewards, 0)


def standardized(rewards: Float[Array, 'E *B'], calibration: Float[Array, 'E M']) -> Float[Array, 'E *B']:
  """Each member's rewards in standard deviations from its mean on the calibration responses; a member that says the same of all gives 0."""
  shape = (len(rewards), *(1,) * (rewards.ndim - 1))
  mean, std = (statistic(jnp.asarray(calibration, jnp.float32), -1).reshape(shape) for statistic in (jnp.mean, jnp.std))
  return jnp.where(std > 0, (rewards - mean) / jnp.where(std > 0, std, 1.0), 0.0)


def member_rewards(model: RewardModel, params: Any, batch: Trees) -> Float[Array, 'E R S N']:
  """Rewards of members of one architecture, side by side.

  Args:
    model: of all members.
    params: a stack of their parameters, each leaf with E first.
    batch: what they score.
  """
  return jax.vmap(lambda p: model.head.reward(model.apply({'params': p}, batch)))(params)


def hybrid(rule: Float[Array, '*B'], model: Float[Array, '*B'], verifiable: Bool[Array, '*B']) -> Float[Array, '*B']:
  """The rule's reward where an answer can be verified, the model's elsewhere.

  Reference: BaseReward (2025), the hybrid reward of its RL runs, where it was best.
  """
  return jnp.where(verifiable, rule, model)
