"""How exploitable policies are that were optimized against a learned preference: self-play (GPO) against the best of a scalar reward.

`study` is the `runner` of configs/gpo.py. A reward model is trained on labels of the preferences world. Then, on held-out prompts with N responses
each, tabular policies over the responses are optimized by what it says, and judged by the annotator's true preference logits s*:

  exploitability(pi) = max_y sum_j pi(j) s*(y, j)

what the best fixed response gains, in logits, over a draw from pi; 0 for the equilibrium, and never below.

Dimensions: X prompts, N responses.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray
import ml_collections
import numpy as np

from experiments.reproduce import train_seeds
from rmjax.evaluation.scored import Scored
from rmjax.policy.advantages import group_relative
from rmjax.policy.surrogates import squared_log_ratio
from rmjax.trees import Array

DESCENTS, DESCENT_RATE = 8, 0.5  # of the regression, on the samples of one iteration; ends within 1 % of its minimum
SHARPNESS = tuple(2.0 ** np.arange(-6, 7))  # of policies softmax(reward * sharpness), the KL-regularised optima of a scalar reward


class Play(NamedTuple):
  """Policies of a run.

  Attributes:
    average: over the iterations, which is what self-play has a guarantee for.
    last: the last one, which may go round for ever.
  """

  average: Float[Array, 'X N']
  last: Float[Array, 'X N']


def exploitability(policy: Float[Array, 'X N'], scores: Float[Array, 'X N N']) -> Float[Array, 'X']:
  """What the best response gains over the policy; scores are skew-symmetric, scores[x, i, j] for i against j."""
  return jnp.max(jnp.einsum('xij,xj->xi', scores, policy), -1)


def multiplicative_weights(scores: Float[Array, 'X N N'], *, rate: float, iterations: int) -> Play:
  """pi_{t+1} of y proportional to pi_t(y) exp(rate * s(y > pi_t)), from the uniform policy: GPO with nothing sampled.

  Reference: Zhang et al., General Preference Modeling (2024), section 5; Freund & Schapire (1999).
  """

  def iterate(log_p, _):
    p = jnp.exp(log_p)
    return jax.nn.log_softmax(log_p + rate * jnp.einsum('xij,xj->xi', scores, p)), p

  return _play(iterate, jax.nn.log_softmax(jnp.zeros(scores.shape[:2])), jnp.arange(iterations))


def self_play(scores: Float[Array, 'X N N'], key: PRNGKeyArray, *, rate: float, iterations: int, samples: int) -> Play:
  """GPO as published: each iteration samples from pi_t, and regresses log pi / pi_t of the samples on rate * (their mean score over the samples).

  Args:
    scores: of the learned preference.
    key: of the samples.
    rate: 1 / beta.
    iterations: their number.
    samples: K responses a prompt, each compared with all, itself included.

  Reference: Zhang et al. (2024), eqs. 5.2 and 5.3, log Z = 0.
  """

  def iterate(logits, key):
    old = jax.nn.log_softmax(logits)
    drawn = jax.random.categorical(key, old[:, None], shape=(len(old), samples))
    row = jax.vmap(lambda values, chosen: values[chosen])
    targets = rate * jax.vmap(lambda s, chosen: s[chosen][:, chosen].mean(-1))(scores, drawn)
    loss = lambda logits: jnp.sum(squared_log_ratio(row(jax.nn.log_softmax(logits) - old, drawn), targets)) / samples
    descend = lambda _, logits: logits - DESCENT_RATE * jax.grad(loss)(logits)
    return jax.lax.fori_loop(0, DESCENTS, descend, logits), jnp.exp(old)

  return _play(iterate, jnp.zeros(scores.shape[:2]), jax.random.split(key, iterations))


def reinforce(rewards: Float[Array, 'X N'], key: PRNGKeyArray, *, rate: float, iterations: int, samples: int) -> Play:
  """REINFORCE on a scalar reward, each sample's baseline the mean of the others, from the uniform policy and without a KL penalty."""

  def iterate(logits, key):
    p = jax.nn.softmax(logits)
    drawn = jax.random.categorical(key, logits[:, None], shape=(len(logits), samples))
    gained = jax.vmap(lambda values, chosen: values[chosen])(rewards, drawn)
    advantages = group_relative(gained, jnp.ones(gained.shape, bool), baseline='leave_one_out', scale='none')
    pushes = jnp.mean(advantages[..., None] * (jax.nn.one_hot(drawn, p.shape[1]) - p[:, None]), 1)
    return logits + rate * pushes, p

  return _play(iterate, jnp.zeros(rewards.shape), jax.random.split(key, iterations))


def _play(iterate, start, over) -> Play:
  last, policies = jax.lax.scan(iterate, start, over)
  return Play(policies.mean(0), jax.nn.softmax(last))


def figures(learned: Float[Array, 'X N N'], rewards: Float[Array, 'X N'], gold: Float[Array, 'X N N'], key: PRNGKeyArray, **play) -> dict[str, Array]:
  """Mean exploitability over prompts of every policy.

  Args:
    learned: preference logits of the reward model.
    rewards: its scalar rewards.
    gold: logits of the annotator.
    key: of the samples.
    **play: of `self_play`.

  Returns:
    `gpo`, `gpo_last`: self-play on the learned preference, average and last policy; `mwu`, `mwu_last`: the same without sampling.
    `reinforce`, `reinforce_last`: on the scalar reward.
    `greedy`: the response of highest reward, its optimum. `regularized`: its optimum under a KL penalty, with that weight of SHARPNESS that is the
      best in gold: what no method could choose, and the fairest opponent.
    `uniform`: the start. `gold_mwu`: self-play on gold itself, what the iterations leave.
    `wins_<name>` of `gpo`, `reinforce` and `uniform`: the best response's win rate less one half, instead of logits.
  """
  exact = {name: value for name, value in play.items() if name != 'samples'}
  played, exactly = self_play(learned, key, **play), multiplicative_weights(learned, **exact)
  pushed = reinforce(rewards, jax.random.fold_in(key, 1), **play)
  uniform = jnp.full(rewards.shape, 1 / rewards.shape[1])
  policies = dict(
    gpo=played.average,
    gpo_last=played.last,
    mwu=exactly.average,
    mwu_last=exactly.last,
    reinforce=pushed.average,
    reinforce_last=pushed.last,
    greedy=jax.nn.one_hot(jnp.argmax(rewards, -1), rewards.shape[1]),
    uniform=uniform,
    gold_mwu=multiplicative_weights(gold, **exact).average,
  )
  found = {name: exploitability(policy, gold).mean() for name, policy in policies.items()}
  regularized = [exploitability(jax.nn.softmax(rewards * sharpness), gold).mean() for sharpness in SHARPNESS]
  found['regularized'] = jnp.min(jnp.stack([found['uniform'], *regularized]))
  wins = jax.nn.sigmoid(gold) - 0.5
  return found | {f'wins_{name}': exploitability(policies[name], wins).mean() for name in ('gpo', 'reinforce', 'uniform')}


def matrices(scored: Sequence[Scored]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Learned logits, rewards and the annotator's logits of all prompts; responses that say the same are equal to the annotator."""
  compared = np.stack([record.probability + record.probability.T > 0 for record in scored])
  p = np.where(compared, np.stack([record.probability for record in scored]), 0.5)
  gold = np.log(p) - np.log1p(-p)
  stack = lambda name: np.stack([getattr(record, name) for record in scored]).astype(np.float32)
  return stack('logits'), stack('rewards'), gold.astype(np.float32)


def study(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """Trains the config's reward model on each seed and plays on its held-out prompts, by the settings `play`; see `figures`."""
  run = jax.jit(functools.partial(figures, **config.play.to_dict()))
  found = []
  for seed, scored in zip(seeds, train_seeds(config, seeds), strict=True):
    values = run(*matrices(scored), jax.random.key(seed))
    found.append({name: float(value) for name, value in values.items()})
  return found
