"""Endogenous reward (EndoRM): a language model's own logits, read as a soft Q function, are a reward model that nobody has trained.

The logits f of a state (the text so far) are soft action values at temperature alpha. Then V(s) = alpha logsumexp(f(s, .) / alpha), and the inverse
soft Bellman operator gives every token a reward:

  r(s, a) = f(s, a) - gamma V(s'), with V = 0 where the response has ended.

Undiscounted they add up to alpha log pi(response | prompt) + V(prompt), where pi = softmax(f / alpha): the second term is the same for all responses
to a prompt, so that a pair is ordered by its log-likelihood. Logits have no zero of their own: c(s) added to all of a state's changes a sum by
c(prompt) alone, and no difference of two. A sum favours short responses, a mean bland long ones: look at the accuracy by length.

Any language model is a reward model by `EndogenousHead`: `experiments.score` and `evaluate` take
`--checkpoint=HF_DIR --head=rmjax.rewards.endogenous:EndogenousHead,mode=sum`, and a config's `rewards` dict(checkpoint=HF_DIR, head=dict(name=...)).
A system message in the prompt is the criterion by which it judges.

Reference: Generalist Reward Models: Found Inside Large Language Models (2025), section 4 [recalled from a reading note: where it puts 1 / alpha].

Dimensions: R rows, T length, S slots, N responses, V vocabulary.
"""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, ScalarLike

from rmjax.backbones.decoder import Decoder
from rmjax.errors import InputError
from rmjax.heads.scalar import BradleyTerry
from rmjax.models import per_token
from rmjax.trees import Array, response_lengths, response_sums, Trees

MODES = ('sum', 'mean', 'discounted')


def chosen_and_value(logits: Float[Array, '*B V'], tokens: Int[Array, '*B'], alpha: ScalarLike = 1.0) -> tuple[Float[Array, '*B'], Float[Array, '*B']]:
  """f(s, a) of the tokens that were chosen, and V(s) = alpha logsumexp(f(s, .) / alpha); both float32.

  Args:
    logits: f(s, .), of the state that each token was chosen in.
    tokens: the a.
    alpha: temperature of the soft optimality.
  """
  logits = logits.astype(jnp.float32)  # what is left of two large numbers in bfloat16 is noise
  return jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0], alpha * jax.nn.logsumexp(logits / alpha, -1)


def token_endogenous_reward(chosen: Float[Array, 'R T'], values: Float[Array, 'R T'], batch: Trees, gamma: ScalarLike = 1.0) -> Float[Array, 'R T']:
  """Reward f(s, a) - gamma V(s') of each token of a response.

  Args:
    chosen: f(s, a), the logit of each token where it was chosen, at its parent.
    values: V(s) of that state. V(s') of a token is what its successor in the response has here: the logits AT a token predict the next one.
    batch: which token is of which response, and follows which.
    gamma: discount.

  Returns:
    float32; 0 for prompts and padding. A response's last token is worth f(s, a): nothing comes after it, whatever the network would say.

  Reference: EndoRM (2025), the inverse soft Bellman operator; gamma = 1 there.
  """
  chex.assert_equal_shape([chosen, values, batch.tokens])
  own = batch.response_ids >= 0
  length = batch.tokens.shape[1]

  def after(values, parents, ids):  # the value at each token's successor, which is not always the next column
    same = (ids >= 0) & (parents >= 0) & (ids[jnp.maximum(parents, 0)] == ids)
    return jnp.zeros(length + 1).at[jnp.where(same, parents, length)].set(values)[:length]

  following = jax.vmap(after)(values.astype(jnp.float32), batch.parents, batch.response_ids)
  return jnp.where(own, chosen.astype(jnp.float32) - gamma * following, 0.0)


def sequence_endogenous_reward(rewards: Float[Array, 'R T'], batch: Trees, *, mode: str = 'sum', discount: ScalarLike = 1.0) -> Float[Array, 'R S N']:
  """One number for each response, of its tokens' rewards; 0 where absent.

  Args:
    rewards: of tokens.
    batch: which token is of which response.
    mode: 'sum'; 'mean', a token's share of it; 'discounted', in which the k-th token (from 0) counts discount^k.
    discount: of 'discounted'.

  Raises:
    InputError: there is no such mode.
  """
  if mode not in MODES:
    raise InputError(f"endogenous reward: mode = '{mode}': choose one of {', '.join(MODES)}")
  if mode == 'discounted':
    rewards = rewards * jnp.asarray(discount, jnp.float32) ** _steps(batch)
  total = response_sums(rewards, batch)
  return total / jnp.maximum(response_lengths(batch), 1) if mode == 'mean' else total


def _steps(batch: Trees) -> Int[Array, 'R T']:
  """How many tokens of its response are before each token; garbage for tokens of none."""
  count = batch.response_ends.shape[1] * batch.response_ends.shape[2]
  ids = jnp.where(batch.response_ids >= 0, batch.response_ids, count)
  start = jax.vmap(lambda positions, ids: jax.ops.segment_min(positions, ids, count + 1)[ids])(batch.positions, ids)
  return batch.positions - start


def decoder_endogenous_reward(decoder: Decoder, params: Any, batch: Trees, *, alpha: ScalarLike = 1.0, gamma: ScalarLike = 1.0) -> Float[Array, 'R T']:
  """`token_endogenous_reward` by a language model, for a loop that rewards tokens. Its parameters must be frozen: not those of the policy that it rewards.

  Args:
    decoder: the language model.
    params: the decoder's.
    batch: prompts and responses.
    alpha: temperature of the soft optimality.
    gamma: discount.
  """
  read = nn.apply(functools.partial(_read, alpha=alpha), decoder)
  return token_endogenous_reward(*read({'params': params}, batch), batch, gamma)


def _read(decoder: Decoder, batch: Trees, alpha: ScalarLike) -> tuple[Float[Array, 'R T'], Float[Array, 'R T']]:
  return per_token(decoder, batch, functools.partial(chosen_and_value, alpha=alpha))


class EndogenousHead(BradleyTerry):
  """Scores responses by the endogenous reward of the backbone; it has no parameters, and nothing to train.

  Attributes:
    alpha: temperature of the soft optimality.
    gamma: discount of the Bellman operator.
    mode: 'sum', 'mean' or 'discounted' (by gamma), see `sequence_endogenous_reward`.

  Raises:
    InputError: alpha is not positive, gamma is not in [0, 1], or there is no such mode.
  """

  alpha: float = 1.0
  gamma: float = 1.0
  mode: str = 'sum'

  def __post_init__(self):
    if not self.alpha > 0:
      raise InputError(f'model.head.alpha = {self.alpha}: it must be positive')
    if not 0 <= self.gamma <= 1:
      raise InputError(f'model.head.gamma = {self.gamma}: it must be from 0 to 1')
    if self.mode not in MODES:
      raise InputError(f"model.head.mode = '{self.mode}': choose one of {', '.join(MODES)}")
    super().__post_init__()

  @nn.nowrap
  def of_logits(self, logits: Float[Array, '*B V'], tokens: Int[Array, '*B']) -> tuple[Float[Array, '*B'], Float[Array, '*B']]:
    """What `RewardModel` reads of each token's logits, a few columns at a time."""
    return chosen_and_value(logits, tokens, self.alpha)

  @nn.compact
  def __call__(self, chosen: Float[Array, 'R T'], values: Float[Array, 'R T'], batch: Trees) -> Float[Array, 'R S N']:
    return sequence_endogenous_reward(token_endogenous_reward(chosen, values, batch, self.gamma), batch, mode=self.mode, discount=self.gamma)
