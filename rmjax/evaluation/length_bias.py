"""How much of a reward is a curve in the length: fresh probes, corrections after training, and dependence that correlations miss.

Dimensions: M responses.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Num
import numpy as np
import optax

from rmjax.errors import InputError
from rmjax.evaluation import accuracy, length
from rmjax.evaluation.scored import compared_pairs, Scored
from rmjax.evaluation.summary import flat_responses
from rmjax.heads.length import LengthBiasNet
from rmjax.losses.preference import length_normalized

Curve = Callable[[Num[np.ndarray, '*M']], Float[np.ndarray, '*M']]  # of length
Correction = Callable[[Sequence[Scored]], list[Scored]]


def fit_curve(lengths: Num[np.ndarray, 'M'], rewards: Float[np.ndarray, 'M'], network: nn.Module | None = None, *, steps: int = 500) -> Curve:
  """Least squares of reward on length by a small network, on all responses at once.

  Args:
    lengths: tokens.
    rewards: of the same responses.
    network: of lengths; FiMi's if None.
    steps: of Adam at 1e-2.

  Returns:
    The fitted curve, in the rewards' units.
  """
  network = network or LengthBiasNet()
  mean, scale = float(np.mean(rewards)), max(float(np.std(rewards)), 1e-12)
  params = _fit(network, jnp.asarray(lengths, jnp.int32), jnp.asarray((rewards - mean) / scale, jnp.float32), steps)
  return lambda n: np.asarray(network.apply(params, jnp.asarray(n, jnp.int32)), np.float64) * scale + mean


@functools.partial(jax.jit, static_argnums=(0, 3))
def _fit(network: nn.Module, lengths: jax.Array, targets: jax.Array, steps: int):
  optimizer = optax.adam(1e-2)
  loss = lambda params: jnp.mean((network.apply(params, lengths) - targets) ** 2)

  def step(carry, _):
    params, state = carry
    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return (optax.apply_updates(params, updates), state), None

  params = network.init(jax.random.key(0), lengths)
  return jax.lax.scan(step, (params, optimizer.init(params)), None, steps)[0][0]


def subtract(scored: Sequence[Scored], curve: Curve) -> list[Scored]:
  """Rewards less a curve in the length, and the preferences that follow."""

  def less(record: Scored) -> Scored:
    bias = curve(record.lengths)
    return dataclasses.replace(record, rewards=record.rewards - bias, logits=record.logits - (bias[:, None] - bias[None, :]))

  return [record if record.refused else less(record) for record in scored]


def curve_subtraction(validation: Sequence[Scored]) -> Correction:
  """The control that subtracts FiMi's curve after training instead of training against it: r - fit(length), fitted on validation records."""
  rewards, lengths, _ = flat_responses(validation)
  curve = fit_curve(lengths, rewards)
  return lambda scored: subtract(scored, curve)


def length_penalty(validation: Sequence[Scored], *, size: int = 801) -> Correction:
  """The control that everybody tries first: r - c * length, the c of the best accuracy against GOLD on validation records.

  That favours the control: who has a length bias to get rid of has no gold labels. `size` values of c are tried, up to where length decides
  everything: 4 standard deviations of reward for each of length, either way.

  Raises:
    InputError: no gold quality is known.
  """
  rewards, lengths, _ = flat_responses(validation)
  pairs = compared_pairs(validation)
  if np.isnan(pairs.gold).all():
    raise InputError('a length penalty is tuned against gold, and the validation records have none')
  largest = 4 * np.std(rewards) / max(np.std(lengths), 1e-12)
  candidates = np.linspace(-largest, largest, size)
  reached = [np.nanmean(accuracy.agreement(pairs.logits - c * (pairs.lengths @ [1, -1]), 0.5 + pairs.gold)) for c in candidates]
  best = candidates[np.argmax(reached)]
  return lambda scored: subtract(scored, lambda n: best * n)


def length_normalization(validation: Sequence[Scored]) -> Correction:
  """The correction r / log(length), for a model that `length_normalized_cross_entropy` trained; nothing is fitted."""
  del validation

  def normalize(record: Scored) -> Scored:
    rewards = np.asarray(length_normalized(record.rewards, record.lengths))
    return dataclasses.replace(record, rewards=rewards, logits=rewards[:, None] - rewards[None, :])

  return lambda scored: [record if record.refused else normalize(record) for record in scored]


def dependence(scored: Sequence[Scored]) -> dict[str, float]:
  """What is left of length in a reward, beside the correlations of `summary`.

  Returns:
    length_probe: correlation of the reward with a FRESH curve, fitted on every other record and measured on the rest. A probe that was
      trained along with the model can be stale and show a false zero.
    length_mutual_information: of reward and length, in nats, over 8 x 8 bins of equal count, less its bias of (cells - 1) / 2M.
    gold_accuracy_longer, gold_accuracy_shorter, gold_length_gap: accuracy against gold where the better response is the longer one, where
      it is the shorter one, and how far they are apart; where gold is known.
  """
  halves = [flat_responses([record for record in scored if record.index % 2 == half]) for half in (0, 1)]
  (rewards, lengths, _), (others, other_lengths, _) = halves
  probe = length.pearson(others, fit_curve(lengths, rewards)(other_lengths))
  figures = {'length_probe': probe, 'length_mutual_information': _mutual_information(*flat_responses(scored)[:2])}
  pairs = compared_pairs(scored)
  if not np.isnan(pairs.gold).all():
    right, longer = accuracy.agreement(pairs.logits, 0.5 + pairs.gold), length.longer_won(0.5 + pairs.gold, pairs.lengths)
    for name, side in (('longer', 1), ('shorter', 0)):
      figures[f'gold_accuracy_{name}'] = accuracy.clustered_mean(np.where(longer == side, right, np.nan), pairs.groups)[0]
    figures['gold_length_gap'] = figures['gold_accuracy_longer'] - figures['gold_accuracy_shorter']
  return {name: value for name, value in figures.items() if not np.isnan(value)}


def _mutual_information(x: np.ndarray, y: np.ndarray, bins: int = 8) -> float:
  codes = [np.searchsorted(np.unique(np.quantile(v, np.linspace(0, 1, bins + 1)[1:-1])), v, side='left') for v in (x, y)]
  table = np.zeros((bins, bins))
  np.add.at(table, tuple(codes), 1)
  table = table[table.sum(1) > 0][:, table.sum(0) > 0] / len(x)
  expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True)
  information = np.sum(np.where(table > 0, table * np.log(np.where(table > 0, table, 1) / expected), 0.0))
  return float(information - (table.shape[0] - 1) * (table.shape[1] - 1) / (2 * len(x)))
