"""Reward functions of text that tests name in configs."""

import os
from pathlib import Path

from rmjax.trees import response_lengths


def words(completions, **columns):
  """Number of words, as TRL would give it."""
  texts = [text if isinstance(text, str) else text[-1]['content'] for text in completions]
  return [float(len(text.split())) for text in texts]


async def half(prompts, completions, answer=None, **columns):
  """1 where the row's column says so; None for every other row."""
  return [None if value is None else float(value) for value in answer or [None] * len(prompts)]


def fragile(completions, **columns):
  """Raises while the file that RMJAX_TEST_BROKEN names is there and it was called more than twice."""
  path = Path(os.environ['RMJAX_TEST_BROKEN'])
  if path.exists():
    count = int(path.read_text() or 0) + 1
    path.write_text(str(count))
    if count > 2:
      raise ValueError('the judge is down')
  return words(completions)


def count_tokens(batch):
  """Lengths of a rollout's responses, on the device."""
  return response_lengths(batch).astype('float32')
