"""How far a policy is from a reference: estimates of the KL divergence from its own samples, as a loss or as a reward.

Dimensions: R rows, T length, S slots, N responses.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Float, ScalarLike

from rmjax.errors import InputError
from rmjax.trees import Array, to_tokens, Trees

KINDS = ('k1', 'k2', 'k3', 'k3_straight_through')
LARGEST = 20.0  # log-ratios are clipped to this before `exp`; nothing else is, for a clipped estimate has no gradient where it matters most


def estimate(log_probs: Float[Array, '*B'], ref_log_probs: Float[Array, '*B'], kind: str = 'k3') -> Float[Array, '*B']:
  """Estimate of KL(policy || reference) at each sampled token, from d = log p - log p_ref.

  In a reward any of them will do. In a loss, differentiated through `log_probs`, they differ: the gradient of k1 has expectation 0, that of k2
  is grad KL(policy || reference), that of k3 is grad KL(reference || policy).

  Args:
    log_probs: of the policy, which drew the tokens.
    ref_log_probs: of the reference.
    kind: 'k1' d; 'k2' d^2 / 2, of biased value; 'k3' exp(-d) - 1 + d, never below 0; 'k3_straight_through' the value of k3, the gradient of k2.

  Reference: Schulman, Approximating KL divergence (2020).

  Raises:
    InputError: another kind.
  """
  chex.assert_equal_shape([log_probs, ref_log_probs])
  if kind not in KINDS:
    raise InputError(f"kl kind '{kind}': choose one of {', '.join(KINDS)}")
  d = log_probs - ref_log_probs
  if kind == 'k1':
    return d
  k2 = d**2 / 2
  if kind == 'k2':
    return k2
  k3 = jnp.expm1(-jnp.clip(d, -LARGEST, LARGEST)) + d
  return k3 if kind == 'k3' else k2 + jax.lax.stop_gradient(k3 - k2)


def token_rewards(
  scores: Float[Array, 'R S N'],
  kl: Float[Array, 'R T'],
  mask: Float[Array, 'R T'],
  batch: Trees,
  *,
  coefficient: ScalarLike,
  finished: Array | None = None,
  missing_end: ScalarLike = 0.0,
  clip: ScalarLike | None = None,
) -> Float[Array, 'R T']:
  """Rewards of tokens with the KL in them: r_t = -coefficient * kl_t, and the response's score at its last valid token besides.

  Args:
    scores: of the responses.
    kl: estimates of the OLD policy (`estimate` of the log-probs that it sampled with); no gradient passes.
    mask: 1 on valid tokens, which were generated and are trained.
    batch: which token is of which response.
    coefficient: of the KL.
    finished: [R, S, N], false or 0 where a response was cut off before its end; None where all ended.
    missing_end: what such a response's score loses.
    clip: scores are clipped to [-clip, clip], before the penalty; None for no clipping.

  Returns:
    float32; 0 at tokens that are not valid.

  Reference: Ziegler et al., Fine-Tuning Language Models from Human Preferences (2019), eq. 2.
  """
  if clip is not None:
    scores = jnp.clip(scores, -clip, clip)
  if finished is not None:
    scores = scores - jnp.where(finished, 0.0, missing_end)
  return jax.lax.stop_gradient(terminal_rewards(scores, mask, batch) - coefficient * jnp.where(mask > 0, kl, 0.0))


def terminal_rewards(scores: Float[Array, 'R S N'], mask: Float[Array, 'R T'], batch: Trees) -> Float[Array, 'R T']:
  """Each response's score at its last valid token, 0 elsewhere; a response without a valid token has none.

  The last valid token need not be `response_ends`: a token of the environment may come after it.
  """
  slots, responses = batch.response_ends.shape[1:]
  count = slots * responses
  valid = (mask > 0) & (batch.response_ids >= 0)
  ids = jnp.where(valid, batch.response_ids, count)
  column = jnp.arange(mask.shape[1])
  last = jax.vmap(lambda i: jax.ops.segment_max(column, i, count + 1)[:-1])(ids).reshape(-1, slots, responses)
  return jnp.where(valid & (to_tokens(last, batch) == column), to_tokens(scores, batch), 0.0).astype(jnp.float32)
