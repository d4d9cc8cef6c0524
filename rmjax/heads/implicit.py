"""Implicit reward: a language model that is a policy scores a response by how much likelier it finds it than a reference does.

Dimensions: R rows, S slots, B any leading ones, N responses.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int

from rmjax.errors import InputError
from rmjax.trees import Array, Trees

REFERENCES = ('frozen', 'cached', 'none')


class ImplicitScores(NamedTuple):
  """What policy and reference say of N responses to one prompt, float32. Losses can ask for any of these by name.

  Attributes:
    log_probs: the policy's log-probability of each response, summed over its tokens; 0 where absent.
    ref_log_probs: the reference's; 0 without one.
    num_tokens: tokens of each response; 0 where absent.
    confidence: mean over a response's tokens of log p(token) - log sum_v p(v)^2; how near to its own samples the policy finds it (WPO).
    beta: strength of the KL penalty that the reward stands for.
  """

  log_probs: Float[Array, '*B N']
  ref_log_probs: Float[Array, '*B N']
  num_tokens: Int[Array, '*B N']
  confidence: Float[Array, '*B N']
  beta: Float[Array, '*B']


class ImplicitRewardHead(nn.Module):
  """beta (log pi(response) - log reference(response)); it has no parameters.

  The reward of which the policy is the optimum under a KL penalty of strength beta, up to a constant of each prompt that no preference sees. So a policy
  is trained by direct preference optimization as every reward model is, by the losses of `rmjax.losses.preference` and `rmjax.losses.implicit`.

  Attributes:
    beta: strength of the KL penalty.
    average: log-probabilities are divided by the response's number of tokens (length-normalised DPO, SimPO, ORPO) instead of summed (DPO).
    reference: 'frozen' is the policy as it was at the start, kept beside it (with adapters: the policy without them, kept nowhere); 'cached' reads the
      label `ref_log_probs`, of responses [R, S, N] or of their tokens [R, T]; 'none' is for losses without a reference (SFT, SimPO, ORPO, CPO).
    reads_log_probs: `RewardModel` hands it log-probabilities of responses in place of their hidden states.
    reads_labels: labels that scoring needs as well as training.

  Raises:
    InputError: beta is not positive, or there is no such reference.

  Reference: Rafailov et al., Direct Preference Optimization (2023), eq. 5; averages Meng et al., SimPO (2024), eq. 4.
  """

  beta: float = 0.1
  average: bool = False
  reference: str = 'frozen'
  reads_log_probs = True

  def __post_init__(self):
    if not self.beta > 0:
      raise InputError(f'model.head.beta = {self.beta}: it must be positive')
    if self.reference not in REFERENCES:
      raise InputError(f"model.head.reference = '{self.reference}': choose one of {', '.join(REFERENCES)}")
    super().__post_init__()

  @property
  def reads_labels(self) -> tuple[str, ...]:
    return ('ref_log_probs',) if self.reference == 'cached' else ()

  @nn.compact
  def __call__(
    self,
    log_probs: Float[Array, '*B N'],
    ref_log_probs: Float[Array, '*B N'],
    num_tokens: Int[Array, '*B N'],
    confidence: Float[Array, '*B N'],
  ) -> ImplicitScores:
    return ImplicitScores(log_probs, ref_log_probs, num_tokens, confidence, jnp.full(log_probs.shape[:-1], self.beta, jnp.float32))

  @nn.nowrap
  def preference_logits(self, scores: ImplicitScores) -> Float[Array, '*B N N']:
    """Bradley-Terry on the implicit reward: r[i] - r[j], in which what belongs to the prompt cancels."""
    reward = self.reward(scores)
    return reward[..., :, None] - reward[..., None, :]

  @nn.nowrap
  def reward(self, scores: ImplicitScores) -> Float[Array, '*B N']:
    """The log-ratio times beta, or a token's share of it if `average`."""
    log_ratio = scores.log_probs - scores.ref_log_probs
    return self.beta * (log_ratio / jnp.maximum(scores.num_tokens, 1) if self.average else log_ratio)

  @nn.nowrap
  def metrics(self, scores: ImplicitScores, batch: Trees) -> tuple[dict[str, Array], dict[str, Array]]:
    """(sums, counts) of TRL's figures of a comparison: `rewards/` and `logps/` of the chosen and the rejected, `rewards/accuracies`, `rewards/margins`.

    A tie in the rewards counts as wrong, as there (`accuracy` counts it half); ties in the labels are left out. `logps` are sums over tokens.
    """
    preferred = batch.labels['wins'] > 0.5
    rewards = self.reward(scores)
    over = lambda values, axis: jnp.sum(jnp.where(preferred, jnp.expand_dims(values, axis), 0.0))
    chosen, rejected = over(rewards, -1), over(rewards, -2)
    sums = {
      'rewards/chosen': chosen,
      'rewards/rejected': rejected,
      'rewards/accuracies': jnp.sum(jnp.where(preferred, self.preference_logits(scores) > 0, 0), dtype=jnp.float32),
      'rewards/margins': chosen - rejected,
      'logps/chosen': over(scores.log_probs, -1),
      'logps/rejected': over(scores.log_probs, -2),
    }
    return sums, dict.fromkeys(sums, jnp.sum(preferred, dtype=jnp.float32))
