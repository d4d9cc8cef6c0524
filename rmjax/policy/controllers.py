"""Coefficients that are steered while training goes on."""

import jax.numpy as jnp
from jaxtyping import Float, ScalarLike

from rmjax.trees import Array


def adaptive_kl(coefficient: ScalarLike, kl: ScalarLike, *, target: ScalarLike, horizon: ScalarLike, rows: ScalarLike) -> Float[Array, '']:
  """The KL coefficient after a batch: coefficient * (1 + clip(kl / target - 1, -0.2, 0.2) * rows / horizon).

  Args:
    coefficient: before it.
    kl: measured, a mean over responses of the sum over tokens.
    target: what it should be.
    horizon: responses over which the coefficient answers.
    rows: responses in the batch.

  Reference: Ziegler et al., Fine-Tuning Language Models from Human Preferences (2019), section 2.2.
  """
  error = jnp.clip(jnp.asarray(kl, jnp.float32) / target - 1, -0.2, 0.2)
  return coefficient * (1 + error * rows / horizon)
