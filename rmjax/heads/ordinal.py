"""Ordinal heads: a response's score is a distribution over ratings 1..L.

Dimensions: B any leading ones, N responses, H hidden, V vocabulary, L levels.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from rmjax.errors import InputError
from rmjax.ratings import expectation, log_preference, variance
from rmjax.trees import Array

__all__ = ['expectation', 'log_preference', 'OrdinalHead', 'OrdinalTokenHead', 'variance']


class _Ordinal(nn.Module):
  """What both heads make of log-probabilities of ratings."""

  @nn.nowrap
  def preference_logits(self, scores: Float[Array, '*B N L']) -> Float[Array, '*B N N']:
    """Log P(s_i > s_j) - log P(s_j > s_i): the logit of the preference, given that the ratings are no tie.

    It need not be transitive, nor agree with the order of the mean ratings.
    """
    log_p = log_preference(scores)
    return log_p - jnp.swapaxes(log_p, -1, -2)

  @nn.nowrap
  def reward(self, scores: Float[Array, '*B N L']) -> Float[Array, '*B N']:
    """The mean rating, in [1, L]; its `variance` is in `rmjax.ratings`."""
    return expectation(scores)


class OrdinalHead(_Ordinal):
  """A linear map without bias from a response's last hidden state to log-probabilities of ratings, for models that have no digits to read.

  An absent response has a zero hidden state, and so all ratings are equally likely.

  Attributes:
    levels: L.
    init_scale: the initial standard deviation is init_scale / sqrt(H + 1).

  Raises:
    InputError: there are fewer than two levels.

  Reference: OPRM (2026) with a matrix of its own in place of the language model's [reconstructed].
  """

  levels: int = 9
  init_scale: float = 1.0

  def __post_init__(self):
    if self.levels < 2:
      raise InputError(f'model.head.levels = {self.levels}: a rating needs two levels or more')
    super().__post_init__()

  @nn.compact
  def __call__(self, response_hidden: Float[Array, '*B N H'], prompt_hidden: Float[Array, '*B H']) -> Float[Array, '*B N L']:
    del prompt_hidden
    init = nn.with_logical_partitioning(nn.initializers.normal(self.init_scale / (response_hidden.shape[-1] + 1) ** 0.5), ('embed', None))
    return jax.nn.log_softmax(nn.Dense(self.levels, use_bias=False, kernel_init=init, dtype=jnp.float32, name='rating')(response_hidden))


class OrdinalTokenHead(_Ordinal):
  """Reads the rating as the language model's next token; it has no parameters.

  Probabilities are renormalised over the rating tokens before anything else is made of them: of the whole vocabulary's, a model could lower
  all and gain.

  Attributes:
    token_ids: of the tokens that say 1..L, in order, as the tokenizer has them after the text that asks for a rating (`data.suffix`); see
      `Tokenizer.next_token_ids`. A config may give `tokens` instead, the texts.
    reads_logits: `RewardModel` hands it next-token logits in place of the responses' hidden states.

  Raises:
    InputError: there are fewer than two tokens, two are one, or one is no token of the model's.

  Reference: OPRM, Learning Ordinal Probabilistic Reward from Preferences (2026).
  """

  token_ids: Sequence[int] = ()
  reads_logits = True

  def __post_init__(self):
    check_token_ids(self.token_ids, len(self.token_ids) >= 2, 'two or more different tokens, from the lowest rating to the highest')
    super().__post_init__()

  @nn.compact
  def __call__(self, response_logits: Float[Array, '*B N V'], prompt_hidden: Float[Array, '*B H']) -> Float[Array, '*B N L']:
    del prompt_hidden
    return jax.nn.log_softmax(token_logits(response_logits, self.token_ids))


def check_token_ids(token_ids: Sequence[int], enough: bool, wanted: str) -> None:
  """Refuses the `token_ids` of a head: not `enough`, two that are one, or a negative one; `wanted` says what to give."""
  if not enough or len(set(token_ids)) < len(token_ids) or min(token_ids) < 0:
    raise InputError(f'model.head.token_ids = {tuple(token_ids)}: give {wanted}')


def token_logits(logits: Float[Array, '*B V'], token_ids: Sequence[int]) -> Float[Array, '*B L']:
  """Logits of these tokens, float32.

  Raises:
    InputError: one is no token of the model's.
  """
  if max(token_ids) >= logits.shape[-1]:  # a gather would clip it
    raise InputError(f'model.head.token_ids = {tuple(token_ids)}: the model has {logits.shape[-1]} tokens')
  return logits[..., jnp.array(token_ids)].astype(jnp.float32)
