"""The loop around the step: figures, evaluation, checkpoints, and stopping well."""

from collections import deque
from collections.abc import Callable, Iterator
import contextlib
import math
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rmjax.data.pipeline import ShardedBatches
from rmjax.errors import InputError
from rmjax.training.checkpoints import Checkpoints
from rmjax.training.mesh import shard_batch
from rmjax.training.metrics import Mean, Throughput, Writer
from rmjax.training.processes import gather, is_first
from rmjax.training.step import TrainState


class Diverged(RuntimeError):
  """The loss is not finite. The message names the step, the batch and the checkpoint to go back to."""


class Preempted(Exception):
  """SIGTERM came; the run was saved and can be resumed by the same command."""


def fit(
  state: TrainState,
  step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]],
  batches: ShardedBatches,
  *,
  steps: int,
  mesh: Mesh,
  checkpoints: Checkpoints,
  writer: Writer,
  meta: dict[str, Any],
  schedule: Callable[[int], Any],
  epoch_size: int,
  evaluate: Callable[[TrainState], dict[str, float]],
  log_every: int,
  eval_every: int,
  save_every: int,
) -> tuple[TrainState, dict[str, float]]:
  """Trains until `steps` updates are made.

  Args:
    state: where to start; `state.step` says how far it is.
    step: jitted, with the state donated. Where it raises InputError the state must still be whole.
    batches: this process's rows; their position is saved with every checkpoint.
    steps: total number of updates.
    mesh: where batches go.
    checkpoints: saved to every `save_every` steps and at the end.
    writer: gets the figures.
    meta: saved with every checkpoint; `totals` (counts since the first step) and `window` (figures since the last line) are kept in it.
    schedule: step -> learning rate, for the figures.
    epoch_size: records of the training data.
    evaluate: state -> figures, run every `eval_every` steps (0 for the end alone); their names get `eval_` in front.
    log_every: steps between two lines of training figures.
    eval_every: steps between two evaluations.
    save_every: steps between two checkpoints; 0 for the end alone.

  Returns:
    The last state and the last figures, with `tokens_per_second` of real tokens over the run, compilation and evaluation left out.

  Raises:
    Diverged: a loss was not finite; the checkpoint before stays the newest.
    Preempted: SIGTERM; the state is saved.
    InputError: the step raised it; the state before is saved.
  """
  totals = meta.setdefault('totals', {'num_tokens': 0})
  window, clock = Mean(meta.get('window')), Throughput()
  figures: dict[str, float] = {}
  evaluated: dict[int, dict[str, float]] = {}  # step -> what the evaluation there gave; the newest alone
  counted: dict[str, int] = {}  # records that this process has read since it last told the others
  unread: deque[tuple[int, dict[str, Any], np.ndarray]] = deque()  # the device works on while the host reads the step before
  # Several processes on CPUs wait for each step: with more than one on its way their collectives can wait for each other for ever.
  ahead = 0 if jax.process_count() > 1 and jax.default_backend() == 'cpu' else 1

  def read(keep: int) -> None:
    while len(unread) > keep:
      number, metrics, records = unread.popleft()
      metrics = jax.device_get(metrics)
      if not math.isfinite(metrics['loss'][0]):
        saved = checkpoints.latest()
        back = f'the last good checkpoint is of step {saved}' if saved else 'no checkpoint was saved before'
        raise Diverged(f'loss is {metrics["loss"][0]} at step {number}; its batch holds records {_ranges(records)}; {back}')
      tokens = int(metrics.pop('num_tokens')[0])
      totals['num_tokens'] += tokens
      clock.tick(tokens)
      window.add(metrics)

  def settle() -> None:
    read(0)
    for counts in gather(counted):
      for name, count in counts.items():
        totals[name] = totals.get(name, 0) + count
    counted.clear()

  def save(number: int) -> None:
    settle()
    meta['window'] = window.totals
    checkpoints.save(state, batches, meta, evaluated.get(number))

  def assess(number: int) -> None:
    read(0)
    with clock.paused():
      line = {f'eval_{name}': value for name, value in evaluate(state).items()}
    evaluated.clear()
    evaluated[number] = line
    report(number, line)

  def report(number: int, line: dict[str, float]) -> None:
    figures.update(line)
    writer.write(number, line)
    show(number, line)

  with _sigterm() as terminated, _progress(steps, int(state.step)) as (show, advance):
    for number in range(int(state.step) + 1, steps + 1):
      before = batches.get_state()
      batch = next(batches)
      try:
        state, metrics = step(state, shard_batch(batch.trees, mesh))
      except InputError as e:  # a reward function's, which the next run may have mended: the step was not made
        batches.set_state(before)
        save(number - 1)
        raise type(e)(f'{e}; saved at step {number - 1}: the same command goes on from there') from e
      unread.append((number, metrics, batch.trees.labels['index']))
      for name, count in batch.counts.items():
        counted[name] = counted.get(name, 0) + count
      read(keep=ahead)
      last = number == steps
      if last or number % log_every == 0:
        settle()
        line = {
          **window.means(),
          'learning_rate': float(schedule(number - 1)),
          'num_tokens': totals['num_tokens'],
          'epoch': totals['records'] / epoch_size,
          'tokens_per_second': clock.rate(),
        }
        window.clear()
        report(number, line)
      if last or (eval_every and number % eval_every == 0):
        assess(number)
      if terminated(number):
        save(number)
        raise Preempted(f'SIGTERM at step {number}: saved; run the same command to go on')
      if last or (save_every and number % save_every == 0):
        save(number)
      advance(number, clock.rate())
  return state, {**figures, **totals, 'tokens_per_second': clock.rate()}


@contextlib.contextmanager
def _sigterm() -> Iterator[Callable[[int], bool]]:
  """Catches SIGTERM, so that a step and its checkpoint are finished first. Yields what says whether to stop after a step."""
  if jax.process_count() > 1:  # JAX catches it, and lets all processes stop after the same step
    yield multihost_utils.reached_preemption_sync_point
    return
  seen = []
  previous = signal.signal(signal.SIGTERM, lambda *_: seen.append(True))
  try:
    yield lambda number: bool(seen)
  finally:
    signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _progress(steps: int, done: int) -> Iterator[tuple[Callable, Callable]]:
  """A progress bar with tokens/s on a terminal, plain lines elsewhere."""
  console = Console(stderr=True, quiet=not is_first())
  columns = (BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[rate]:,.0f} tokens/s'), TimeRemainingColumn())
  with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
    task = bar.add_task('train', total=steps, completed=done, rate=0.0)

    def show(number: int, line: dict[str, float]) -> None:
      console.print(f'step {number}  ' + '  '.join(f'{name} {value:.4g}' for name, value in line.items()), highlight=False, soft_wrap=True)

    yield show, lambda number, rate: bar.update(task, completed=number, rate=rate)


def _ranges(records: np.ndarray) -> str:
  """'3-5, 9' of the record numbers in a batch; -1 is an empty slot."""
  numbers = np.unique(records[records >= 0])
  runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
  return ', '.join(str(run[0]) if len(run) == 1 else f'{run[0]}-{run[-1]}' for run in runs if len(run))
