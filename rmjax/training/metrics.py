"""Metrics as (sum, count), merged before they are divided, and the places they are written to."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import math
from pathlib import Path
import time
from typing import Any

import jax


class Mean:
  """Running (sum, count) of named metrics: the mean over everything seen, never a mean of batch means."""

  def __init__(self, totals: Mapping[str, Sequence[float]] | None = None):
    """Goes on from the totals of another."""
    self.totals: dict[str, Sequence[float]] = dict(totals or {})

  def add(self, metrics: Mapping[str, tuple[Any, Any]]) -> None:
    """Merges one batch's (sum, count) pairs."""
    for name, (total, count) in jax.device_get(dict(metrics)).items():
      old_total, old_count = self.totals.get(name, (0.0, 0.0))
      self.totals[name] = (old_total + float(total), old_count + float(count))

  def means(self) -> dict[str, float]:
    """Means so far; what was never counted, such as the accuracy of data without comparisons, is absent."""
    return {name: total / count for name, (total, count) in self.totals.items() if count}

  def clear(self) -> None:
    """Forgets everything."""
    self.totals = {}


class Throughput:
  """Tokens a second of training steps. The first step, which compiles, and pauses do not count."""

  def __init__(self):
    self._tokens, self._seconds, self._last = 0, 0.0, None

  def tick(self, tokens: int) -> None:
    """Notes that a step of so many tokens is done."""
    now = time.perf_counter()
    if self._last is not None:
      self._tokens, self._seconds = self._tokens + tokens, self._seconds + now - self._last
    self._last = now

  def rate(self) -> float:
    """Tokens a second so far; 0 before the second step."""
    return self._tokens / self._seconds if self._seconds else 0.0

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves out what is done inside, such as an evaluation."""
    start = time.perf_counter()
    yield
    if self._last is not None:
      self._last += time.perf_counter() - start


class Silent:
  """In place of a `Writer`, for processes that leave writing to the first."""

  def write(self, step: int, figures: Mapping[str, float]) -> None:
    """Nothing."""

  def close(self) -> None:
    """Nothing."""


class Writer:
  """Appends figures to metrics.jsonl and TensorBoard, and to wandb if asked."""

  def __init__(self, workdir: Path, *, resume_step: int = 0, wandb: Mapping[str, Any] | None = None):
    """Opens the files.

    Args:
      workdir: directory of the run.
      resume_step: figures of later steps are cut from metrics.jsonl, since a resumed run writes them again.
      wandb: arguments of `wandb.init`, or None to leave it alone.
    """
    from tensorboardX import SummaryWriter  # slow to import, and only writers need it

    self.path = Path(workdir) / 'metrics.jsonl'
    kept = [line for line in self.path.read_text().splitlines() if _step(line) <= resume_step] if self.path.exists() else []
    temporary = self.path.with_suffix('.tmp')
    temporary.write_text(''.join(line + '\n' for line in kept))
    temporary.replace(self.path)
    self._file = self.path.open('a')
    self._tensorboard = SummaryWriter(str(Path(workdir) / 'tensorboard'), purge_step=resume_step + 1)
    self._wandb = None
    if wandb is not None:
      import wandb as wandb_module

      self._wandb = wandb_module.init(**wandb)

  def write(self, step: int, figures: Mapping[str, float]) -> None:
    """One line of figures at a step."""
    self._file.write(json.dumps({'step': step, **{name: _finite(value) for name, value in figures.items()}}) + '\n')
    self._file.flush()
    for name, value in figures.items():
      self._tensorboard.add_scalar(name, value, step)
    if self._wandb:
      self._wandb.log(dict(figures), step=step)

  def close(self) -> None:
    """Flushes everything."""
    self._file.close()
    self._tensorboard.close()
    if self._wandb:
      self._wandb.finish()


def write_json(path: Path, value: Any) -> None:
  """Writes JSON whole or not at all; what is not finite becomes null, since JSON has no NaN."""
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_text(json.dumps(_finite(value), indent=2) + '\n')
  temporary.replace(path)


def _finite(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _step(line: str) -> float:
  try:
    return json.loads(line)['step']
  except (json.JSONDecodeError, KeyError):  # a line that a kill cut short
    return math.inf
