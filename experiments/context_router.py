"""MiCRo's two stages: a mixture is trained on comparisons, then its router alone is fitted to a context by a few labelled pairs of each.

Contexts are prompts that name the group that judges (`world.named`); the first stage sees none of them.

Dimensions: M records, N responses, H hidden, K components.
"""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int
import ml_collections
import numpy as np
import optax

from experiments.reproduce import arm_config, fit_seeds, measure
from experiments.setup import open_world, Setup
from rmjax.data.pipeline import eval_batches, Source
from rmjax.evaluation.accuracy import agreement
from rmjax.evaluation.mixture import head_accuracies
from rmjax.evaluation.scoring import score_records
from rmjax.heads.mixture import MixtureScores, Router
from rmjax.losses.mixture import hedge_target, router_cross_entropy
from rmjax.models import RewardModel
from rmjax.trees import Array, gather, Trees


class Contexts(NamedTuple):
  """What the frozen model says of records with contexts, and what is known of them."""

  components: Float[np.ndarray, 'M N K']
  prompts: Float[np.ndarray, 'M H']
  log_gate: Float[np.ndarray, 'M K']
  wins: Float[np.ndarray, 'M N N']
  gold: Float[np.ndarray, 'M N']
  group: Int[np.ndarray, 'M']


def study(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """Runs both stages.

  Args:
    config: of an arm; `router` has the `budgets` (labelled pairs of each group; () for no second stage), `temperature`, `epochs`, `batch` and
      `learning_rate` of the second stage, and `hyre`, the pairs of each group of that baseline.
    seeds: one run each.

  Returns:
    The figures of `evaluation.measures` on records without contexts; and on records with them, against the named group's gold:
      named_accuracy: of the first stage. routed_<B>, worst_<B>: after B labelled pairs of each group, of all groups and of the worst off.
      hyre: weights of each group by the likelihood of `hyre` labelled pairs, with no router. oracle_accuracy: of the component that is best for
      each group on these very records.
  """
  figures = []
  for seed, (run, params) in zip(seeds, fit_seeds(config, seeds), strict=True):
    records = (run.eval_source[i] for i in range(len(run.eval_source)))
    scored = list(score_records(run.model, params, records, run.encode_all, mesh=run.mesh, **run.shape))
    figures.append({**measure(config, scored), **_second_stage(config, seed, run, params)})
  return figures


def _second_stage(config: ml_collections.ConfigDict, seed: int, run: Setup, params: Any) -> dict[str, float]:
  c = config.router
  named = arm_config(config, (('seed', seed), ('world.named', True)))
  labelled = arm_config(named, (('seed', seed + 100_000), ('world.pairs', 1), ('world.train_size', 6 * len(named.world.weights) * max(*c.budgets, c.hyre, 1))))
  test = read_contexts(run, params, open_world(named)[1])
  correct = functools.partial(_accuracies, run, test)
  figures = {'named_accuracy': float(np.mean(correct(test.log_gate)))}
  groups = np.unique(test.group)
  best = np.stack([_by_head(test, test.group == g) for g in groups])  # [G, K]
  figures['oracle_accuracy'] = float(np.mean(correct(_one_hot(best.argmax(-1), best.shape[-1])[np.searchsorted(groups, test.group)])))
  if not c.budgets:
    return figures
  train = read_contexts(run, params, open_world(labelled)[0])
  i, j = (np.array(places) for places in zip(*(np.argwhere(wins > 0.5)[0] for wins in train.wins), strict=True))
  rows = np.arange(len(i))
  losses = np.logaddexp(0, train.components[rows, j] - train.components[rows, i])  # -log sigmoid(gap)
  first = lambda count: np.concatenate([np.flatnonzero(train.group == g)[:count] for g in groups])
  sums = np.stack([losses[np.flatnonzero(train.group == g)[: c.hyre]].sum(0) for g in groups])
  figures['hyre'] = float(np.mean(correct(np.asarray(jax.nn.log_softmax(-sums))[np.searchsorted(groups, test.group)])))
  for budget in c.budgets:
    some = first(budget)
    router = params['head']['router']
    if budget:
      options = dict(temperature=c.temperature, epochs=c.epochs, batch=c.batch, learning_rate=c.learning_rate)
      router = fit_router(router, train.prompts[some], losses[some], jax.random.key(seed), **options)
    right = correct(apply_router(router, test.prompts))
    figures[f'routed_{budget}'] = float(np.mean(right))
    figures[f'worst_{budget}'] = float(min(np.mean(right[test.group == g]) for g in groups))
  return figures


def read_contexts(run: Setup, params: Any, source: Source) -> Contexts:
  """Runs the model over records; its head is a `MixtureHead`."""
  parts = []
  for batch in eval_batches(source, run.encode, **run.shape):
    scores, prompts = jax.device_get(_read(run.model, params, batch.trees))
    labels, there = batch.trees.labels, batch.trees.prompt_ends >= 0
    fields = (scores.components, prompts, scores.log_gate, labels['wins'], labels['gold'], labels['group'])
    parts.append([x[there] for x in fields])
  return Contexts(*(np.concatenate(part) for part in zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnums=0)  # one compile for all seeds of a model
def _read(model: RewardModel, params: Any, batch: Trees) -> tuple[MixtureScores, Array]:
  def both(model, batch):
    hidden = model.backbone(batch.tokens, batch.positions, batch.subtree_end)
    return model(batch), gather(hidden, batch.prompt_ends)

  return model.apply({'params': params}, batch, method=both)


def _accuracies(run: Setup, test: Contexts, log_gate: Float[np.ndarray, 'M K']) -> Float[np.ndarray, 'M']:
  """Of each record, the share of its pairs that the mixture orders as the named group's gold."""
  logits = np.asarray(run.model.head.preference_logits(MixtureScores(test.components, log_gate)))
  return np.nanmean(agreement(logits, 0.5 + test.gold[:, :, None] - test.gold[:, None, :]), (-2, -1))


def _by_head(test: Contexts, some: Bool[np.ndarray, 'M']) -> Float[np.ndarray, 'K']:
  return head_accuracies(list(test.components[some]), list(test.gold[some][:, None]))[:, 0]


def _one_hot(chosen: Int[np.ndarray, 'G'], components: int) -> Float[np.ndarray, 'G K']:
  return np.where(np.arange(components) == chosen[:, None], 0.0, -1e9).astype(np.float32)


def apply_router(params: Any, prompts: Float[Array, 'M H']) -> Float[np.ndarray, 'M K']:
  """Log-weights of the components, by a router's parameters."""
  return np.asarray(_router(params).apply({'params': params}, prompts))


def _router(params: Any) -> Router:
  hidden, components = params['gate']['kernel'].shape
  return Router(components, hidden)


@functools.partial(jax.jit, static_argnames=('temperature', 'epochs', 'batch', 'learning_rate'))
def fit_router(
  params: Any,
  prompts: Float[Array, 'M H'],
  losses: Float[Array, 'M K'],
  key: jax.Array,
  *,
  temperature: float,
  epochs: int,
  batch: int,
  learning_rate: float,
) -> Any:
  """Fits a router to labelled pairs by the Hedge target, which is made anew at the start of every epoch and held inside it.

  Args:
    params: of the router to start from.
    prompts: hidden states of the prompts, contexts included.
    losses: -log sigmoid of each component's gap on the labelled pair; components are frozen.
    key: of the order.
    temperature: of the target.
    epochs: passes over the pairs.
    batch: pairs of a step; all of them where there are fewer. What does not fill one is left out of its epoch.
    learning_rate: of Adam [reconstructed].

  Returns:
    Parameters of the router.

  Reference: MiCRo (2025), Algorithm 1.
  """
  prompts, losses = jnp.asarray(prompts, jnp.float32), jnp.asarray(losses, jnp.float32)
  router, optimizer = _router(params), optax.adam(learning_rate)
  size = min(batch, len(prompts))
  steps = len(prompts) // size

  def step(carry, rows):
    (params, state), target = carry
    loss = lambda p: jnp.mean(router_cross_entropy(target[rows], router.apply({'params': p}, prompts[rows])))
    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return ((optax.apply_updates(params, updates), state), target), None

  def epoch(carry, key):
    target = hedge_target(router.apply({'params': carry[0]}, prompts), losses, temperature)
    rows = jax.random.permutation(key, len(prompts))[: steps * size].reshape(steps, size)
    return jax.lax.scan(step, (carry, target), rows)[0][0], None

  return jax.lax.scan(epoch, (params, optimizer.init(params)), jax.random.split(key, epochs))[0][0]
