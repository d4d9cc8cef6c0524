"""Losses that train a policy on preferences through its implicit reward. One value per example; nothing is reduced over the batch.

A config names them with a head `rmjax.heads.implicit:ImplicitRewardHead`. What users know by a name and is no function here:

  DPO          preference_cross_entropy of `rmjax.losses.preference`; soft labels, of whatever source, are `wins`
  sigmoid_norm the same, head.average (length-normalised DPO)
  SimPO        the same, head.average, head.reference 'none', `margin` its gamma
  CPO          the same, head.reference 'none', and `chosen_negative_log_likelihood`
  ORPO         `odds_ratio` and `chosen_negative_log_likelihood`, head.reference 'none'
  RPO          the same as DPO, and `chosen_negative_log_likelihood`
  LOGO         `simpo_multi` and 0.05 times `chosen_negative_log_likelihood`, head.reference 'none'
  K-wise DPO   plackett_luce of `rmjax.losses.listwise`
  Preferred-FT `chosen_negative_log_likelihood` alone
  SFT          `negative_log_likelihood`, per 'token'

Dimensions: B any leading ones, N responses.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from rmjax.errors import InputError
from rmjax.losses.preference import preference_cross_entropy
from rmjax.trees import Array


def conservative(logits: Float[Array, '*B N N'], wins: Float[Array, '*B N N'], smoothing: float = 0.1) -> Float[Array, '*B']:
  """Cross-entropy against labels of which a share is taken for wrong; its optimum is the finite logit log((1 - smoothing) / smoothing).

  Args:
    logits: skew-symmetric; logits[i, j] is the logit of P(i preferred to j).
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0.
    smoothing: share of labels that are flipped.

  Returns:
    The sum over compared pairs.

  Reference: cDPO, Mitchell (2023); `label_smoothing` of TRL's 'sigmoid'.
  """
  return preference_cross_entropy(logits, (1 - smoothing) * wins + smoothing * jnp.swapaxes(wins, -1, -2))


def robust(logits: Float[Array, '*B N N'], wins: Float[Array, '*B N N'], smoothing: float = 0.1) -> Float[Array, '*B']:
  """Cross-entropy whose mean over labels that are flipped with probability `smoothing` is that of the true ones.

  Args:
    logits: skew-symmetric; logits[i, j] is the logit of P(i preferred to j).
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0.
    smoothing: probability that a label is flipped, below 0.5.

  Returns:
    The sum over compared pairs; not bounded below.

  Raises:
    InputError: labels are flipped half of the time or more: they say nothing.

  Reference: Chowdhury et al., Provably Robust DPO (2024), eq. 8.
  """
  if not smoothing < 0.5:
    raise InputError(f'losses: robust with smoothing = {smoothing}: it must be below 0.5')
  right, flipped = preference_cross_entropy(logits, wins), preference_cross_entropy(logits, jnp.swapaxes(wins, -1, -2))
  return ((1 - smoothing) * right - smoothing * flipped) / (1 - 2 * smoothing)


def hinge(logits: Float[Array, '*B N N'], wins: Float[Array, '*B N N']) -> Float[Array, '*B']:
  """max(0, 1 - logit) of the winner over the loser, summed over compared pairs.

  Args:
    logits: skew-symmetric; logits[i, j] is the logit of P(i preferred to j).
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0.

  Reference: SLiC-HF, Zhao et al. (2023); with a log-ratio Liu et al., RSO (2023), eq. 10.
  """
  chex.assert_equal_shape([logits, wins])
  return jnp.sum(wins * jax.nn.relu(1 - logits.astype(jnp.float32)), axis=(-2, -1))


def ipo(logits: Float[Array, '*B N N'], wins: Float[Array, '*B N N'], beta: Float[Array, '*B']) -> Float[Array, '*B']:
  """(h - 1 / (2 beta))^2 with h the difference of log-ratios, summed over compared pairs: a target where cross-entropy has none.

  Args:
    logits: skew-symmetric, beta h.
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0.
    beta: the paper's tau.

  Reference: Azar et al., A General Theoretical Paradigm (2023), eq. 17. TRL takes averages over tokens in place of sums (`head.average`), as it says
  the authors do; the code of the DPO authors takes sums.
  """
  chex.assert_equal_shape([logits, wins])
  beta = beta[..., None, None]
  return jnp.sum(wins * ((logits.astype(jnp.float32) - 0.5) / beta) ** 2, axis=(-2, -1))


def weighted(logits: Float[Array, '*B N N'], wins: Float[Array, '*B N N'], confidence: Float[Array, '*B N']) -> Float[Array, '*B']:
  """Cross-entropy in which a pair counts as much as the policy would say both its responses; the weights are constants to the gradient.

  Args:
    logits: skew-symmetric; logits[i, j] is the logit of P(i preferred to j).
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0.
    confidence: log-weight of each response, the mean over its tokens of log p(token) - log sum_v p(v)^2.

  Returns:
    The sum over compared pairs.

  Reference: Zhou et al., WPO (2024), eq. 2, with their alignment to sampled text; `use_weighting` of TRL.
  """
  weights = jnp.exp(jax.lax.stop_gradient(confidence.astype(jnp.float32)))
  return preference_cross_entropy(logits, wins * weights[..., :, None] * weights[..., None, :])


def kto(
  rewards: Float[Array, '*B N'],
  ratings: Float[Array, '*B N'],
  mismatched: Int[Array, '*B N'],
  desirable: float = 1.0,
  undesirable: float = 1.0,
) -> Float[Array, '*B N']:
  """1 - sigmoid of how much better than the baseline a desirable response is, or than which an undesirable one is worse.

  The baseline is beta KL(policy || reference), at least 0 and constant to the gradient: the mean implicit reward, over the whole batch, of responses
  that belong to other prompts (`rmjax.data.unpaired` adds one to each record; they share its prompt in the packed tree). Under gradient
  accumulation it is that of the micro-batch.

  Args:
    rewards: the implicit ones.
    ratings: 1 where desirable, 0 where not, NaN where unknown.
    mismatched: 1 where the response is another prompt's; 0, or -1 where absent.
    desirable: weight of desirable responses. The authors want its product with their number at 1 to 4/3 times the others'.
    undesirable: weight of the others.

  Returns:
    One a response; 0 where the rating is unknown.

  Reference: Ethayarajh et al., KTO (2024), eq. 7 and section 4.1.
  """
  chex.assert_equal_shape([rewards, ratings, mismatched])
  rewards = rewards.astype(jnp.float32)
  others = mismatched == 1
  baseline = jax.lax.stop_gradient(jnp.maximum(jnp.sum(jnp.where(others, rewards, 0.0)) / jnp.maximum(jnp.sum(others), 1), 0.0))
  good, known = ratings > 0.5, ~jnp.isnan(ratings)
  gain = jnp.where(good, rewards - baseline, baseline - rewards)
  return jnp.where(known, jnp.where(good, desirable, undesirable) * jax.nn.sigmoid(-gain), 0.0)


def simpo_multi(
  log_probs: Float[Array, '*B N'], num_tokens: Int[Array, '*B N'], wins: Float[Array, '*B N N'], beta: float = 2.5, gamma: float = 0.5, average: bool = True
) -> Float[Array, '*B']:
  """-log sigmoid(beta (log p of the winner - the mean over those it beat of theirs) - gamma): SimPO against V negatives at once, without a reference.

  Args:
    log_probs: of each response, summed over its tokens.
    num_tokens: of each response: of what is generated, never of its context.
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0. Soft labels weigh the negatives, and the response by its largest.
    beta: scale of the difference.
    gamma: what the winner owes.
    average: log-probabilities are a token's share (SimPO) instead of sums.

  Returns:
    The sum over responses that beat another: one, where one judgment is right and V are wrong. V = 1 with gamma = 0 and sums is DPO with no reference.

  Reference: LongRM (2025), LOGO, section 4 [reconstructed: beta / V before the sum over negatives, whose typesetting is ambiguous]. Section 5.1 has gamma =
  2.5 and beta = 0.5, Table 5 the reverse, as is common for SimPO, and here. Meng et al., SimPO (2024), eq. 6.
  """
  chex.assert_equal_shape([log_probs, num_tokens])
  score = beta * (_per_token(log_probs, num_tokens) if average else log_probs.astype(jnp.float32))
  wins = wins.astype(jnp.float32)
  total = wins.sum(-1)
  beaten = jnp.sum(wins * score[..., None, :], -1) / jnp.where(total > 0, total, 1.0)
  return -jnp.sum(wins.max(-1) * jax.nn.log_sigmoid(score - beaten - gamma), -1)


def odds_ratio(log_probs: Float[Array, '*B N'], num_tokens: Int[Array, '*B N'], wins: Float[Array, '*B N N']) -> Float[Array, '*B']:
  """-log sigmoid of the log odds ratio of winner and loser, summed over compared pairs; a probability is a token's, the geometric mean.

  Args:
    log_probs: of each response, summed over its tokens.
    num_tokens: of each response.
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0.

  Returns:
    The sum over compared pairs; the loss of ORPO is this times lambda, plus `chosen_negative_log_likelihood` averaged over tokens.

  Reference: Hong et al., ORPO (2024), eqs. 4-7. TRL's likelihood term is over the prompt as well; the paper's is not.
  """
  mean = jnp.minimum(_per_token(log_probs, num_tokens), -1e-7)  # an absent response has probability 1, and odds without end
  log_odds = mean - jnp.where(mean < -jnp.log(2.0), jnp.log1p(-jnp.exp(mean)), jnp.log(-jnp.expm1(mean)))
  return preference_cross_entropy(log_odds[..., :, None] - log_odds[..., None, :], wins)


def chosen_negative_log_likelihood(
  log_probs: Float[Array, '*B N'], num_tokens: Int[Array, '*B N'], wins: Float[Array, '*B N N'], average: bool = True
) -> Float[Array, '*B']:
  """-log pi(winner), summed over compared pairs: keeps the chosen responses likely beside a loss that sees differences alone.

  Args:
    log_probs: of each response, summed over its tokens.
    num_tokens: of each response.
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0. Under a soft label both responses count by their shares.
    average: a token's share of it, instead of the sum over tokens.

  Reference: Pang et al., Iterative RPO (2024), eq. 1 (average); Preferred-FT of Rafailov et al. (2023).
  """
  chex.assert_equal_shape([log_probs, num_tokens])
  chosen = _per_token(log_probs, num_tokens) if average else log_probs.astype(jnp.float32)
  return -jnp.sum(wins * chosen[..., :, None], axis=(-2, -1))


def negative_log_likelihood(log_probs: Float[Array, '*B N']) -> Float[Array, '*B N']:
  """-log pi(response), summed over its tokens; its mean per 'token' is the loss of supervised fine-tuning, in nats a token.

  Args:
    log_probs: of each response, summed over its tokens.
  """
  return -log_probs.astype(jnp.float32)


def _per_token(log_probs: Float[Array, '*B N'], num_tokens: Int[Array, '*B N']) -> Float[Array, '*B N']:
  return log_probs.astype(jnp.float32) / jnp.maximum(num_tokens, 1)
