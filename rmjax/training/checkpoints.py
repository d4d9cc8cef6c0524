"""Checkpoints: parameters, optimiser states, PRNG key, data iterator and config in one atomic directory a step.

The only module that knows Orbax.
"""

from collections.abc import Iterator
import contextlib
import copy
import dataclasses
import logging
from pathlib import Path
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from rmjax.data.pipeline import ShardedBatches
from rmjax.errors import InputError
from rmjax.training.processes import gather
from rmjax.training.step import TrainState


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
      policies.append(preserve.BestN(get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False))
    self._manager = ocp.CheckpointManager(
      Path(workdir).resolve() / 'checkpoints',
      options=ocp.CheckpointManagerOptions(
        preservation_policy=preserve.AnyPreservationPolicy(policies),
        best_fn=_quality if best else None,  # else metrics are not written, and a resumed run would forget which is best
        cleanup_tmp_directories=True,
      ),
      item_handlers=_handlers(),
    )

  def latest(self) -> int | None:
    """Step of the newest checkpoint, None if there is none."""
    return self._manager.latest_step()

  def save(self, state: TrainState, iterator: ShardedBatches, meta: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
    """Starts to save; returns before it is written.

    Args:
      state: all of it is saved.
      iterator: its position is saved, with those of other processes.
      meta: JSON-able; what a reader needs to know of the run.
      metrics: what the evaluation at this step gave, if there was one.

    Raises:
      InputError: `best` is none of the metrics.
      OSError: there is no room for it, or the save before could not be written; earlier checkpoints are whole.
    """
    step = int(state.step)
    if step == self.latest():
      return
    best = None
    if self._best and metrics:
      name = self._best.removeprefix('-')
      if name not in metrics:
        raise InputError(f"train.best = '{self._best}': the evaluation gives {', '.join(sorted(metrics))}")
      best = {'quality': metrics[name] if name == self._best else -metrics[name]}
    self._written()
    size = sum(shard.data.nbytes for x in jax.tree.leaves(state) for shard in x.addressable_shards if shard.replica_id == 0)
    free = shutil.disk_usage(self._manager.directory).free
    if free < size:  # said before the rest of the disk is filled, which stops other programs too
      raise self._failed(step, f'{self._manager.directory} has {free:,} bytes free, and {size:,} are needed')
    args = ocp.args.Composite(
      params=ocp.args.StandardSave(state.params),
      training=ocp.args.StandardSave(_training(state)),
      data=ocp.args.JsonSave({shard: state for states in gather(iterator.get_state()) for shard, state in states.items()}),
      meta=ocp.args.JsonSave(copy.deepcopy(meta)),
    )
    self._started = step
    self._manager.save(step, args=args, metrics=best)

  def restore(self, state: TrainState, iterator: ShardedBatches) -> tuple[TrainState, dict[str, Any]]:
    """Reads the newest checkpoint.

    Args:
      state: shapes, dtypes and shardings to restore to: arrays or ShapeDtypeStructs. The mesh may differ from the one that saved.
      iterator: set to the saved position.

    Returns:
      The state and `meta`.

    Raises:
      InputError: the checkpoint holds another architecture.
    """
    params, training = _abstract(state.params), _abstract(_training(state))
    args = ocp.args.Composite(
      params=ocp.args.StandardRestore(params),
      training=ocp.args.StandardRestore(training),
      data=ocp.args.JsonRestore(),
      meta=ocp.args.JsonRestore(),
    )
    with _reading(self._manager, self.latest()) as (step, where):
      check_same_tree(self._manager.item_metadata(step).params, params, where)
      restored = self._manager.restore(step, args=args)
    iterator.set_state(restored.data)
    return TrainState(params=restored.params, **restored.training), restored.meta

  def close(self) -> None:
    """Waits until what was started is written.

    Raises:
      OSError: it could not be.
    """
    self._written()
    self._manager.close()

  def _written(self) -> None:
    try:
      self._manager.wait_until_finished()
    except Exception as e:  # Orbax passes on whatever its storage raised: OSError, or ValueError for a full disk
      self._manager.reload()  # else it counts the failed step as saved
      raise self._failed(self._started, str(e)) from e

  def _failed(self, step: int, reason: str) -> OSError:
    good = self.latest()
    back = f'the checkpoint of step {good} is whole' if good is not None else 'no checkpoint was saved before'
    return OSError(f'step {step} could not be saved; {back}; make room and run the same command to go on: {reason}')


def read_meta(workdir: Path | str) -> dict[str, Any]:
  """The `meta` of a run's newest checkpoint.

  Raises:
    InputError: the run has none.
  """
  with _reader(workdir) as manager, _reading(manager, manager.latest_step()) as (step, _):
    return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta


def restore_params(workdir: Path | str, params: Any, *, best: bool = False) -> Any:
  """Reads parameters alone.

  Args:
    workdir: directory of a run.
    params: shapes, dtypes and shardings, by part; arrays or ShapeDtypeStructs. Parts that are not asked for are left out.
    best: from the best checkpoint instead of the newest.

  Raises:
    InputError: no checkpoint, none with a metric, or one of another architecture.
  """
  abstract = _abstract(params)
  with _reader(workdir) as manager:
    step = manager.best_step() if best else manager.latest_step()
    if best and step is None:
      raise InputError(f'{workdir} has no best checkpoint, since none was saved at a step of train.eval_every with train.best set: leave --best out')
    with _reading(manager, step) as (step, where):
      there = dict(manager.item_metadata(step).params)
      check_same_tree({part: tree for part, tree in there.items() if part in abstract}, abstract, where)
      # Orbax's standard handler reads all of an item or nothing; further parts lie whole on each device until they are dropped.
      whole = jax.sharding.NamedSharding(jax.tree.leaves(abstract)[0].sharding.mesh, jax.sharding.PartitionSpec())
      drop = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)
      others = {part: jax.tree.map(drop, tree) for part, tree in there.items() if part not in abstract}
      found = manager.restore(step, args=ocp.args.Composite(params=ocp.args.StandardRestore({**others, **abstract}))).params
      return {part: found[part] for part in abstract}


def _handlers() -> dict[str, Any]:
  """Made when they are used, not at import: they start JAX, which several processes must have joined before."""
  standard, json = ocp.StandardCheckpointHandler, ocp.JsonCheckpointHandler
  return dict(params=standard(), training=standard(), data=json(), meta=json())


def _quality(metrics: dict[str, float]) -> float:
  return metrics['quality']


def _quiet() -> None:
  """Orbax tells of every step at INFO, warns of every reader that it reads, and logs the errors that it raises as well."""
  logging.getLogger('absl').setLevel(logging.CRITICAL)


def _reader(workdir: Path | str) -> ocp.CheckpointManager:
  _quiet()
  directory = Path(workdir).resolve() / 'checkpoints'
  if not directory.is_dir():
    raise InputError(f'{workdir} holds no checkpoints: give the --workdir of a training run')
  return ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(read_only=True, best_fn=_quality), item_handlers=_handlers())


@contextlib.contextmanager
def _reading(manager: ocp.CheckpointManager, step: int | None) -> Iterator[tuple[int, str]]:
  """Yields the step and what to call its checkpoint in a message. Whatever Orbax raises of a file that is cut short or gone becomes one line."""
  if step is None:
    raise InputError(f'{manager.directory} holds no whole checkpoint')
  where = f'checkpoint {manager.directory / str(step)}'
  try:
    yield step, where
  except InputError:
    raise
  except Exception as e:
    others = [str(other) for other in manager.all_steps() if other != step]
    mend = f'delete it to go on from step {others[-1]}' if others else 'there is no other, so start again in an empty --workdir'
    raise InputError(f'{where} cannot be read; {mend}: {type(e).__name__}: {str(e)[:300]}') from e


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
