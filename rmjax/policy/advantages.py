"""From rewards to advantages: arrays in, arrays out. No gradient passes through any of these.

Arrays of tokens lie as in `Trees`: the tokens of a response may be anywhere in a row, in order; `segments` are its `response_ids` and `mask` says
which tokens count (were generated and are trained). Tokens that do not count are skipped, as if they were not there.

Further estimators are compositions:
  ReMax: `group_relative(scores - greedy[..., None], valid, baseline='none', scale='none')`, with `greedy` the scores of greedy responses.
  REINFORCE++ with a baseline: `whiten(to_tokens(group_relative(scores, valid, scale='none'), batch), mask)`.
  GDPO and its kind: `group_relative` of each reward, then the weighted sum of them.
  Difficulty weights, multipliers: multiply what comes out.

Dimensions: R rows, T length, G responses of a group.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Num, ScalarLike

from rmjax.errors import InputError
from rmjax.trees import Array

BASELINES = ('mean', 'leave_one_out', 'length', 'none')
SCALES = ('group', 'batch', 'none')


def gae(
  rewards: Float[Array, 'R T'],
  values: Float[Array, 'R T'],
  mask: Float[Array, 'R T'],
  segments: Int[Array, 'R T'],
  *,
  discount: ScalarLike,
  decay: ScalarLike,
) -> tuple[Float[Array, 'R T'], Float[Array, 'R T']]:
  """Generalised advantage estimation: A_t = d_t + discount * decay * A_{t+1} with d_t = r_t + discount * V_{t+1} - V_t; 0 past the end.

  Args:
    rewards: of the tokens; those where the mask is 0 are not read.
    values: of the state BEFORE each token.
    mask: which tokens count; t + 1 is the next one that does.
    segments: the response of each token, -1 for none.
    discount: gamma.
    decay: lambda.

  Returns:
    Advantages, and returns A + V that the values are fitted to (taken before any whitening); both 0 where the mask is 0.

  Reference: Schulman et al., High-Dimensional Continuous Control Using GAE (2016), eq. 16.
  """
  chex.assert_equal_shape([rewards, values, mask, segments])
  order, valid, inside = _by_segment(mask, segments)
  take = lambda x: jnp.where(valid, jax.lax.stop_gradient(jnp.take_along_axis(x, order, -1)), 0.0)
  r, v = take(rewards), take(values)
  ahead = lambda x: jnp.where(inside, jnp.roll(x, -1, -1), 0.0)  # of the next column, if it is of the same response
  next_value = ahead(_backwards(jnp.where(valid, 0.0, 1.0) * inside, v))
  delta = jnp.where(valid, r + discount * next_value - v, 0.0)
  a = jnp.where(valid, _backwards(jnp.where(valid, discount * decay, 1.0) * inside, delta), 0.0)
  back = jnp.argsort(order, -1)
  return jnp.take_along_axis(a, back, -1), jnp.take_along_axis(a + v, back, -1)


def return_to_go(rewards: Float[Array, 'R T'], mask: Float[Array, 'R T'], segments: Int[Array, 'R T'], *, discount: ScalarLike = 1.0) -> Float[Array, 'R T']:
  """G_t = r_t + discount * G_{t+1} over the tokens of a response that count; 0 where the mask is 0. Arguments as of `gae`."""
  return gae(rewards, jnp.zeros_like(rewards), mask, segments, discount=discount, decay=1.0)[0]


def reinforce_plus_plus(rewards: Float[Array, 'R T'], mask: Float[Array, 'R T'], segments: Int[Array, 'R T']) -> Float[Array, 'R T']:
  """REINFORCE++: returns to go of rewards that hold score and KL (`kl.token_rewards`), whitened over all tokens that count.

  Reference: Hu et al., REINFORCE++ (2025), recalled.
  """
  return whiten(return_to_go(rewards, mask, segments), mask)


def _by_segment(mask: Float[Array, 'R T'], segments: Int[Array, 'R T']) -> tuple[Int[Array, 'R T'], Bool[Array, 'R T'], Bool[Array, 'R T']]:
  """(order of columns by which every response is in one piece; then, in that order: does it count, is the next column of the same response)."""
  order = jnp.argsort(segments, -1, stable=True)
  sorted_segments = jnp.take_along_axis(segments, order, -1)
  valid = (jnp.take_along_axis(mask, order, -1) > 0) & (sorted_segments >= 0)
  inside = jnp.concatenate([sorted_segments[:, 1:] == sorted_segments[:, :-1], jnp.zeros_like(valid[:, :1])], -1)
  return order, valid, inside


def _backwards(decays: Float[Array, 'R T'], gains: Float[Array, 'R T']) -> Float[Array, 'R T']:
  """x_t = gain_t + decay_t * x_{t+1}, x_{T+1} = 0, in log(T) steps."""

  def join(right, left):
    return right[0] * left[0], left[1] + left[0] * right[1]

  return jax.lax.associative_scan(join, (decays, gains), reverse=True, axis=1)[1]


def whiten(values: Float[Array, '*B'], mask: Float[Array, '*B'], *, shift: bool = True) -> Float[Array, '*B']:
  """(x - mean) / sqrt(var + 1e-8) over all that counts, the variance with Bessel's correction; 0 where the mask is 0.

  It is of the whole batch: whiten before a batch is cut up. One value that counts, or equal ones, give 0.

  Args:
    values: to whiten.
    mask: which count.
    shift: whether the mean becomes 0; if not, it stays what it was (rewards of PPO).
  """
  x, valid = jax.lax.stop_gradient(values.astype(jnp.float32)), mask > 0
  count = jnp.sum(valid, dtype=jnp.float32)
  mean = jnp.sum(jnp.where(valid, x, 0.0)) / jnp.maximum(count, 1)
  centred = jnp.where(valid & ~_equal(x, valid, tuple(range(x.ndim))), x - mean, 0.0)
  variance = jnp.sum(centred**2) / jnp.maximum(count - 1, 1)
  return jnp.where(valid, centred * jax.lax.rsqrt(variance + 1e-8) + (0.0 if shift else mean), 0.0)


def group_relative(
  scores: Float[Array, '*B G'],
  valid: Bool[Array, '*B G'],
  *,
  baseline: str = 'mean',
  scale: str = 'group',
  ddof: int = 1,
  eps: ScalarLike = 1e-4,
  lengths: Num[Array, '*B G'] | None = None,
) -> Float[Array, '*B G']:
  """Advantages of responses over the others to the same prompt.

  GRPO is (mean, group), Dr.GRPO (mean, none), RLOO (leave_one_out, none), OPO (length, none).

  Args:
    scores: rewards; NaN or anything else where not valid.
    valid: which responses are there and count.
    baseline: what is subtracted: the group's 'mean'; of a response, the mean of the others ('leave_one_out'), which is n / (n - 1) times as far;
      the mean weighted by 'length'; or 'none'.
    scale: what is divided by: the standard deviation of the 'group', or that of the scores of the whole 'batch', plus `eps`; or 'none'.
    ddof: 1 for Bessel's correction.
    eps: added to the standard deviation.
    lengths: tokens of each response, for baseline 'length'.

  Returns:
    float32; 0 where not valid. It is exactly 0, rounding or not, where all scores of a group are equal and there is a baseline, a group of one
    among them, and where the standard deviation to divide by is of equal scores.

  Reference: Shao et al., DeepSeekMath (2024), section 4.1.2; Liu et al., Dr.GRPO (2025); Ahmadian et al., RLOO (2024); Hao et al., OPO (2025); recalled.

  Raises:
    InputError: another baseline or scale, or no lengths where they are needed.
  """
  if baseline not in BASELINES:
    raise InputError(f"baseline '{baseline}': choose one of {', '.join(BASELINES)}")
  if scale not in SCALES:
    raise InputError(f"scale '{scale}': choose one of {', '.join(SCALES)}")
  if baseline == 'length' and lengths is None:
    raise InputError("baseline 'length' needs the lengths of the responses")
  chex.assert_equal_shape([scores, valid])
  x = jnp.where(valid, jax.lax.stop_gradient(scores.astype(jnp.float32)), 0.0)
  count = jnp.sum(valid, -1, keepdims=True, dtype=jnp.float32)
  mean = jnp.sum(x, -1, keepdims=True) / jnp.maximum(count, 1)
  centred = jnp.where(valid, x - mean, 0.0)
  if baseline == 'leave_one_out':
    a = centred * count / jnp.maximum(count - 1, 1)
  elif baseline == 'length':
    weight = jnp.where(valid, lengths.astype(jnp.float32), 0.0)
    a = x - jnp.sum(weight * x, -1, keepdims=True) / jnp.maximum(jnp.sum(weight, -1, keepdims=True), 1e-9)
  else:
    a = x if baseline == 'none' else centred
  flat = _equal(x, valid, (-1,))
  if baseline != 'none':
    a = jnp.where(flat, 0.0, a)
  if scale == 'group':
    std = jnp.sqrt(jnp.sum(centred**2, -1, keepdims=True) / jnp.maximum(count - ddof, 1))
    a = jnp.where(flat, 0.0, a / jnp.where(flat, 1.0, std + eps))
  elif scale == 'batch':
    total = jnp.sum(count)
    deviation = jnp.where(valid, x - jnp.sum(x) / jnp.maximum(total, 1), 0.0)
    std = jnp.sqrt(jnp.sum(deviation**2) / jnp.maximum(total - ddof, 1))
    flat = _equal(x, valid, tuple(range(x.ndim)))
    a = jnp.where(flat, 0.0, a / jnp.where(flat, 1.0, std + eps))
  return jnp.where(valid, a, 0.0)


def informative(scores: Float[Array, '*B G'], valid: Bool[Array, '*B G']) -> Bool[Array, '*B']:
  """Which groups have two different scores: the others have no advantages. DAPO drops them and samples others in their place.

  Reference: Yu et al., DAPO (2025), eq. 11, recalled.
  """
  return ~_equal(scores, valid, (-1,))[..., 0]


def _equal(x: Float[Array, '*B'], valid: Bool[Array, '*B'], axes: tuple[int, ...]) -> Bool[Array, '...']:
  """Whether no two valid entries along the axes, which are kept, differ."""
  largest = jnp.max(jnp.where(valid, x, -jnp.inf), axes, keepdims=True)
  return largest <= jnp.min(jnp.where(valid, x, jnp.inf), axes, keepdims=True)


def overlong_penalty(lengths: Num[Array, '*B'], *, max_length: ScalarLike, cache: ScalarLike) -> Float[Array, '*B']:
  """What a response's score loses by its length: 0 up to max_length - cache tokens, falling to -1 at max_length, and -1 from there on.

  Args:
    lengths: TOKENS of each response.
    max_length: from where the penalty is whole.
    cache: over how many tokens it grows; 0 for a step past max_length.

  Reference: Yu et al., DAPO (2025), eq. 13, recalled.
  """
  room = jnp.asarray(max_length, jnp.float32) - lengths
  return jnp.clip(jnp.where(jnp.asarray(cache) > 0, room / jnp.maximum(cache, 1e-9) - 1, jnp.sign(room)), -1.0, 0.0)
