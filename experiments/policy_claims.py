"""Policies of several seeds trained side by side in one compiled iteration, for claims about policy optimization."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.policy_setup import PolicySetup, setup
from experiments.reproduce import fit_seeds
from rmjax.data import pipeline
from rmjax.policy.iteration import Metrics
from rmjax.training.loop import Diverged
from rmjax.training.mesh import one_device_mesh
from rmjax.training.step import TrainState
from rmjax.trees import Trees

Curves = dict[str, np.ndarray]  # figure -> float[steps, lanes], NaN where nothing was counted


class Lanes(NamedTuple):
  """Policies that are trained side by side.

  Attributes:
    run: what they share.
    iterate: (stacked state, stacked prompts) -> (stacked state, metrics), compiled once.
    state: stacked.
    batches: prompts of each.
  """

  run: PolicySetup
  iterate: Callable[[TrainState, Trees], tuple[TrainState, Metrics]]
  state: TrainState
  batches: list[Any]


def start(config: ml_collections.ConfigDict, seeds: Sequence[int], *, policies: Any = None, scalars: Mapping[str, Any] | None = None) -> Lanes:
  """Policies before their first iteration.

  Args:
    config: of `experiments.optimize_policy`, with rewards that all run on the device.
    seeds: one a lane.
    policies: stacked parameters of decoders to start from; None draws new ones.
    scalars: name -> values of the lanes, for what is traced: `kl_coefficient` [lanes], `weights` [lanes, signals], `thresholds` [lanes, C].
  """
  run = setup(config, mesh=one_device_mesh())
  state = run.init(jax.vmap(jax.random.key)(np.array(seeds)))
  params = dict(state.params)
  if policies is not None:
    for part in ('policy', 'reference', 'value'):
      if part in params:  # a copy for each: an iteration gives its buffers away
        params[part] = {**params[part], 'backbone': jax.tree.map(jnp.copy, _like(policies, params[part]['backbone']))}
  params['scalars'] = params['scalars'] | {name: jnp.asarray(values, jnp.float32) for name, values in (scalars or {}).items()}
  batches = [pipeline.train_batches(run.train_source, run.encode, seed=seed, **run.shape) for seed in seeds]
  iterate = jax.jit(jax.vmap(lambda state, prompts: run.iterate(state, prompts)[:2]), donate_argnums=0)
  return Lanes(run, iterate, dataclasses.replace(state, params=params), batches)


def pretrain(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> Any:
  """Stacked decoder parameters of language models trained on a world's text, one a seed; `config` is of configs/sft.py's kind."""
  return jax.tree.map(lambda *x: jnp.stack(x), *(params['backbone'] for _, params in fit_seeds(config, seeds)))


def advance(lanes: Lanes, steps: int) -> tuple[Lanes, Curves]:
  """Makes iterations of all lanes.

  Raises:
    Diverged: a loss is not finite.
  """
  state, rows = lanes.state, []
  for _ in range(steps):
    prompts = jax.tree.map(lambda *x: np.stack(x), *(next(stream).trees for stream in lanes.batches))
    state, metrics = lanes.iterate(state, prompts)
    rows.append(metrics)
  rows = jax.device_get(rows)
  with np.errstate(invalid='ignore', divide='ignore'):
    curves = {name: np.stack([total / np.asarray(count) for total, count in (row[name] for row in rows)]) for name in rows[0]}
  if not np.isfinite(curves['loss']).all():
    raise Diverged('a loss is not finite')
  return lanes._replace(state=state), curves


def optimize_seeds(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """A runner: figures of each seed, `<metric>` the mean over the last tenth of the iterations and `mean/<metric>` over all."""
  _, curves = advance(start(config, seeds), config.train.steps)
  return summarize(curves)


def summarize(curves: Curves) -> list[dict[str, float]]:
  """Figures of each lane; metrics that some lane never counted are left out."""
  steps, lanes = curves['loss'].shape
  last, figures = max(steps // 10, 1), [{} for _ in range(lanes)]
  for name, values in curves.items():
    if np.isfinite(values).all():
      name = name.replace('/', '_')  # claims are arithmetic over names
      for lane in range(lanes):
        figures[lane] |= {name: float(values[-last:, lane].mean()), f'mean_{name}': float(values[:, lane].mean())}
  return figures


def _like(given: Any, wanted: Any) -> Any:
  """The leaves of `given` that `wanted` has: a critic has no output matrix."""
  return {name: _like(given[name], x) if isinstance(x, dict) else given[name] for name, x in wanted.items()}
