"""A scalar reward that is read after a critique: what the language model says of a response comes first, the score is of response and critique.

Dimensions: R rows, T length, S slots, B any leading ones, N responses, H hidden, V vocabulary.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from rmjax.heads.scalar import ScalarHead
from rmjax.trees import Array, gather, response_sums, to_tokens, Trees


class CritiqueScores(NamedTuple):
  """What the head says of each response; float32. Losses can ask for any of these by name.

  Attributes:
    reward: Bradley-Terry's latent quality.
    critique_nll: -log-probability of the critique, summed over its tokens; 0 where there is none.
  """

  reward: Float[Array, '*B N']
  critique_nll: Float[Array, '*B N']


class CritiqueScorer(nn.Module):
  """Language model and reward on one backbone: critiques are text that follows responses, rewards are read where that ends.

  The language model is the backbone's own. A response without a critique is scored at its own last token. To score with critiques of the
  model's own, let `rmjax.rewards.critiques` write them first.

  Attributes:
    conditioned: the reward is read after the critique, so that it can depend on it; if not, at the response's own last token, and learning
      to write critiques is an auxiliary task alone (the control).
    init_scale: of the linear map, see `ScalarHead`.
    reads_labels: labels that scoring needs as well as training.

  Reference: Zhang et al., MM-RLHF (2025), section 3.
  """

  conditioned: bool = True
  init_scale: float = 1.0
  reads_labels = ('critique_lengths',)

  @nn.nowrap
  def of_logits(self, logits: Float[Array, '*B V'], tokens: Int[Array, '*B']) -> tuple[Float[Array, '*B']]:
    """Log-probabilities of tokens."""
    logits = logits.astype(jnp.float32)
    return (jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0] - jax.nn.logsumexp(logits, -1),)

  @nn.nowrap
  def columns(self, batch: Trees) -> Int[Array, 'R S N']:
    """Where rewards are read; -1 where a response is absent."""
    ends = jnp.asarray(batch.response_ends)
    return ends if self.conditioned else jnp.where(ends >= 0, ends - critique_lengths(batch), -1)  # a response's columns are consecutive

  @nn.compact
  def __call__(self, hidden: Float[Array, 'R S N H'], log_probs: Float[Array, 'R T'], batch: Trees) -> CritiqueScores:
    reward = ScalarHead(self.init_scale, name='scorer')(hidden, hidden[..., 0, :])
    return CritiqueScores(reward, -response_sums(jnp.where(critique_mask(batch), log_probs, 0.0), batch))

  @nn.nowrap
  def preference_logits(self, scores: CritiqueScores) -> Float[Array, '*B N N']:
    """Bradley-Terry: the logit of P(i preferred to j) is r[i] - r[j]."""
    return scores.reward[..., :, None] - scores.reward[..., None, :]

  @nn.nowrap
  def reward(self, scores: CritiqueScores) -> Float[Array, '*B N']:
    """The reward."""
    return scores.reward

  @nn.nowrap
  def metrics(self, scores: CritiqueScores, batch: Trees) -> tuple[dict[str, Array], dict[str, Array]]:
    """(sums, counts) of `critique_nll`, in nats a token."""
    return {'critique_nll': jnp.sum(scores.critique_nll)}, {'critique_nll': jnp.sum(critique_lengths(batch), dtype=jnp.float32)}


def critique_lengths(batch: Trees) -> Int[Array, 'R S N']:
  """How many of each response's last tokens are its critique: the label, and 0 where it or the response is absent."""
  if 'critique_lengths' not in batch.labels:
    return jnp.zeros(batch.response_ends.shape, jnp.int32)
  return jnp.maximum(jnp.asarray(batch.labels['critique_lengths']), 0)


def critique_mask(batch: Trees) -> Bool[Array, 'R T']:
  """Which tokens are of critiques. They are known by their places, never by what they say."""
  last = jnp.where(batch.response_ends >= 0, gather(jnp.asarray(batch.positions), batch.response_ends), 0)
  return (batch.response_ids >= 0) & (batch.positions > to_tokens(last - critique_lengths(batch), batch))
