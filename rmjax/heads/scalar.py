"""Scalar reward head: one number a response, the Bradley-Terry model's latent quality.

Dimensions: B any leading ones, N responses, H hidden.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from rmjax.trees import Array


class BradleyTerry(nn.Module):
  """A head whose scores are the rewards themselves, whatever they are read from."""

  @nn.nowrap
  def preference_logits(self, scores: Float[Array, '*B N']) -> Float[Array, '*B N N']:
    """Bradley-Terry: the logit of P(i preferred to j) is r[i] - r[j]."""
    return scores[..., :, None] - scores[..., None, :]

  @nn.nowrap
  def reward(self, scores: Float[Array, '*B N']) -> Float[Array, '*B N']:
    """The score itself."""
    return scores


class ScalarHead(BradleyTerry):
  """A linear map without bias from a response's last hidden state to its reward, in float32.

  The layout of Hugging Face's `ForSequenceClassification` with one label, so a trained model is served anywhere.

  Attributes:
    init_scale: the initial standard deviation is init_scale / sqrt(H + 1) (Stiennon et al. 2020 use 1).
  """

  init_scale: float = 1.0

  @nn.compact
  def __call__(self, response_hidden: Float[Array, '*B N H'], prompt_hidden: Float[Array, '*B H']) -> Float[Array, '*B N']:
    del prompt_hidden
    std = self.init_scale / (response_hidden.shape[-1] + 1) ** 0.5
    init = nn.with_logical_partitioning(nn.initializers.normal(std), ('embed', None))
    return nn.Dense(1, use_bias=False, kernel_init=init, dtype=jnp.float32, name='score')(response_hidden)[..., 0]
