"""Runs of an ensemble: members that differ in their initial parameters alone, trained on the same batches, against the best of them."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments.reproduce import arm_config, compile_step, measure
from experiments.setup import Setup, setup
from rmjax.data import pipeline
from rmjax.evaluation.scored import Scored
from rmjax.evaluation.scoring import score_records
from rmjax.rewards.ensembles import ensemble
from rmjax.training.mesh import one_device_mesh

KEPT = ('gold_accuracy', 'accuracy', 'accuracy_plus', 'best_of_n_gold', 'best_of_n_gold_most')


def study(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """Trains `ensemble.members` models on the same batches for each seed.

  Args:
    config: of an arm; `ensemble` has `members`, `uncertainty` and `calibration`, how many records members are standardised on. They are not
      measured on.
    seeds: of the records and their order; members' initial parameters follow from each.

  Returns:
    The figures that `KEPT` names, as <who>_<figure>: `single`, the mean of all members; `best_of_2`, the better of the first two ON THE RECORDS THAT
    ARE MEASURED, for each figure, which favours it; `mean2`, `mean4`, ... the ensembles of the first members; `raw2`, without standardising;
    `penalised4` the mean of all less `uncertainty` standard deviations.
  """
  mesh = one_device_mesh()
  runs = [setup(arm_config(config, (('seed', seed),)), mesh=mesh) for seed in seeds]
  step = compile_step(runs[0], one_batch=True)
  return [_of_seed(config, run, step, seed) for run, seed in zip(runs, seeds, strict=True)]


def _of_seed(config: ml_collections.ConfigDict, run: Setup, step: Callable[[Any, Any], Any], seed: int) -> dict[str, float]:
  members, aside = config.ensemble.members, config.ensemble.calibration
  batches = pipeline.train_batches(run.train_source, run.encode, seed=seed, **run.shape)
  state = run.init(jax.random.split(jax.random.key(seed), members))
  for _ in range(config.train.steps):
    state, _ = step(state, next(batches).trees)
  scored = []
  for member in range(members):
    params = jax.tree.map(lambda x, member=member: x[member], state.params['reward'])
    records = (run.eval_source[i] for i in range(len(run.eval_source)))
    scored.append(list(score_records(run.model, params, records, run.encode_all, mesh=run.mesh, **run.shape)))

  measured = lambda records: {name: value for name, value in measure(config, records[aside:]).items() if name in KEPT}
  single = [measured(member) for member in scored]
  combined = lambda count, **options: measured(combine(scored[:count], aside, **options))
  found = {
    'single': {name: float(np.mean([member[name] for member in single])) for name in single[0]},
    'best_of_2': {name: max(member[name] for member in single[:2]) for name in single[0]},
    'mean2': combined(2),
    'raw2': combined(2, standardize=False),
    f'mean{members}': combined(members),
    f'penalised{members}': combined(members, uncertainty=config.ensemble.uncertainty),
  }
  return {f'{who}_{name}': value for who, figures in found.items() for name, value in figures.items()}


def combine(members: Sequence[Sequence[Scored]], aside: int, *, uncertainty: float = 0.0, standardize: bool = True) -> list[Scored]:
  """Scored records whose rewards are the ensemble's; members are standardised on the first `aside` records."""
  stack = lambda records: np.stack([record.rewards for record in records])
  calibration = np.stack([np.concatenate([record.rewards for record in member[:aside]]) for member in members]) if standardize else None
  out = []
  for same in zip(*members, strict=True):
    rewards = np.asarray(ensemble(stack(same), uncertainty=uncertainty, calibration=calibration))
    out.append(dataclasses.replace(same[0], rewards=rewards, logits=rewards[:, None] - rewards[None, :]))
  return out
