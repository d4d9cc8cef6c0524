"""What all programs share: flags in, one clear line and a non-zero exit code on bad input."""

from collections.abc import Callable
import logging
import os
import sys
from typing import Any

from absl import app, flags

from rmjax.errors import InputError


def run(main: Callable[[], int | None]) -> None:
  """Parses the command line and runs `main`; ends the process with its exit code.

  0: done, or what `main` returns. 1: bad input, no room on the disk, or a loss that is not finite; one line on stderr says what and how to mend it.
  143 (128 + SIGTERM): preempted and saved. Anything else is a bug and shows its traceback.
  """
  import jax  # after flags, so that --help is quick

  from rmjax.data.records import BadRecord
  from rmjax.training.loop import Diverged, Preempted
  from rmjax.training.processes import join, leave

  if int(os.environ.get('JAX_NUM_CPU_DEVICES') or 1) > 1:
    os.environ.setdefault('NPROC', '32')  # XLA's threads: with one a virtual device, two collectives of one step can wait for each other for ever
  sys.unraisablehook = _unraisable
  app.define_help_flags()
  try:
    sys.argv = flags.FLAGS(sys.argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as e:  # ml_collections lets its own through
    _exit(1, f'error: {_one_line(e)}')
  def start(_):
    logging.getLogger('jax').setLevel(logging.WARNING)  # at INFO it tells of every kind of device that is not there
    join(getattr(flags.FLAGS, 'distributed', ''))
    return main()

  try:
    app.run(start)
  except BadRecord as e:
    _exit(1, f'error: {_one_line(e)}{_leave_out()}', leave)
  except (InputError, Diverged, OSError) as e:
    _exit(1, f'error: {_one_line(e)}', leave)
  except jax.errors.JaxRuntimeError as e:
    if jax.process_count() == 1:
      raise
    _exit(1, f'error: process {jax.process_index()} of {jax.process_count()} lost another, whose own output says why; start all of them again by the same '
             f'command to go on from the last checkpoint: {_one_line(e)[:300]}')
  except Preempted as e:
    _exit(143, str(e), leave)


def _unraisable(what: Any) -> None:
  if str(what.exc_value) != 'Event loop is closed':  # each write of a save that failed already says so, after the loop that waited for it is gone
    sys.__unraisablehook__(what)


def _leave_out() -> str:
  """How this program is told to leave bad rows out; nothing where it cannot be."""
  found = flags.FLAGS
  config = found.config if 'config' in found else {}
  option = 'bad_rows' if 'bad_rows' in found else 'config.data.bad_rows' if 'bad_rows' in config.get('data', {}) else ''
  return f'; --{option}=lenient leaves such rows out' if option else ''


def _one_line(e: Exception) -> str:
  text = str(e).split('\n----', 1)[0]  # grain adds a remark of its own below a dashed line
  if 'Traceback (most recent' in text:  # ml_collections quotes that of a config that raised: its last line says why
    text = text.split('Traceback (most recent', 1)[0] + text.strip().rsplit('\n', 1)[-1]
  text = ' '.join(text.split())
  return text if isinstance(e, (InputError, RuntimeError, flags.Error)) else f'{type(e).__name__}: {text}'


def _exit(code: int, line: str, leave: Callable[[], None] = lambda: None) -> None:
  print(line, file=sys.stderr, flush=True)
  leave()
  os._exit(code)  # writer threads of a failed save would wait for ever
