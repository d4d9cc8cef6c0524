"""What is minimised at each token, and how tokens become one number: probability ratios, clipped surrogates, value loss, aggregation.

Surrogates give one value a token and reduce nothing; `aggregate` gives (sum, count), so that micro-batches and devices add up exactly. At a ratio of 1
the value of a surrogate is -A, whose mean may well be 0; its gradient is not.

Dimensions: R rows, T length, S slots, N responses.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, ScalarLike

from rmjax.errors import InputError
from rmjax.trees import Array, response_sums, to_tokens, Trees

LEVELS = ('token', 'sequence', 'sequence_sum')
MODES = ('token_mean', 'sequence_mean_token_mean', 'sequence_mean_token_sum', 'constant')
LARGEST = 20.0  # log-ratios are clipped to this before `exp`


def ratio(
  log_probs: Float[Array, 'R T'], old_log_probs: Float[Array, 'R T'], mask: Float[Array, 'R T'], batch: Trees, *, level: str = 'token'
) -> Float[Array, 'R T']:
  """Probability ratio of the policy and the one that sampled, at each token; 1 where the mask is 0.

  Args:
    log_probs: of the policy, differentiated.
    old_log_probs: of the one that sampled; no gradient passes.
    mask: which tokens count.
    batch: which token is of which response.
    level: 'token' its own; 'sequence' the response's, exp of the mean log-ratio, with the gradient of the token's log-prob (GSPO in its token form,
      whose gradient is GSPO's where a response has one advantage); 'sequence_sum' the response's, exp of the sum of log-ratios, with the gradient of
      the whole response at each token (its mean over the response is TRL's RLOO: aggregate by 'sequence_mean_token_mean').

  Reference: Schulman et al., PPO (2017), eq. 6; Zheng et al., GSPO (2025), eq. 7 and 14, recalled.

  Raises:
    InputError: another level.
  """
  if level not in LEVELS:
    raise InputError(f"ratio level '{level}': choose one of {', '.join(LEVELS)}")
  chex.assert_equal_shape([log_probs, old_log_probs, mask])
  inside = (mask > 0) & (batch.response_ids >= 0)
  log_ratio = jnp.where(inside, log_probs - jax.lax.stop_gradient(old_log_probs), 0.0)
  if level == 'sequence':
    counts = jnp.maximum(response_sums(inside.astype(jnp.float32), batch), 1)
    mean = jax.lax.stop_gradient(response_sums(log_ratio, batch) / counts)
    log_ratio = jnp.where(inside, to_tokens(mean, batch) + log_ratio - jax.lax.stop_gradient(log_ratio), 0.0)
  elif level == 'sequence_sum':
    log_ratio = jnp.where(inside, to_tokens(response_sums(log_ratio, batch), batch), 0.0)
  return jnp.exp(jnp.clip(log_ratio, -LARGEST, LARGEST))


def clipped(
  ratio: Float[Array, '*B'],
  advantages: Float[Array, '*B'],
  *,
  low: ScalarLike = 0.2,
  high: ScalarLike = 0.2,
  dual: ScalarLike | None = None,
  delta: ScalarLike | None = None,
) -> Float[Array, '*B']:
  """PPO's clipped surrogate, max(-A rho, -A clip(rho, 1 - low, 1 + high)).

  Args:
    ratio: rho.
    advantages: A; no gradient passes.
    low: how far below 1 a ratio may fall.
    high: how far above 1 it may rise; DAPO's "clip higher" has 0.28.
    dual: where A < 0 the loss is at most -dual * A, dual > 1; None for no such bound.
    delta: bound of the ratio in the unclipped branch; None for none.

  Reference: Schulman et al., PPO (2017), eq. 7; Ye et al., dual clip (2020), eq. 5; delta: Prime Intellect, INTELLECT-2 (2025); the last two recalled.

  Raises:
    InputError: dual is a number that is not above 1.
  """
  if isinstance(dual, (int, float)) and not dual > 1:
    raise InputError(f'dual clip {dual}: it must be above 1, or no ratio at all is left alone')
  advantages = jax.lax.stop_gradient(advantages)
  free = ratio if delta is None else jnp.minimum(ratio, delta)
  loss = jnp.maximum(-advantages * free, -advantages * jnp.clip(ratio, 1 - low, 1 + high))
  return loss if dual is None else jnp.where(advantages < 0, jnp.minimum(loss, -dual * advantages), loss)


def clip_shares(
  ratio: Float[Array, '*B'], advantages: Float[Array, '*B'], *, low: ScalarLike = 0.2, high: ScalarLike = 0.2
) -> tuple[Bool[Array, '*B'], Bool[Array, '*B']]:
  """Where `clipped` has no gradient because the ratio is too low (and A < 0), and because it is too high (and A > 0)."""
  return (ratio < 1 - low) & (advantages < 0), (ratio > 1 + high) & (advantages > 0)


def cispo(log_probs: Float[Array, '*B'], ratio: Float[Array, '*B'], advantages: Float[Array, '*B'], *, high: ScalarLike) -> Float[Array, '*B']:
  """CISPO: -sg(min(rho, high)) * A * log p. Every token keeps a gradient; `high` bounds the ratio itself.

  Reference: MiniMax, MiniMax-M1 (2025), eq. 4, recalled.
  """
  return -jax.lax.stop_gradient(jnp.minimum(ratio, high) * advantages) * log_probs


def sampler_weights(
  old_log_probs: Float[Array, '*B'], sampler_log_probs: Float[Array, '*B'], mask: Float[Array, '*B'], *, cap: ScalarLike
) -> Float[Array, '*B']:
  """min(p_old / p_sampler, cap), to multiply a surrogate by where the sampler's probabilities are not the trainer's; 1 where the mask is 0.

  Truncated sampling (top-k, top-p) renormalises, so that this is then the mass that was kept, below 1.

  Reference: Yao et al., truncated importance sampling (2025), recalled.
  """
  log_ratio = jnp.where(mask > 0, old_log_probs - sampler_log_probs, 0.0)
  return jax.lax.stop_gradient(jnp.minimum(jnp.exp(jnp.clip(log_ratio, -LARGEST, LARGEST)), cap))


def value_loss(values: Float[Array, '*B'], returns: Float[Array, '*B'], old_values: Float[Array, '*B'], *, clip: ScalarLike | None) -> Float[Array, '*B']:
  """0.5 * max((V - G)^2, (clip(V, V_old - clip, V_old + clip) - G)^2); no gradient passes to returns or old values.

  Args:
    values: V, differentiated.
    returns: G.
    old_values: V when the tokens were sampled, before any update on them.
    clip: how far V may move; None for the plain squared error.

  Reference: Schulman et al., High-Dimensional Continuous Control (2016); clipping as in OpenAI's baselines, recalled.
  """
  returns, old_values = jax.lax.stop_gradient((returns, old_values))
  error = (values - returns) ** 2
  if clip is not None:
    error = jnp.maximum(error, (jnp.clip(values, old_values - clip, old_values + clip) - returns) ** 2)
  return 0.5 * error


def squared_log_ratio(log_ratio: Float[Array, '*B'], target: Float[Array, '*B']) -> Float[Array, '*B']:
  """(log pi(y|x) / pi_t(y|x) - target)^2 of sequences; no gradient passes to the target.

  Args:
    log_ratio: summed over the tokens of each response.
    target: GPO: s(y > pi_t | x) / beta. SPPO: (P(y > pi_t | x) - 1/2) / beta.

  Reference: Zhang et al., GPM (2024), eq. 5.3; Wu et al., SPPO (2024), eq. 4.6.
  """
  return (log_ratio - jax.lax.stop_gradient(target)) ** 2


def aggregate(
  values: Float[Array, 'R T'], mask: Float[Array, 'R T'], batch: Trees, mode: str, *, length: ScalarLike | None = None
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """(sum, count) of token values; the loss is their quotient, and sums and counts of parts of a batch add up.

  A response without a valid token counts nowhere; an empty batch gives (0, 0).

  Args:
    values: of tokens; anything where the mask is 0.
    mask: which tokens count.
    batch: which token is of which response.
    mode: 'token_mean' (DAPO); 'sequence_mean_token_mean' (GRPO), which gives a token of a long response less weight; 'sequence_mean_token_sum';
      'constant' (Dr.GRPO), the sum over a response divided by `length`, the same for all.
    length: tokens that a response may have at most, for mode 'constant'.

  Reference: Liu et al., Dr.GRPO (2025); Yu et al., DAPO (2025); recalled.

  Raises:
    InputError: another mode, or no length where it is needed.
  """
  if mode not in MODES:
    raise InputError(f"aggregation '{mode}': choose one of {', '.join(MODES)}")
  if mode == 'constant' and length is None:
    raise InputError("aggregation 'constant' needs the length that it divides by")
  chex.assert_equal_shape([values, mask])
  inside = (mask > 0) & (batch.response_ids >= 0)
  weight = jnp.where(inside, mask, 0.0).astype(jnp.float32)
  values = jnp.where(inside, values, 0.0) * weight  # a product alone would keep a NaN
  if mode == 'token_mean':
    return jnp.sum(values), jnp.sum(weight)
  sums, counts = response_sums(values, batch), response_sums(weight, batch)
  responses = jnp.sum(counts > 0, dtype=jnp.float32)
  if mode == 'sequence_mean_token_mean':
    sums = sums / jnp.where(counts > 0, counts, 1.0)
  total = jnp.sum(sums)
  return (total / length if mode == 'constant' else total), responses
