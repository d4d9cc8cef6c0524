"""Losses of a mixture of Bradley-Terry models and of its router. One value per example, in nats; nothing is reduced over the batch.

Dimensions: B any leading ones, N responses, K components.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Float

from rmjax.trees import Array


def mixture_bt(gaps: Float[Array, '*B K'], log_gate: Float[Array, '*B K']) -> Float[Array, '*B']:
  """-log sum_k f_k sigmoid(gap_k), in log space.

  Args:
    gaps: reward of the preferred response less that of the other, by each component.
    log_gate: logarithm of the components' weights.

  Reference: MiCRo (2025), eq. 3, without the entropy term: `negative_entropy`.
  """
  chex.assert_equal_shape([gaps, log_gate])
  return -jax.nn.logsumexp(log_gate.astype(jnp.float32) + jax.nn.log_sigmoid(gaps.astype(jnp.float32)), -1)


def mixture_preference(
  components: Float[Array, '*B N K'], log_gate: Float[Array, '*B K'], wins: Float[Array, '*B N N'], joint: bool = False
) -> Float[Array, '*B']:
  """`mixture_bt` over the comparisons of a tournament.

  Args:
    components: rewards by each component.
    log_gate: logarithm of the components' weights.
    wins: wins[i, j] + wins[j, i] = 1 where i and j were compared, else 0.
    joint: all comparisons of the prompt are one annotator's, and so of one component: -log sum_k f_k prod sigmoid(gap_k) [ours]. Otherwise each is
      of a component of its own, as in the paper, where it is `preference_cross_entropy` of the head's logits; a comparison is a sum, weighted
      by its label.

  Returns:
    The sum over compared pairs; of one comparison both are the same.

  Reference: MiCRo (2025), eq. 3.
  """
  r = jnp.swapaxes(components, -1, -2).astype(jnp.float32)
  log_p = jax.nn.log_sigmoid(r[..., :, None] - r[..., None, :])  # [..., K, N, N]
  if joint:
    return -jax.nn.logsumexp(log_gate + jnp.sum(wins[..., None, :, :] * log_p, (-2, -1)), -1)
  return -jnp.sum(wins * jax.nn.logsumexp(log_gate[..., None, None] + log_p, axis=-3), (-2, -1))


def negative_entropy(log_gate: Float[Array, '*B K']) -> Float[Array, '*B']:
  """Sum over k of f_k log f_k. A positive weight (0.5 in the paper) draws the gate to uniform, where it is -log K; with a negative one the gate collapses.

  Reference: MiCRo (2025), eq. 3.
  """
  log_gate = log_gate.astype(jnp.float32)
  return jnp.sum(jnp.exp(log_gate) * log_gate, -1)


def hedge_target(log_gate: Float[Array, '*B K'], losses: Float[Array, '*B K'], temperature: float) -> Float[Array, '*B K']:
  """Weights proportional to f_k exp(-loss_k / temperature): the minimum of sum_k w_k loss_k + temperature KL(w || f); log space, so that 1e-4 will do.

  Args:
    log_gate: logarithm of f.
    losses: of each component on the example.
    temperature: above 0; towards 0 all weight is on the best component, without end it stays f.

  Returns:
    The weights, constants to the gradient.

  Reference: MiCRo (2025), eq. 7 and Algorithm 1; Hedge, Freund & Schapire (1997).
  """
  chex.assert_equal_shape([log_gate, losses])
  return jax.lax.stop_gradient(jax.nn.softmax(log_gate.astype(jnp.float32) - losses.astype(jnp.float32) / temperature))


def router_cross_entropy(target: Float[Array, '*B K'], log_gate: Float[Array, '*B K']) -> Float[Array, '*B']:
  """-sum_k target_k log f_k.

  Reference: MiCRo (2025), Algorithm 1.
  """
  chex.assert_equal_shape([target, log_gate])
  return -jnp.sum(target * log_gate.astype(jnp.float32), -1)
