import asyncio
import time

import numpy as np
import pytest

from rmjax.rewards.functions import call_all, RewardFailed

PROMPTS, COMPLETIONS = ['a', 'a', 'b'], ['x', 'xx', '']


def lengths(completions, **kwargs):
  return [len(text) for text in completions]


def call(function, *, columns=None, timeout=5.0):
  return call_all({'mine': function}, PROMPTS, COMPLETIONS, columns or {}, timeout=timeout)['mine']


def test_trls_signature_and_columns():
  seen = {}

  def function(prompts, completions, answer):
    seen.update(prompts=prompts, completions=completions, answer=answer)
    return [1, 0.5, None]

  rewards = call(function, columns={'answer': ['1', '1', '2'], 'other': [0, 0, 0]})
  assert seen == dict(prompts=PROMPTS, completions=COMPLETIONS, answer=['1', '1', '2'])
  np.testing.assert_array_equal(rewards, np.float32([1, 0.5, np.nan]))
  np.testing.assert_array_equal(call(lengths, columns={'other': [0, 0, 0]}), [1, 2, 0])


def test_functions_run_side_by_side_and_may_be_async():
  async def slow(completions, **kwargs):
    await asyncio.sleep(0.3)
    return lengths(completions)

  def slow_too(completions, **kwargs):
    time.sleep(0.3)
    return lengths(completions)

  start = time.monotonic()
  found = call_all({'one': slow, 'two': slow_too, 'three': slow}, PROMPTS, COMPLETIONS, {}, timeout=5.0)
  assert time.monotonic() - start < 0.75
  assert list(found) == ['one', 'two', 'three']
  for values in found.values():
    np.testing.assert_array_equal(values, [1, 2, 0])


def hang(completions, **kwargs):
  time.sleep(2)
  return lengths(completions)


async def hang_politely(completions, **kwargs):
  await asyncio.sleep(2)
  return lengths(completions)


def fail(completions, **kwargs):
  raise KeyError('gold')


@pytest.mark.parametrize(
  'function, message',
  [
    (hang, "'mine' did not answer within 0.2 s"),
    (hang_politely, "'mine' did not answer within 0.2 s"),
    (fail, "'mine' raised KeyError: 'gold'"),
    (lambda completions, **_: [1.0, float('nan'), 0.0], "'mine' gave nan for completion 1"),
    (lambda completions, **_: ['good', 1.0, 0.0], "'mine' gave 'good' for completion 0"),
    (lambda completions, **_: [1.0], "'mine' gave 1 rewards for 3 completions"),
    (lambda completions, **_: 1.0, "'mine' gave float, not a list"),
  ],
)
def test_what_goes_wrong_is_one_line(function, message):
  start = time.monotonic()
  with pytest.raises(RewardFailed) as caught:
    call(function, timeout=0.2)
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)
  assert time.monotonic() - start < 1.5  # nothing waits for a thread that hangs
