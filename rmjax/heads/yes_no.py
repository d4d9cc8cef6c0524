"""A reward that is the language model's answer to a yes/no question: does this response satisfy this principle?

Dimensions: B any leading ones, N responses, H hidden, V vocabulary, P principles.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from rmjax.heads.ordinal import check_token_ids, token_logits
from rmjax.heads.scalar import BradleyTerry
from rmjax.trees import Array

LOWEST = -50.0  # of a log-probability, relative to the likeliest token's


class YesNoHead(BradleyTerry):
  """Reads log p(yes) - log p(no) as the language model's next token: `OrdinalTokenHead` with two tokens, and log-odds in place of a mean.

  It has no parameters. Unlike a Bradley-Terry reward the score is absolute: sigmoid(score) is the probability of a yes among the two, whatever the prompt.
  What is asked is text. In training it stands at the end of each response, or is `data.suffix` where it is always the same; a trained model
  takes any other by --suffix, which evaluation and scoring put after every response:

    python -m experiments.score --checkpoint=DIR --input=FILE --output=FILE --suffix=' Is the information accurate? Answer:'

  Of several principles, score each, and take `satisfies_all` of them or their sum.

  Attributes:
    token_ids: of the tokens that say yes and no, in this order, as the tokenizer has them after the question; see `Tokenizer.next_token_ids`. A
      config may give `tokens` instead, the texts, such as (' Yes', ' No'): with most tokenizers ' Yes' and 'Yes' are different tokens.
    reads_logits: `RewardModel` hands it next-token logits in place of the responses' hidden states.

  Raises:
    InputError: there are not two different tokens, or one is no token of the model's.

  Reference: RLBFF, Binary Flexible Feedback (2025): the scalar reward model; the clip is that of its released generative one.
  """

  token_ids: Sequence[int] = ()
  reads_logits = True

  def __post_init__(self):
    check_token_ids(self.token_ids, len(self.token_ids) == 2, 'two different tokens, the one that says yes and the one that says no')
    super().__post_init__()

  @nn.compact
  def __call__(self, response_logits: Float[Array, '*B N V'], prompt_hidden: Float[Array, '*B H']) -> Float[Array, '*B N']:
    del prompt_hidden
    return log_odds(response_logits, *self.token_ids)


def log_odds(logits: Float[Array, '*B V'], yes: int, no: int) -> Float[Array, '*B']:
  """Log p(yes) - log p(no) of the next token, each at least -50 below the likeliest token's; z_yes - z_no where neither is so unlikely.

  Args:
    logits: of all tokens; what is added to all of them changes nothing.
    yes: id of that token.
    no: id of that token.

  Returns:
    float32, within [-50, 50]. The gradient is that of z_yes - z_no everywhere: with that of the clip, a model to which both are unlikely would never
    learn to answer.

  Reference: RLBFF (2025), the reward of the released generative model; the gradient is ours.
  """
  both = token_logits(logits, (yes, no))
  odds = both[..., 0] - both[..., 1]
  clipped = jnp.maximum(both - jnp.max(logits, -1, keepdims=True).astype(jnp.float32), LOWEST)
  short = jnp.where((clipped > LOWEST).all(-1), 0.0, clipped[..., 0] - clipped[..., 1] - odds)
  return odds + jax.lax.stop_gradient(short)


def satisfies_all(rewards: Float[Array, 'P *B']) -> Float[Array, '*B']:
  """Reward by several principles at once: that of the one which is satisfied least [reconstructed]. Their sum lets one make up for another."""
  return jnp.min(rewards, 0)
