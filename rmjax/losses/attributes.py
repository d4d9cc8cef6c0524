"""A loss for heads with one reward for each of several attributes that are known beforehand.

Dimensions: B any leading ones, K attributes.
"""

import jax.numpy as jnp
from jaxtyping import Float, Int

from rmjax.losses.pointwise import label_cross_entropy
from rmjax.trees import Array


def attribute_cross_entropy(components: Float[Array, '*B K'], attribute: Int[Array, '*B'], ratings: Float[Array, '*B']) -> Float[Array, '*B']:
  """Cross-entropy of sigmoid(the response's reward for the attribute that was rated) against its rating in [0, 1].

  The control to rewards that are told what to judge by text: attributes are numbers, and there is a head for each.

  Args:
    components: rewards by attribute.
    attribute: which of them was rated; 0, with no gradient, where it is negative (unknown).
    ratings: 0, with no gradient, where NaN (unknown).

  Reference: the control in the experiment on RLBFF (2025) [ours].
  """
  known = attribute >= 0
  chosen = jnp.take_along_axis(components, jnp.where(known, attribute, 0)[..., None], -1)[..., 0]
  return jnp.where(known, label_cross_entropy(chosen, ratings), 0.0)
