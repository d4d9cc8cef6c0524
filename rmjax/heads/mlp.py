"""A reward head with hidden layers, shared by systems that sweep its depth or width.

Dimensions: B any leading ones, N responses, H hidden.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from rmjax.errors import InputError
from rmjax.heads.scalar import BradleyTerry
from rmjax.trees import Array

ACTIVATIONS = dict(silu=nn.silu, relu=nn.relu, tanh=nn.tanh, gelu=nn.gelu)


class MLPRewardHead(BradleyTerry):
  """Linear maps with biases and an activation between them, from a response's last hidden state to its reward, in float32.

  Attributes:
    layers: linear maps; 2 in both papers, 1 is linear.
    width: of the hidden layers; 0 takes H. YOJO has 1024; BaseReward's is not known [reconstructed: H].
    activation: 'silu', 'relu', 'tanh' or 'gelu'.
    init_std: initial standard deviation of all kernels (YOJO: 0.01); 0 takes (fan_in + 1)^-0.5, that of `ScalarHead`. Biases start at 0.
    scale: the reward is divided by sqrt(H) (YOJO).

  Raises:
    InputError: a size below what there can be, or no such activation.

  Reference: BaseReward (2025), where two layers and SiLU were best; YOJO (2026), code.
  """

  layers: int = 2
  width: int = 0
  activation: str = 'silu'
  init_std: float = 0.0
  scale: bool = False

  def __post_init__(self):
    if self.layers < 1:
      raise InputError(f'model.head.layers = {self.layers}: a head has 1 linear map or more')
    if self.width < 0:
      raise InputError(f'model.head.width = {self.width}: it must not be below 0 (0 takes that of the hidden states)')
    if self.activation not in ACTIVATIONS:
      raise InputError(f"model.head.activation = '{self.activation}': choose one of {', '.join(ACTIVATIONS)}")
    if not self.init_std >= 0:
      raise InputError(f'model.head.init_std = {self.init_std}: it must not be below 0 (0 takes (fan_in + 1)^-0.5)')
    super().__post_init__()

  @nn.compact
  def __call__(self, response_hidden: Float[Array, '*B N H'], prompt_hidden: Float[Array, '*B H']) -> Float[Array, '*B N']:
    del prompt_hidden
    hidden = response_hidden.shape[-1]
    x = response_hidden
    for layer in range(self.layers):
      last = layer == self.layers - 1
      features, axes = 1 if last else self.width or hidden, ('mlp' if layer else 'embed', None if last or layer else 'mlp')
      init = nn.with_logical_partitioning(nn.initializers.normal(self.init_std or (x.shape[-1] + 1) ** -0.5), axes)
      x = nn.Dense(features, kernel_init=init, dtype=jnp.float32, name='score' if last else f'hidden_{layer}')(x)
      x = x if last else ACTIVATIONS[self.activation](x)
    return x[..., 0] / hidden**0.5 if self.scale else x[..., 0]
