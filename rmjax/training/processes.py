"""Several processes that train together: joining them, and what they tell one another beside the arrays."""

import json
import re
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from rmjax.errors import InputError

PATIENCE = 10  # seconds


def join(launch: str) -> None:
  """Joins the other processes of a launch, before anything is computed.

  Args:
    launch: '' for a process of its own; 'auto' where the launcher says who takes part (TPU pods, Slurm, Open MPI, Kubernetes); else
      'HOST:PORT,INDEX,COUNT': the address of process 0, this process's number, and how many there are.

  Raises:
    InputError: none of these, or the others cannot be found.
  """
  if not launch:
    return
  found = re.fullmatch(r'([^,]+:\d+),(\d+),(\d+)', launch)
  if launch != 'auto' and not found:
    raise InputError(f"--distributed={launch}: give 'auto', or HOST:PORT,INDEX,COUNT, such as 10.0.0.1:8476,0,4")
  options: dict[str, Any] = dict(coordinator_address=found[1], process_id=int(found[2]), num_processes=int(found[3])) if found else {}
  try:
    jax.distributed.initialize(**options)
  except (RuntimeError, ValueError) as e:
    raise InputError(f'--distributed={launch}: the processes did not find one another: {str(e).splitlines()[0]}') from e


def leave() -> None:
  """Waits until the others of the launch end too, so that each can say why: where process 0 ends first, XLA aborts all that are still there.

  They have `PATIENCE` to come; where this process alone met bad input, they do not.
  """
  if not jax.distributed.is_initialized():
    return
  try:
    ocp.multihost.get_barrier_sync_fn()(key='leave', timeout_ms=1000 * PATIENCE)
    jax.distributed.shutdown()
  except RuntimeError:  # they did not come: they stop by the loss of this one
    pass


def is_first() -> bool:
  """Whether this process is the one that writes files and figures."""
  return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
  """A JSON-able value of each process; all must call it, in the same order."""
  if jax.process_count() == 1:
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(len(text))).reshape(-1)
  texts = multihost_utils.process_allgather(np.pad(text, (0, int(sizes.max()) - len(text)))).reshape(len(sizes), -1)
  return [json.loads(bytes(found[:size]).decode()) for found, size in zip(texts, sizes, strict=True)]
