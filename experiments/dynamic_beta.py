"""MM-DPO against DPO where everything is known: `study` is a `runner` of configs/mm_rlhf.py.

Prompts have N responses with features. Gold is linear in all of them, the policy log-linear in some, pi(n) ~ exp(phi_n . theta) / N, so that it must
generalise and cannot be perfect; the reference is theta = 0. Every pair of each ranking is labelled by Bradley-Terry on gold, so that labels are wrong the
more often the smaller the true margin; the frozen reward model is gold with noise. Policies are trained at several beta, and on other prompts

  gold(pi) = E_pi[r*] - E_ref[r*] and KL(pi || ref), in nats a response, are sums over N: exact.

Dimensions: X prompts, N responses, F features, K strengths.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import ml_collections
import numpy as np
import optax

from rmjax.errors import InputError
from rmjax.losses.dynamic import margin_std, mm_dpo, mm_dpo_released
from rmjax.losses.preference import preference_cross_entropy

METHODS = ('dpo', 'mm_dpo', 'released')


def study(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """Figures of the method that `config.dynamic` describes, a dict for each seed.

  Returns:
    `gain_<d>`: gold at a KL of d hundredths of a nat, between neighbouring strengths by a straight line over sqrt(KL). `gain_of_<k>`, `kl_of_<k>`: of the
    k-th strength. `best_gain`: the highest. `label_accuracy`, `reward_accuracy`: pairs that labels, or the reward model, order as gold does.

  Raises:
    InputError: there is no such method.
  """
  s = config.dynamic
  if s.method not in METHODS:
    raise InputError(f"dynamic.method = '{s.method}': choose one of {', '.join(METHODS)}")
  strengths = jnp.asarray(s.strengths, jnp.float32)
  run = jax.jit(jax.vmap(lambda key: _run(s, strengths, key)))
  gain, kl, labels, rewards = map(np.asarray, run(jax.vmap(jax.random.key)(np.array(seeds))))
  figures = []
  for seed in range(len(seeds)):
    order = np.argsort(kl[seed])
    at = np.interp(np.sqrt(s.divergences), np.r_[0, np.sqrt(kl[seed][order])], np.r_[0, gain[seed][order]])
    found = {f'gain_{round(100 * d)}': value for d, value in zip(s.divergences, at, strict=True)}
    for k in range(len(s.strengths)):
      found |= {f'gain_of_{k}': gain[seed, k], f'kl_of_{k}': kl[seed, k]}
    found |= dict(best_gain=gain[seed].max(), label_accuracy=labels[seed], reward_accuracy=rewards[seed])
    figures.append({name: float(value) for name, value in found.items()})
  return figures


def _run(s: ml_collections.ConfigDict, strengths: Float[Array, 'K'], key: Array) -> tuple[Array, Array, Array, Array]:
  """Gold and KL [K] of trained policies; shares of pairs that labels and reward model have right."""
  of_theta, of_data, of_test, of_labels, of_noise, of_order = jax.random.split(key, 6)
  theta = s.spread * jax.random.normal(of_theta, (s.features,)) / s.features**0.5
  draw = lambda key, prompts: jax.random.normal(key, (prompts, s.responses, s.features))
  data, test = draw(of_data, s.prompts), draw(of_test, s.test)
  gold = data @ theta
  gaps = lambda x: x[..., :, None] - x[..., None, :]
  first = jnp.triu(jax.random.bernoulli(of_labels, jax.nn.sigmoid(gaps(gold))), 1).astype(jnp.float32)
  wins = first + jnp.tril(1 - jnp.swapaxes(first, -1, -2), -1)
  ref_rewards = gold + s.noise * jax.random.normal(of_noise, gold.shape)
  scale = margin_std(ref_rewards, wins)
  optimizer = optax.adam(optax.linear_schedule(s.rate, 0.0, s.steps))
  visible = lambda phi: phi[..., : s.visible]

  def loss(theta: Array, beta: Array, rows: Array, key: Array) -> Array:
    logits, won = beta * gaps(visible(data[rows]) @ theta), wins[rows]
    if s.method == 'released':
      return mm_dpo_released(logits, won, jnp.broadcast_to(beta, logits.shape[:-2]), key)
    value = mm_dpo(logits, won, ref_rewards[rows] / scale, s.w, s.k) if s.method == 'mm_dpo' else preference_cross_entropy(logits, won)
    return jnp.sum(value) / jnp.sum(won)

  def train(beta: Array) -> Array:
    def step(carry, key):
      theta, state = carry
      rows = jax.random.randint(key, (s.rows,), 0, s.prompts)
      updates, state = optimizer.update(jax.grad(loss)(theta, beta, rows, jax.random.fold_in(key, 1)), state)
      return (optax.apply_updates(theta, updates), state), None

    start = jnp.zeros(s.visible)
    return jax.lax.scan(step, (start, optimizer.init(start)), jax.random.split(of_order, s.steps))[0][0]

  def measure(trained: Array) -> tuple[Array, Array]:
    log_pi = jax.nn.log_softmax(visible(test) @ trained)
    share, value = jnp.exp(log_pi), test @ theta
    gain = jnp.sum(share * value, -1) - value.mean(-1)
    return gain.mean(), jnp.sum(share * (log_pi + jnp.log(s.responses)), -1).mean()

  gain, kl = jax.vmap(lambda beta: measure(train(beta)))(strengths)
  right = lambda x: jnp.mean(gaps(x) > 0, where=gaps(gold) > 0)
  return gain, kl, jnp.mean(wins > 0.5, where=gaps(gold) > 0), right(ref_rewards)
