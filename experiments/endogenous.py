"""What an untrained reward, read from a model of an expert, is worth: in pairs against trained rewards, and as something to optimize.

`study` is the `runner` of configs/endorm.py. A token problem of which all H-token responses can be listed: a gold reward r*(the last two tokens, the next
one), a standard normal number each; an expert, the soft-optimal policy of its sum; n responses of the expert. A table of the next token's
probability at each step after each last two tokens, counted from them, is the language model; its endogenous reward is what is tested.
Everything but the drawing of the n responses and of test pairs is exact.

Dimensions: Y responses that there are, H their length, P pairs.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import ml_collections
import numpy as np
from scipy import optimize

from rmjax.evaluation.accuracy import agreement
from rmjax.rewards import endogenous
from rmjax.worlds import sequences_exact as exact

VOCAB = 4
GROUP = 64  # responses of a row, where all are laid out as trees
PAIRS = 4096  # to test on


class Problem(NamedTuple):
  """One token problem.

  Attributes:
    space: all responses.
    gold: their returns.
    expert: log-probability of each under the expert.
    states: number of (step, last two tokens) before each token; what a table has a row for.
    prefix_states: the same of each prefix of the space.
  """

  space: exact.Space
  gold: Float[np.ndarray, 'Y']
  expert: Float[np.ndarray, 'Y']
  states: Int[np.ndarray, 'Y H']
  prefix_states: Int[np.ndarray, 'K']


def study(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """Figures of the setting that `config.study` describes, a dict for each seed: means over its `problems`.

  Returns:
    For each of `lengths`, as `<figure>_<H>`:
      accuracy_endogenous: share of pairs of the expert's responses that its sum orders as gold does; accuracy_uniform_endogenous: of pairs of
        uniform ones. The same of `bradley_terry`, fitted to n / 2 pairs of the expert's own responses that gold's Bradley-Terry annotator
        labelled; of `contrast`, to the n responses each preferred to a uniform one; of `random`.
      regret_sampling: gold return of the expert less that of the fitted policy; regret_rl: of the optimum of the endogenous reward with a penalty of
        beta on KL to the fitted policy; regret_sharpened: of the fitted policy at the temperature at which it has the entropy of that optimum;
        regret_again: of what the same makes of its own optimum. entropy_rl, entropy_sharpened: of responses, in nats.
      best: by how much the best response beats the expert, which is what a regret can fall to, below 0.
    slope_sampling, slope_rl, slope_sharpened: of a least-squares line of regret over H.
  """
  s = config.study
  found = []
  for seed in seeds:
    rows = []
    for number in range(s.problems):
      row = {}
      for length in s.lengths:
        rng = np.random.default_rng([seed, number, length])
        p = problem(np.random.default_rng([seed, number]), length, alpha=s.alpha)
        row |= {f'{name}_{length}': value for name, value in figures(p, rng, s).items()}
      for name in ('sampling', 'rl', 'sharpened'):
        row[f'slope_{name}'] = np.polyfit(s.lengths, [row[f'regret_{name}_{length}'] for length in s.lengths], 1)[0]
      rows.append(row)
    found.append({name: float(np.mean([row[name] for row in rows])) for name in rows[0]})
  return found


def problem(rng: np.random.Generator, length: int, *, alpha: float) -> Problem:
  """Draws the gold reward, the same for any length, and lists what follows from it."""
  space = exact.space(VOCAB, length)
  states = states_of(space.tokens)
  contexts = 1 + VOCAB + VOCAB**2
  reward = rng.normal(size=(contexts, VOCAB))
  gold = reward[states % contexts, space.tokens].sum(1)
  prefix_states = np.zeros(space.shape[0], int)
  prefix_states[space.prefixes] = states
  return Problem(space, gold, np.asarray(jax.nn.log_softmax(gold / alpha)), states, prefix_states)


def states_of(tokens: Int[np.ndarray, 'Y H']) -> Int[np.ndarray, 'Y H']:
  """Number of (step, the last two tokens) before each token; modulo 21 it is that of the last two tokens (one, or none) alone."""
  contexts = 1 + VOCAB + VOCAB**2
  before = np.zeros_like(tokens)
  before[:, 1:2] = 1 + tokens[:, :1]
  before[:, 2:] = 1 + VOCAB + VOCAB * tokens[:, :-2] + tokens[:, 1:-1]
  return before + contexts * np.arange(tokens.shape[1])


def figures(p: Problem, rng: np.random.Generator, s: ml_collections.ConfigDict) -> dict[str, float]:
  """Figures of one problem, see `study`."""
  shown = p.expert if not s.noise else noisy(p, s.noise)
  draw = lambda log_probs, size: rng.choice(len(p.gold), size=size, p=_normal(np.exp(log_probs)))
  uniform = lambda size: rng.integers(len(p.gold), size=size)
  expert = draw(shown, s.expert)
  logits = fit_table(p, expert, prior=s.prior)
  reward = endogenous_rewards(p, logits, alpha=s.alpha)
  halves = expert[: len(expert) // 2 * 2].reshape(-1, 2)
  first = rng.random(len(halves)) < 1 / (1 + np.exp(p.gold[halves[:, 1]] - p.gold[halves[:, 0]]))
  rewards = dict(
    endogenous=reward,
    bradley_terry=fit_bradley_terry(p, np.where(first[:, None], halves, halves[:, ::-1])),
    contrast=fit_bradley_terry(p, np.stack([expert, uniform(len(expert))], 1)),
    random=rng.normal(size=len(p.gold)),
  )
  out = {}
  for name, pairs in (('accuracy', draw(p.expert, (PAIRS, 2))), ('accuracy_uniform', uniform((PAIRS, 2)))):
    gap = lambda values, pairs=pairs: values[pairs[:, 0]] - values[pairs[:, 1]]
    out |= {f'{name}_{model}': float(np.nanmean(agreement(gap(values), 0.5 + gap(p.gold)))) for model, values in rewards.items()}
  return out | regrets(p, logits, reward, s)


def regrets(p: Problem, logits: Float[np.ndarray, 'states V'], reward: Float[np.ndarray, 'Y'], s: ml_collections.ConfigDict) -> dict[str, float]:
  """What policies earn less than the expert, and their entropies."""
  returned = lambda log_probs: float(np.sum(np.exp(log_probs) * p.gold))
  log_probs = table_log_probs(p, logits)
  rl = np.asarray(exact.optimal_log_probs(reward, log_probs, s.beta), np.float64)
  again = np.asarray(exact.optimal_log_probs(s.alpha * rl, rl, s.beta), np.float64)  # its own endogenous reward, up to a constant
  sharpened = at_entropy(lambda sharpness: table_log_probs(p, sharpness * logits), entropy(rl))
  policies = dict(sampling=log_probs, rl=rl, sharpened=sharpened, again=again)
  found = {f'regret_{name}': returned(p.expert) - returned(policy) for name, policy in policies.items()}
  return found | dict(best=float(p.gold.max()) - returned(p.expert), entropy_rl=entropy(rl), entropy_sharpened=entropy(sharpened))


def noisy(p: Problem, noise: float) -> Float[np.ndarray, 'Y']:
  """The expert of which every token is a uniform one with probability `noise`: what it is seen to do is no longer what it wants."""
  table = jax.nn.softmax(exact.to_logits(jnp.asarray(p.expert), p.space))
  return np.asarray(exact.log_probs(jnp.log((1 - noise) * table + noise / VOCAB), p.space))


def fit_table(p: Problem, responses: Int[np.ndarray, 'n'], *, prior: float) -> Float[np.ndarray, 'states V']:
  """Logits of the most likely table, with `prior` responses' worth of every token in every state: the logs of its counts."""
  counts = np.full((p.states.max() + 1, VOCAB), prior)
  np.add.at(counts, (p.states[responses], p.space.tokens[responses]), 1.0)
  return np.log(counts)


def table_log_probs(p: Problem, logits: Float[np.ndarray, 'states V']) -> Float[np.ndarray, 'Y']:
  """Log-probability of every response under a table."""
  return np.asarray(exact.log_probs(jnp.asarray(logits[p.prefix_states], jnp.float32), p.space), np.float64)


def endogenous_rewards(p: Problem, logits: Float[np.ndarray, 'states V'], *, alpha: float) -> Float[np.ndarray, 'Y']:
  """Endogenous reward of every response, by the library on packed trees; logits are alpha times the table's, so that pi is the table."""
  batch = exact.rollout(jnp.arange(len(p.gold)).reshape(-1, min(GROUP, len(p.gold))), p.space)
  chosen, values = endogenous.chosen_and_value(jnp.asarray(alpha * logits, jnp.float32)[p.states], p.space.tokens, alpha)
  lay_out = lambda x: jnp.pad(x.reshape(len(batch.tokens), -1), ((0, 0), (1, 0)))  # a prompt of one token comes first
  rewards = endogenous.token_endogenous_reward(lay_out(chosen), lay_out(values), batch)
  return np.asarray(endogenous.sequence_endogenous_reward(rewards, batch)).reshape(-1)


def fit_bradley_terry(p: Problem, pairs: Int[np.ndarray, 'P 2']) -> Float[np.ndarray, 'Y']:
  """Rewards of all responses by a Bradley-Terry model on pairs (preferred, other): a table of rewards of tokens, as the language model has one of logits.

  The most likely one under a standard normal prior, which is the one that gold's entries were drawn from.
  """
  cells = p.states * VOCAB + p.space.tokens
  count = (p.states.max() + 1) * VOCAB
  features = np.zeros((len(pairs), count))
  for column, sign in ((0, 1.0), (1, -1.0)):
    np.add.at(features, (np.arange(len(pairs))[:, None], cells[pairs[:, column]]), sign)

  def loss(theta):
    gap = features @ theta
    return np.logaddexp(0, -gap).sum() + theta @ theta / 2, theta - features.T @ (1 / (1 + np.exp(gap)))

  return optimize.minimize(loss, np.zeros(count), jac=True, method='L-BFGS-B').x[cells].sum(1)


def entropy(log_probs: Float[np.ndarray, 'Y']) -> float:
  """Entropy of a distribution over responses, in nats."""
  p = np.exp(log_probs)
  return float(-np.sum(np.where(p > 0, p * log_probs, 0.0)))


def at_entropy(policy: Callable[[float], Float[np.ndarray, 'Y']], wanted: float) -> Float[np.ndarray, 'Y']:
  """Of the policies of one family, ever sharper, that of an entropy: nothing but sharpened."""
  low, high = 0.0, 10.0  # logarithms of the sharpness
  for _ in range(40):
    middle = (low + high) / 2
    low, high = (middle, high) if entropy(policy(np.exp(middle))) > wanted else (low, middle)
  return policy(np.exp((low + high) / 2))


def _normal(p: np.ndarray) -> np.ndarray:
  p = p.astype(np.float64)
  return p / p.sum()
