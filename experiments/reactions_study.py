"""What a model of user reactions is good for: predicting online rates, and what becomes of a policy that is rewarded by it. configs/rluf.py's `runner`.

P[Love] is trained on the log of past policies. Offline it scores candidates that lie among them, and others that do not; the world knows what each would
get online. Then a policy over the world's classes of responses is optimized by GRPO (`rmjax.policy`) on

  R = helpfulness + w_l * P[Love],  both standardised over samples of the reference policy,

for several weights w_l side by side. Helpfulness is a proxy too: the quality of a response. Gold knows that a needless goodbye helps nobody.

Dimensions: C classes, K texts of each, W weights, G responses of a group.
"""

from collections.abc import Sequence
from random import Random

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import ml_collections
import numpy as np
import optax

from experiments import reproduce
from rmjax.data.records import Record
from rmjax.errors import InputError
from rmjax.evaluation import length
from rmjax.evaluation.absolute import auroc
from rmjax.evaluation.correlation import pearson_test
from rmjax.evaluation.scoring import score_records
from rmjax.policy import kl
from rmjax.policy.advantages import group_relative
from rmjax.policy.iteration import add_signals
from rmjax.policy.surrogates import clipped
from rmjax.worlds import reactions
from rmjax.worlds.world import sigmoid

_KINDS = ('inside', 'outside')


def study(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """Figures of one arm, a dict for each seed.

  Returns:
    `auroc`, of reactions in the held-out log, and `auroc_best`, what the world's own logits reach; `rate`, its reactions, `predicted`, mean P, and
    `rate_error`, predicted / rate - 1; `length_pearson` of logit and tokens. `r_inside`, `r_outside`: offline against online of candidates, with `_low`
    and `_high` ends of the 95% interval; `gate_inside`, `gate_outside`: share of them that the release gate (better than the reference offline) treats
    as the A/B test would. `online_<k>`, `helpful_<k>`, `goodbye_<k>`, `kl_<k>`: of the policy for the k-th weight, expectations without sampling.
  """
  s, figures = config.study, []
  for (run, params), seed in zip(reproduce.fit_seeds(config, seeds), seeds, strict=True):
    score = lambda records, run=run, params=params: np.concatenate(
      [x.rewards for x in score_records(run.model, params, records, run.encode_all, mesh=run.mesh, **run.shape)]
    )
    log = [run.eval_source[i] for i in range(len(run.eval_source))]
    world = run.eval_source.settings
    found = _held_out(log, score(log))
    bank = _bank(world, s.texts, seed)
    logits = score(bank).reshape(len(reactions.CLASSES), s.texts)
    love, rates = sigmoid(logits), reactions.reaction_rates(world)
    reference = reactions.class_probabilities(tuple(s.reference), world)
    for kind in _KINDS:
      policies = np.stack([reactions.class_probabilities(policy, world) for policy in draw_candidates(s[kind], s.candidates, seed)])
      offline, online = policies @ love.mean(1), policies @ rates
      test = pearson_test(offline, online)
      agree = (offline > reference @ love.mean(1)) == (online > reference @ rates)
      found |= {f'r_{kind}': test.r, f'r_{kind}_low': test.low, f'r_{kind}_high': test.high, f'gate_{kind}': agree.mean()}
    policies = np.asarray(optimize(jnp.asarray(logits), jnp.asarray(reference), s, seed))
    quality, _, goodbye = reactions.CLASSES.T
    for k, policy in enumerate(policies):
      found |= {f'online_{k}': policy @ rates, f'helpful_{k}': policy @ (quality - s.needless * goodbye), f'goodbye_{k}': policy @ goodbye}
      found[f'kl_{k}'] = policy @ np.log(np.maximum(policy, 1e-30) / reference)
    figures.append({name: float(value) for name, value in found.items()})
  return figures


def _held_out(log: Sequence[Record], logits: np.ndarray) -> dict[str, float]:
  reacted = np.concatenate([record.ratings for record in log]) > 0
  gold, words = (np.concatenate([record.labels[name] for record in log]) for name in ('gold', 'length'))
  predicted, rate = float(sigmoid(logits).mean()), float(reacted.mean())
  if not 0 < rate < 1:
    raise InputError(f'world.eval_size = {len(log)}: the held-out log has {int(reacted.sum())} reactions: raise it')
  return dict(
    auroc=auroc(logits, reacted), auroc_best=auroc(gold, reacted), rate=rate, predicted=predicted, rate_error=predicted / rate - 1,
    length_pearson=length.pearson(logits, words),
  )  # fmt: skip


def _bank(world: reactions.Settings, texts: int, seed: int) -> list[Record]:
  """Responses of all classes to held-out prompts."""
  rng = Random(f'bank {seed}')
  blank = np.zeros((1, 1), np.float32), np.full(1, np.nan, np.float32)
  return [
    Record(reactions.draw_prompt('eval', world, rng), (reactions.render(kind, world, rng),), *blank) for kind in reactions.CLASSES for _ in range(texts)
  ]


def draw_candidates(ranges: Sequence[Sequence[float]], count: int, seed: int) -> Float[np.ndarray, 'count 3']:
  """Policies whose (mean quality, mean warmth, probability of a goodbye) are drawn alike from these ranges."""
  low, high = np.array(ranges).T
  return np.random.default_rng([seed, 3]).uniform(low, high, (count, 3))


def standardize(values: Float[Array, 'C K'], reference: Float[Array, 'C']) -> Float[Array, 'C K']:
  """Mean 0 and standard deviation 1 over what the reference says, any text of a class alike often."""
  share = reference[:, None] / values.shape[1]
  mean = jnp.sum(share * values)
  return (values - mean) / jnp.sqrt(jnp.sum(share * (values - mean) ** 2))


def optimize(logits: Float[Array, 'C K'], reference: Float[Array, 'C'], settings: ml_collections.ConfigDict, seed: int) -> Float[Array, 'W C']:
  """Policies after GRPO, one for each weight of P[Love].

  Args:
    logits: of P[Love], of the texts.
    reference: policy to start from, and that the KL is measured from.
    settings: `weights`, `iterations`, `groups`, `group`, `rate`, `beta`.
    seed: of the samples.
  """
  quality = jnp.broadcast_to(jnp.asarray(reactions.CLASSES[:, :1], jnp.float32), logits.shape)
  signals = dict(helpful=standardize(quality, reference), love=standardize(jax.nn.sigmoid(logits), reference))
  shape = (1, settings.groups, settings.group)  # [R, S, N], as rollouts have it
  optimizer = optax.adam(settings.rate)
  start = jnp.log(reference)

  def run(weight: Array) -> Array:
    def iteration(carry, key):
      theta, state = carry
      at_class, at_text = jax.random.split(key)
      drawn = jax.random.categorical(at_class, theta, shape=shape)
      text = jax.random.randint(at_text, shape, 0, logits.shape[1])
      rewards, valid = add_signals({name: x[drawn, text] for name, x in signals.items()}, jnp.stack([jnp.ones(()), weight]), jnp.ones(shape, bool))
      advantages = group_relative(rewards, valid)
      old = jax.nn.log_softmax(theta)[drawn]

      def loss(theta):
        new = jax.nn.log_softmax(theta)[drawn]
        return jnp.mean(clipped(jnp.exp(new - old), advantages) + settings.beta * kl.estimate(new, start[drawn], 'k3'))

      updates, state = optimizer.update(jax.grad(loss)(theta), state)
      return (optax.apply_updates(theta, updates), state), None

    (theta, _), _ = jax.lax.scan(iteration, (start, optimizer.init(start)), jax.random.split(jax.random.key(seed), settings.iterations))
    return jax.nn.softmax(theta)

  return jax.jit(jax.vmap(run))(jnp.asarray(settings.weights, jnp.float32))
