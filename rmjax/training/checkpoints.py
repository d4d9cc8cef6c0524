"""Checkpoints: parameters, optimiser states, PRNG key, data iterator and config in one atomic directory a step.

The only module that knows Orbax.
"""

import copy
import dataclasses
import logging
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from rmjax.errors import InputError
from rmjax.training.step import TrainState

_HANDLERS = dict(
  params=ocp.StandardCheckpointHandler(), training=ocp.StandardCheckpointHandler(), data=grain.checkpoint.CheckpointHandler(), meta=ocp.JsonCheckpointHandler()
)


class Checkpoints:
  """The checkpoints of a run, in `workdir/checkpoints`: the newest and the best by a metric are kept.

  Saving is asynchronous and atomic: a run killed at any moment finds its last whole checkpoint.
  """

  def __init__(self, workdir: Path | str, *, best: str = '', keep: int = 1):
    """Opens the directory, and clears what a killed save left.

    Args:
      workdir: directory of the run.
      best: metric whose best checkpoint is kept as well: '-eval_loss' for the smallest, 'eval_accuracy' for the largest; '' for none.
      keep: how many of the newest are kept.
    """
    _quiet()
    self._best = best
    policies = [preserve.LatestN(keep)]
    if best:
      policies.append(preserve.BestN(get_metric_fn=self._quality, n=1, keep_checkpoints_without_metrics=False))
    self._manager = ocp.CheckpointManager(
      Path(workdir).resolve() / 'checkpoints',
      options=ocp.CheckpointManagerOptions(preservation_policy=preserve.AnyPreservationPolicy(policies), cleanup_tmp_directories=True),
      item_handlers=_HANDLERS,
    )

  def _quality(self, metrics: dict[str, float]) -> float:
    return -metrics[self._best[1:]] if self._best.startswith('-') else metrics[self._best]

  def latest(self) -> int | None:
    """Step of the newest checkpoint, None if there is none."""
    return self._manager.latest_step()

  def save(self, state: TrainState, iterator: grain.DatasetIterator, meta: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
    """Starts to save; returns before it is written.

    Args:
      state: all of it is saved.
      iterator: its position is saved.
      meta: JSON-able; what a reader needs to know of the run.
      metrics: what the evaluation at this step gave, if there was one.

    Raises:
      OSError: this save or the one before could not be written (disk full); earlier checkpoints are whole.
    """
    step = int(state.step)
    if step == self.latest():
      return
    args = ocp.args.Composite(
      params=ocp.args.StandardSave(state.params),
      training=ocp.args.StandardSave(_training(state)),
      data=grain.checkpoint.CheckpointSave(iterator),
      meta=ocp.args.JsonSave(copy.deepcopy(meta)),
    )
    self._manager.save(step, args=args, metrics=metrics if self._best and metrics else None)

  def restore(self, state: TrainState, iterator: grain.DatasetIterator) -> tuple[TrainState, dict[str, Any]]:
    """Reads the newest checkpoint.

    Args:
      state: shapes, dtypes and shardings to restore to: arrays or ShapeDtypeStructs. The mesh may differ from the one that saved.
      iterator: set to the saved position.

    Returns:
      The state and `meta`.

    Raises:
      InputError: the checkpoint holds another architecture.
    """
    step = self.latest()
    params, training = _abstract(state.params), _abstract(_training(state))
    check_same_tree(self._manager.item_metadata(step).params, params, f'checkpoint {self._manager.directory / str(step)}')
    args = ocp.args.Composite(
      params=ocp.args.StandardRestore(params),
      training=ocp.args.StandardRestore(training),
      data=grain.checkpoint.CheckpointRestore(iterator),
      meta=ocp.args.JsonRestore(),
    )
    restored = self._manager.restore(step, args=args)
    return TrainState(params=restored.params, **restored.training), restored.meta

  def close(self) -> None:
    """Waits until what was started is written."""
    self._manager.wait_until_finished()
    self._manager.close()


def read_meta(workdir: Path | str) -> dict[str, Any]:
  """The `meta` of a run's newest checkpoint.

  Raises:
    InputError: the run has none.
  """
  with _reader(workdir) as manager:
    return manager.restore(_newest(manager), args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta


def restore_params(workdir: Path | str, params: Any, *, best: bool = False) -> Any:
  """Reads parameters alone.

  Args:
    workdir: directory of a run.
    params: shapes, dtypes and shardings, by part; arrays or ShapeDtypeStructs.
    best: from the best checkpoint instead of the newest.

  Raises:
    InputError: no checkpoint, none with a metric, or one of another architecture.
  """
  with _reader(workdir) as manager:
    step = _newest(manager)
    abstract = _abstract(params)
    check_same_tree(manager.item_metadata(step).params, abstract, f'checkpoint {manager.directory / str(step)}')
    return manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract))).params


def _quiet() -> None:
  """Orbax tells of every step at INFO, and warns of every reader that it reads."""
  logging.getLogger('absl').setLevel(logging.ERROR)


def _reader(workdir: Path | str) -> ocp.CheckpointManager:
  _quiet()
  directory = Path(workdir).resolve() / 'checkpoints'
  if not directory.is_dir():
    raise InputError(f'{workdir} holds no checkpoints: give the --workdir of a training run')
  return ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(read_only=True), item_handlers=_HANDLERS)


def _newest(manager: ocp.CheckpointManager) -> int:
  if manager.latest_step() is None:
    raise InputError(f'{manager.directory} holds no whole checkpoint')
  return manager.latest_step()


def _training(state: TrainState) -> dict[str, Any]:
  return {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != 'params'}


def _abstract(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def check_same_tree(saved: Any, wanted: Any, where: str) -> None:
  """Compares names and shapes.

  Raises:
    InputError: the first differing leaf, named.
  """
  there, here = ({jax.tree_util.keystr(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(tree)} for tree in (saved, wanted))
  for name in sorted(there.keys() | here.keys()):
    if there.get(name) != here.get(name):
      raise InputError(f'{where} is of another architecture: {name} is {there.get(name, "absent")} there, {here.get(name, "absent")} in this config')
