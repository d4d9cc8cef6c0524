"""Value head: the critic's, one value a token for each signal.

Dimensions: R rows, T length, H hidden, C signals.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from rmjax.trees import Array, gather, Trees


class ValueHead(nn.Module):
  """A linear map with a bias from every hidden state to C values, in float32.

  It starts at 0: the first advantages are the plain returns, not those minus noise.

  Attributes:
    num_signals: C; 1 for PPO, and 1 + N where N rewards have a value apart from the KL reward's.

  Reference: Moskovitz et al., Confronting Reward Model Overoptimization with Constrained RLHF (2023), code (`num_value_heads`).
  """

  num_signals: int = 1

  @nn.compact
  def __call__(self, hidden: Float[Array, 'R T H']) -> Float[Array, 'R T C']:
    init = nn.with_logical_partitioning(nn.initializers.zeros, ('embed', None))
    return nn.Dense(self.num_signals, kernel_init=init, dtype=jnp.float32, name='value')(hidden)


def values_before(values: Float[Array, 'R T C'], batch: Trees) -> Float[Array, 'R T C']:
  """Values of the state before each token: those at its parent, which for a response's first token is the prompt's last one.

  Args:
    values: at every hidden state.
    batch: the trees.

  Returns:
    0 where there is no parent (roots, padding).
  """
  return jnp.where(batch.parents[..., None] >= 0, gather(values, batch.parents), 0.0)
