"""Which parts of the parameters move at a step: functions (step, **options) -> {part: whether}, named in a config by import path."""

import jax.numpy as jnp
from jaxtyping import Bool, Int

from rmjax.trees import Array


def warmup_fit_alternate(step: Int[Array, ''], *, warmup: int, fit: int, period: int) -> dict[str, Bool[Array, '']]:
  """FiMi's three stages: the reward model alone, the fitting model alone, then blocks of `period` steps in turn, fitting first [reconstructed].

  Args:
    step: updates made before this one.
    warmup: steps of the first stage.
    fit: steps of the second.
    period: length of a block in the third; 0 moves both at once.

  Reference: FiMi-RM (2025), stages 1 to 3.
  """
  later = step - warmup - fit
  fits = (later // max(period, 1)) % 2 == 0
  both = jnp.asarray(period == 0)
  return dict(
    reward=(step < warmup) | (later >= 0) & (both | ~fits),
    fit=(step >= warmup) & ((later < 0) | both | fits),
  )
