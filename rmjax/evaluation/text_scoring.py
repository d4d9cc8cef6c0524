"""Functions of text as reward models, so that anything in Python can be evaluated as one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import itertools
from typing import Any

import numpy as np

from rmjax import trees
from rmjax.data.pipeline import Encode
from rmjax.data.records import Record
from rmjax.evaluation.scored import Scored
from rmjax.evaluation.scoring import answer
from rmjax.rewards.functions import call_all, RewardFunction

_TAKEN = ('prompt', 'prompts', 'completion', 'completions')  # of the signature
_TIMEOUT = 24 * 3600.0  # seconds for a batch: a function that calls a judge may take its time


def encode_words(record: Record) -> trees.Tree:
  """A record's tree with a token a word, whose numbers mean nothing: what lengths are counted in where there is no tokenizer."""
  text = record.prompt if isinstance(record.prompt, str) else '\n'.join(message['content'] for message in record.prompt)
  words = lambda text: [0] * max(len(text.split()), 1)
  return trees.branch(words(text), [words(response) for response in record.responses], {'truncated': np.int32(0)})


def score_texts(name: str, function: RewardFunction, records: Iterable[Record], encode: Encode, *, batch: int = 32) -> Iterator[Scored]:
  """Scores records as `scoring.score_records` does, by a function of text.

  Args:
    name: of the function, for messages.
    function: f(prompts, completions, **columns) -> a number for each completion, or None: then the record is refused; columns are those of the rows.
    records: any number; those of a batch are held.
    encode: record -> tree, for lengths; or the reason why it is refused.
    batch: records of a call.

  Yields:
    One `Scored` a record, in order; the logit of a preference is the difference of rewards.

  Raises:
    RewardFailed: the function raised, or gave something else than that many numbers.
  """
  records = enumerate(records)
  while part := list(itertools.islice(records, batch)):
    trees_of = [encode(record) for _, record in part]
    kept = [record for (_, record), tree in zip(part, trees_of, strict=True) if not isinstance(tree, str)]
    rewards = iter(_call(name, function, kept))
    for (index, record), tree in zip(part, trees_of, strict=True):
      if isinstance(tree, str):
        yield answer(record, index, refused=tree)
        continue
      own = next(rewards)
      if np.isnan(own).any():
        yield answer(record, index, refused=f'{record.where}: {name} gave no number for a response')
        continue
      lengths = np.array([sum(len(s.tokens) for s in tree.segments if s.response == n) for n in range(len(record.responses))])
      yield answer(record, index, rewards=own, logits=own[:, None] - own[None, :], lengths=lengths, truncated=bool(tree.labels['truncated']))


def _call(name: str, function: RewardFunction, records: Sequence[Record]) -> list[np.ndarray]:
  sizes = [len(record.responses) for record in records]
  if not sum(sizes):
    return [np.zeros(0, np.float32) for _ in records]
  as_message = lambda record, text: text if isinstance(record.prompt, str) else [{'role': 'assistant', 'content': text}]
  prompts = [record.prompt if isinstance(record.prompt, str) else list(record.prompt) for record in records for _ in record.responses]
  completions = [as_message(record, text) for record in records for text in record.responses]
  names = dict.fromkeys(column for record in records for column in record.columns if column not in _TAKEN)
  columns: Mapping[str, list[Any]] = {column: [record.columns.get(column) for record in records for _ in record.responses] for column in names}
  found = call_all({name: function}, prompts, completions, columns, timeout=_TIMEOUT)[name]
  return np.split(found, np.cumsum(sizes)[:-1])
