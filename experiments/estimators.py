"""How far policy-gradient estimators are from the gradient that they estimate, where that is known exactly.

`study` is the `runner` of configs/grpo_ppo.py: a tabular policy on a space of which all responses can be listed. An estimator's expectation is found
twice: exactly, summing over all groups that can be sampled, and from samples that go through the same functions that training calls.

Dimensions: X prompts, Y responses that there are, G of a group, K prefixes, V vocabulary, B batches.
"""

from collections.abc import Callable, Sequence
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float
import ml_collections
import numpy as np

from rmjax import trees
from rmjax.errors import InputError
from rmjax.policy import advantages, surrogates
from rmjax.trees import Array
from rmjax.worlds import sequences_exact as exact


class Problem(NamedTuple):
  """A policy and what it is rewarded for.

  Attributes:
    space: all responses.
    logits: of a table for each prompt.
    rewards: gold.
    gradient: of the mean expected reward over the prompts, by the logits; exact.
  """

  space: exact.Space
  logits: Float[Array, 'X K V']
  rewards: Float[Array, 'X Y']
  gradient: Float[Array, 'X K V']


def study(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """Figures of the estimator that `config.study` describes, a dict for each seed; a seed decides policy, rewards and samples.

  Returns:
    `cosine` and `norm_ratio` of the mean estimate and the gradient; `angle`, the sine between them; `edge`, how much more weight nearly solved and
    nearly unsolved prompts get than those in between; all as sampled, and `exact_...` by enumeration, with `exact_error`, the distance relative
    to the gradient's length. Of the samples besides: `z`, how many standard errors the mean is off the gradient's direction (along what half of
    them say, measured on the other half; of unit variance and mean 0 where unbiased up to scale), `z_norm`, the same of its length, and `noise`,
    the standard deviation of the estimate from one group of each prompt, relative to the gradient's length.

  Raises:
    InputError: groups that cannot be dealt out, or an unknown option.
  """
  settings = config.study.to_dict()
  options, group = settings['estimator'], settings['samples']['group']
  groups, batches, multiply = settings['samples']['groups'], settings['samples']['batches'], options.pop('multiply')
  if batches < 4 or groups % batches:
    raise InputError(f'study.samples: groups = {groups} cannot be dealt out evenly to batches = {batches}, of which there are at least 4')
  problems = [problem(seed, **settings['problem']) for seed in seeds]
  draw = sampler(problems[0].space, **options, group=group, groups=groups // batches)
  figures = []
  for seed, p in zip(seeds, problems, strict=True):
    estimates = draw(p.logits, p.rewards, jax.random.split(jax.random.key(seed), batches))
    figures.append(sampled_figures(multiply * np.asarray(estimates, np.float64), p, groups=groups // batches))
    expectation = enumerated(p, **options, group=group)
    if expectation is not None:
      figures[-1] |= exact_figures(multiply * expectation, p)
  return figures


def problem(seed: int, *, vocab: int, length: int, end: int, prompts: int, levels: Sequence[float]) -> Problem:
  """Draws a policy and its rewards.

  Args:
    seed: of the draw.
    vocab: V.
    length: longest response.
    end: the token that ends one; -1 for none.
    prompts: X. The policy earns the highest reward with a probability that goes from nearly 0, for the first, to nearly 1, for the last (as near as
      those of its responses allow).
    levels: rewards that there are, the highest last; what does not earn it is shared by the others.
  """
  s = exact.space(vocab, length, end=end)
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(prompts, *s.shape)).astype(np.float32)
  p = np.exp(exact.log_probs(logits, s))
  solved = 1 / (1 + np.exp(-np.linspace(-3.5, 3.5, prompts)))
  rewards = np.zeros(p.shape, np.float32)
  for x in range(prompts):
    order = rng.permutation(p.shape[1])
    before = np.cumsum(p[x, order]) - p[x, order]
    place = before + p[x, order] / 2  # where the middle of a response is, if all are laid end to end
    lower = np.floor((place - solved[x]) / (1 - solved[x]) * (len(levels) - 1)).astype(int)
    rewards[x, order] = np.where(place < solved[x], levels[-1], np.asarray(levels)[np.clip(lower, 0, len(levels) - 2)])
    rewards[x, order[0]], rewards[x, order[-1]] = levels[-1], levels[0]  # never the same for all
  gradient = jax.grad(lambda logits: jnp.mean(exact.expected(rewards, logits, s)))(jnp.asarray(logits))
  return Problem(s, jnp.asarray(logits), jnp.asarray(rewards), gradient)


def sampler(
  s: exact.Space, *, baseline: str, scale: str, aggregation: str, group: int, groups: int
) -> Callable[[Array, Array, Array], Float[Array, 'B X K V']]:
  """Builds what samples estimates: (logits, rewards, keys [B]) -> of each batch, minus the gradient of the loss that training would take.

  Args:
    s: all responses.
    baseline: as of `group_relative`.
    scale: as of `group_relative`; that of a batch is of one of the B.
    aggregation: as of `aggregate`.
    group: G.
    groups: of each prompt in a batch.
  """

  def draw(logits, rewards, keys):
    rows = jnp.tile(jnp.arange(len(logits)), groups)
    log_p = exact.log_probs(logits, s)[rows]

    def one(key):
      chosen = jax.random.categorical(key, log_p[:, None, :], shape=(len(rows), group))
      scores = jnp.take_along_axis(rewards[rows], chosen, -1)
      loss = lambda x: rollout_loss(x[rows], chosen, scores, s, baseline=baseline, scale=scale, aggregation=aggregation)
      return -jax.grad(loss)(logits)

    return jax.lax.map(one, keys)

  return jax.jit(draw)


def rollout_loss(
  logits: Float[Array, 'R K V'], chosen: Array, scores: Float[Array, 'R G'], s: exact.Space, *, baseline: str, scale: str, aggregation: str
) -> Float[Array, '']:
  """The loss of groups of responses (by number, int[R, G]), by the functions that training calls."""
  batch = exact.rollout(chosen, s)
  mask, log_probs = batch.labels['mask'], exact.rollout_log_probs(logits, chosen, s)
  lengths = trees.response_lengths(batch)
  relative = advantages.group_relative(scores[:, None], jnp.ones(lengths.shape, bool), baseline=baseline, scale=scale, eps=0.0, lengths=lengths)
  ratio = surrogates.ratio(log_probs, log_probs, mask, batch)
  losses = surrogates.clipped(ratio, trees.to_tokens(relative, batch))
  total, count = surrogates.aggregate(losses, mask, batch, aggregation, length=s.tokens.shape[1])
  return total / count


def enumerated(p: Problem, *, baseline: str, scale: str, aggregation: str, group: int) -> Float[np.ndarray, 'X K V'] | None:
  """Expectation of minus the loss's gradient, over all groups; None where it is no mean over responses of something of their group.

  The members of a group are alike, so it is that of the first: sum over y of p(y) E[A | y first] w(y) grad log p(y), with w what aggregation
  makes of a token. An advantage depends on the rewards alone, so E[A | y first] sums over the rewards that the others may have.
  """
  equal = bool(p.space.mask.all())
  if scale == 'batch' or baseline == 'length' or (aggregation == 'token_mean' and not equal):
    return None
  levels, number = np.unique(p.rewards, return_inverse=True)
  number = number.reshape(p.rewards.shape)
  probability = np.exp(np.asarray(exact.log_probs(p.logits, p.space), np.float64))
  mass = np.stack([(probability * (number == k)).sum(1) for k in range(len(levels))], 1)  # [X, levels]
  others = np.array(list(itertools.combinations_with_replacement(range(len(levels)), group - 1)), int)  # in any order, so that there are few
  orders = [math.factorial(group - 1) / math.prod(math.factorial(n) for n in np.bincount(some, minlength=1)) for some in others]
  chance = mass[:, others].prod(-1) * orders  # [X, others]
  given = []  # E[A | reward of the first], [X] for each
  for level in levels:
    rewards = np.concatenate([np.full((len(others), 1), level), levels[others]], 1)
    first = advantages.group_relative(jnp.asarray(rewards, jnp.float32), jnp.ones(rewards.shape, bool), baseline=baseline, scale=scale, eps=0.0)[:, 0]
    given.append(chance @ np.asarray(first, np.float64))
  lengths = p.space.mask.sum(1)
  of_token = dict(sequence_mean_token_mean=1 / lengths, token_mean=1 / lengths, constant=np.full(len(lengths), 1 / p.space.mask.shape[1]))
  weight = probability * np.take_along_axis(np.stack(given, 1), number, 1) * of_token.get(aggregation, np.ones(len(lengths)))
  surrogate = lambda logits: jnp.sum(jnp.asarray(weight, jnp.float32) * exact.log_probs(logits, p.space)) / len(number)
  return np.asarray(jax.grad(surrogate)(p.logits))


def sampled_figures(estimates: Float[np.ndarray, 'B X K V'], p: Problem, *, groups: int) -> dict[str, float]:
  """Figures of estimates from batches of `groups` groups of each prompt; see `study`."""
  g = np.asarray(p.gradient, np.float64).ravel()
  flat = estimates.reshape(len(estimates), -1)
  half = len(flat) // 2
  mean = flat[:half].mean(0)
  off = mean - (mean @ g) / (g @ g) * g
  noise = float(np.sqrt(flat.var(0, ddof=1).sum() * groups / (g @ g)))
  return {**compare(estimates.mean(0), p), 'z': _z(flat[half:] @ off), 'z_norm': _z(flat @ g / (g @ g) - 1), 'noise': noise}


def exact_figures(expectation: Float[np.ndarray, 'X K V'], p: Problem) -> dict[str, float]:
  """Figures of an expectation, as `exact_...`; see `study`."""
  g = np.asarray(p.gradient)
  error = float(np.linalg.norm(expectation - g) / np.linalg.norm(g))
  return {**{f'exact_{name}': value for name, value in compare(expectation, p).items()}, 'exact_error': error}


def compare(estimate: Float[Array, 'X K V'], p: Problem) -> dict[str, float]:
  """cosine, angle, norm_ratio and edge of a mean estimate; see `study`."""
  e, g = (np.asarray(x, np.float64).reshape(len(p.logits), -1) for x in (estimate, p.gradient))
  cosine = np.sum(e * g) / (np.linalg.norm(e) * np.linalg.norm(g))
  weights = (e * g).sum(1) / (g * g).sum(1)  # of each prompt
  middle = slice(len(weights) // 4, len(weights) - len(weights) // 4)
  outer = np.concatenate([weights[: middle.start], weights[middle.stop :]])
  return dict(
    cosine=float(cosine),
    angle=float(np.sqrt(max(1 - cosine**2, 0.0))),
    norm_ratio=float(np.linalg.norm(e) / np.linalg.norm(g)),
    edge=float(outer.mean() / weights[middle].mean()) if len(outer) else 1.0,
  )


def _z(values: np.ndarray) -> float:
  return float(values.mean() / (values.std(ddof=1) / np.sqrt(len(values))))
