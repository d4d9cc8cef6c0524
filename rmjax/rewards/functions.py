"""Reward functions on text, of TRL's signature: called side by side, under a time limit, and never believed blindly."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import inspect
import math
import time
from typing import Any

from jaxtyping import Float
import numpy as np

from rmjax.data.records import Messages
from rmjax.errors import InputError

Answers = list[float | None]
RewardFunction = Callable[..., Answers | Awaitable[Answers]]
"""f(prompts, completions, **columns) -> a number for each completion, or None where it does not apply; may be `async def`.

`prompts` and `completions` are texts, or messages where the data has messages. Columns are lists as long as they are, each row of the data
repeated for each of its completions.
"""


class RewardFailed(InputError):
  """A reward function raised, did not answer in time, or answered something else than numbers. The message is one line."""


def call_all(
  functions: Mapping[str, RewardFunction],
  prompts: Sequence[str | Messages],
  completions: Sequence[str | Messages],
  columns: Mapping[str, Sequence[Any]],
  *,
  timeout: float,
) -> dict[str, Float[np.ndarray, 'B']]:
  """Calls reward functions on one batch, each in a thread of its own.

  Args:
    functions: name -> function.
    prompts: one a completion.
    completions: what the policy said.
    columns: further columns of the data; a function without **kwargs gets those that it names.
    timeout: seconds that all of them have together.

  Returns:
    name -> rewards, NaN for None.

  Raises:
    RewardFailed: names the function and what it did.
  """
  pool = ThreadPoolExecutor(max_workers=max(len(functions), 1))
  deadline = time.monotonic() + timeout
  try:
    futures = {name: pool.submit(_call, function, list(prompts), list(completions), columns, timeout) for name, function in functions.items()}
    answers = {}
    for name, future in futures.items():
      try:
        answers[name] = future.result(max(deadline - time.monotonic(), 0))
      except TimeoutError as e:
        raise RewardFailed(f"reward function '{name}' did not answer within {timeout:g} s: raise config.rewards_timeout or make it faster") from e
      except Exception as e:
        raise RewardFailed(f"reward function '{name}' raised {type(e).__name__}: {' '.join(str(e).split())[:300]}") from e
  finally:
    pool.shutdown(wait=False, cancel_futures=True)  # a thread that hangs cannot be stopped; it is left behind
  return {name: _checked(name, answer, len(completions)) for name, answer in answers.items()}


def _call(function: RewardFunction, prompts: list, completions: list, columns: Mapping[str, Sequence[Any]], timeout: float) -> Any:
  parameters = inspect.signature(function).parameters.values()
  if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
    columns = {name: values for name, values in columns.items() if name in {parameter.name for parameter in parameters}}
  answer = function(prompts=prompts, completions=completions, **columns)
  return asyncio.run(asyncio.wait_for(answer, timeout)) if inspect.isawaitable(answer) else answer


def _checked(name: str, answer: Any, count: int) -> Float[np.ndarray, 'B']:
  try:
    values = list(answer)
  except TypeError:
    raise RewardFailed(f"reward function '{name}' gave {type(answer).__name__}, not a list of numbers") from None
  if len(values) != count:
    raise RewardFailed(f"reward function '{name}' gave {len(values)} rewards for {count} completions")
  for number, value in enumerate(values):
    try:
      finite = value is None or math.isfinite(value)
    except TypeError:
      finite = False
    if not finite:
      raise RewardFailed(f"reward function '{name}' gave {value!r} for completion {number}: give a finite number, or None where it does not apply")
  return np.array([np.nan if value is None else value for value in values], np.float32)
