"""Losses of a reward model that writes critiques. One value per example, in nats; nothing is reduced over the batch.

The joint loss is L_critique + L_score, both with weight 1: `critique_negative_log_likelihood` per 'critique', `bradley_terry_with_ties` per 'comparison',
with the data's own critiques (teacher forcing), and 0.01 times `centering` of `rmjax.losses.preference`.

Dimensions: B any leading ones, N responses.
"""

import chex
import jax.numpy as jnp
from jaxtyping import Float, Int

from rmjax.losses.preference import preference_cross_entropy
from rmjax.trees import Array


def critique_negative_log_likelihood(critique_nll: Float[Array, '*B N'], critique_lengths: Int[Array, '*B N']) -> Float[Array, '*B N']:
  """-sum_t log pi(c_t | c_<t, x, y); 0 for a response without a critique, whatever stands there. Its mean is over the tokens of critiques.

  Args:
    critique_nll: -log-probability of each response's critique, summed over its tokens.
    critique_lengths: tokens of each critique; 0 for none, -1 where the response is absent.

  Reference: Zhang et al., MM-RLHF (2025), L_critique; that samples without a critique are masked is its code's. That the mean is over tokens, and
    not over responses, is as language models are usually trained [reconstructed].
  """
  chex.assert_equal_shape([critique_nll, critique_lengths])
  return jnp.where(critique_lengths > 0, critique_nll.astype(jnp.float32), 0.0)


def bradley_terry_with_ties(
  logits: Float[Array, '*B N N'], wins: Float[Array, '*B N N'], margin: float | Float[Array, '*B'] = 0.0, tie_weight: float = 1.0
) -> Float[Array, '*B']:
  """Cross-entropy of the pairs of which one is better, tie_weight (r[i] - r[j])^2 of those that tie.

  Args:
    logits: skew-symmetric; logits[i, j] is the logit of P(i preferred to j), r[i] - r[j].
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0; a tie is 0.5, and no other soft label is one.
    margin: gap in logits that the winner of a comparison owes.
    tie_weight: of ties.

  Returns:
    The sum over compared pairs; `wins.sum((-2, -1))` is their number.

  Reference: Zhang et al., MM-RLHF (2025), L_score; ties and margin are its code's.
  """
  chex.assert_equal_shape([logits, wins])
  tied = wins == 0.5
  squares = jnp.where(tied, 0.5 * logits.astype(jnp.float32) ** 2, 0.0)  # a pair stands in both halves of the matrix
  return preference_cross_entropy(logits, jnp.where(tied, 0.0, wins), margin) + tie_weight * jnp.sum(squares, (-2, -1))
