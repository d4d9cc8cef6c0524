"""Networks about length: FiMi's, which sees nothing but the length of a response, and ODIN's reward with a head for length.

Dimensions: B any leading ones, N responses, H hidden, E encoding.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from rmjax.trees import Array


def length_encoding(lengths: Int[Array, '*B'], size: int = 32) -> Float[Array, '*B E']:
  """(sin(n / 10000^(2j/E)), cos(n / 10000^(2j/E))) for j < E/2: a positional encoding with the length in place of the position.

  Args:
    lengths: n, tokens.
    size: E, even.

  Returns:
    All sines, then all cosines, in float32.

  Reference: FiMi-RM (2025), after Vaswani et al. (2017), section 3.5.
  """
  angles = lengths[..., None].astype(jnp.float32) * (10000.0 ** (-2 * np.arange(size // 2) / size)).astype(np.float32)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


class LengthBiasNet(nn.Module):
  """FiMi's fitting model: the reward that length alone explains, up to scale and offset.

  Residual blocks u + relu(MLP(LayerNorm(u))) on the length's encoding, then a linear map. The width inside a block is not published; 48 gives
  6,465 parameters, and the paper has about 6,400 [reconstructed].

  Attributes:
    size: E, of the encoding.
    hidden: width inside a block.
    blocks: number of blocks.

  Reference: FiMi-RM, Bias Fitting to Mitigate Length Bias (2025), section on the fitting model.
  """

  size: int = 32
  hidden: int = 48
  blocks: int = 2

  @nn.compact
  def __call__(self, lengths: Int[Array, '*B']) -> Float[Array, '*B']:
    u = length_encoding(lengths, self.size)
    for block in range(self.blocks):
      y = nn.relu(nn.Dense(self.hidden, name=f'up_{block}')(nn.LayerNorm(name=f'norm_{block}')(u)))
      u = u + nn.relu(nn.Dense(self.size, name=f'down_{block}')(y))
    return nn.Dense(1, name='out')(u)[..., 0]


class LinearLength(nn.Module):
  """The control of `LengthBiasNet`: reward explained as a straight line in the length.

  Attributes:
    scale: lengths are divided by it, so that the slope is of the size that optimisers expect. No correlation depends on it.
  """

  scale: float = 100.0

  @nn.compact
  def __call__(self, lengths: Int[Array, '*B']) -> Float[Array, '*B']:
    return nn.Dense(1, name='out')(lengths[..., None].astype(jnp.float32) / self.scale)[..., 0]


class OdinScores(NamedTuple):
  """Two rewards of each response, and how much the maps that give them overlap.

  Attributes:
    quality: the reward that is used.
    length: the one that takes up length, and is thrown away.
    overlap: |cosine| of the two heads' weights, the same for every prompt.
  """

  quality: Float[Array, '*B N']
  length: Float[Array, '*B N']
  overlap: Float[Array, '*B']


class OdinHead(nn.Module):
  """Two linear heads, of which their sum is trained on preferences and one is rid of length; see `rmjax.losses.length_bias`.

  Reference: Chen et al., ODIN: Disentangled Reward Mitigates Hacking in RLHF (2024), section 3.
  """

  @nn.compact
  def __call__(self, response_hidden: Float[Array, '*B N H'], prompt_hidden: Float[Array, '*B H']) -> OdinScores:
    width = response_hidden.shape[-1]
    init = nn.with_logical_partitioning(nn.initializers.normal((width + 1) ** -0.5), ('embed', None))
    kernel = self.param('kernel', init, (width, 2))
    scores = response_hidden.astype(jnp.float32) @ kernel
    cosine = jnp.abs(kernel[:, 0] @ kernel[:, 1]) / jnp.maximum(jnp.linalg.norm(kernel[:, 0]) * jnp.linalg.norm(kernel[:, 1]), 1e-12)
    return OdinScores(scores[..., 0], scores[..., 1], jnp.broadcast_to(cosine, prompt_hidden.shape[:-1]))

  @nn.nowrap
  def preference_logits(self, scores: OdinScores) -> Float[Array, '*B N N']:
    """Bradley-Terry on the quality alone."""
    return scores.quality[..., :, None] - scores.quality[..., None, :]

  @nn.nowrap
  def reward(self, scores: OdinScores) -> Float[Array, '*B N']:
    """The quality."""
    return scores.quality
