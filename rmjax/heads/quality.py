"""A scalar reward beside a classifier of quality: the control of heads that learn absolute quality from the same labels.

Dimensions: B any leading ones, N responses, H hidden, Q quality levels.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from rmjax.errors import InputError
from rmjax.trees import Array


class QualityScores(NamedTuple):
  """What the head says of each response.

  Attributes:
    reward: Bradley-Terry's latent quality.
    quality_logits: of the levels, the lowest first.
  """

  reward: Float[Array, '*B N']
  quality_logits: Float[Array, '*B N Q']


class ScalarAndQualityHead(nn.Module):
  """Two linear maps without bias of one hidden state: the reward, and the class of quality. They share nothing but the backbone.

  Attributes:
    levels: Q; with three, 0 is bad, 1 normal and 2 good.

  Raises:
    InputError: there are fewer than two levels.
  """

  levels: int = 3

  def __post_init__(self):
    if self.levels < 2:
      raise InputError(f'model.head.levels = {self.levels}: classes of quality are two or more')
    super().__post_init__()

  @nn.compact
  def __call__(self, response_hidden: Float[Array, '*B N H'], prompt_hidden: Float[Array, '*B H']) -> QualityScores:
    del prompt_hidden
    init = nn.with_logical_partitioning(nn.initializers.normal((response_hidden.shape[-1] + 1) ** -0.5), ('embed', None))
    dense = lambda features, name: nn.Dense(features, use_bias=False, kernel_init=init, dtype=jnp.float32, name=name)(response_hidden)
    return QualityScores(dense(1, 'score')[..., 0], dense(self.levels, 'quality'))

  @nn.nowrap
  def preference_logits(self, scores: QualityScores) -> Float[Array, '*B N N']:
    """Bradley-Terry on the reward alone."""
    return scores.reward[..., :, None] - scores.reward[..., None, :]

  @nn.nowrap
  def reward(self, scores: QualityScores) -> Float[Array, '*B N']:
    """The reward."""
    return scores.reward
