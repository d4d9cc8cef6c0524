"""Rows of public data sets to records. The columns that a row has decide how it is read."""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

import numpy as np

from rmjax.data.records import BadRecord, Messages, pairwise_wins, Record, wins_from_ratings

Row = Mapping[str, Any]
ROLES = ('system', 'user', 'assistant', 'tool')
HUMAN, ASSISTANT = '\n\nHuman:', '\n\nAssistant:'


class _Bad(Exception):
  """(column, reason) of what is wrong with a row."""


def to_record(row: Row, *, where: str, columns: Mapping[str, str] | None = None) -> Record:
  """Reads one row.

  Args:
    row: column -> value.
    where: 'file:line', for messages.
    columns: our name -> the row's, for data with other names.

  Raises:
    BadRecord: one line with file, line, column and reason.
  """
  if not isinstance(row, Mapping):
    raise BadRecord(f'{where}: a row is an object with columns, not {type(row).__name__}')
  for ours, theirs in (columns or {}).items():
    if theirs not in row:
      raise BadRecord(f"{where}: column '{theirs}': missing; it was to be read as '{ours}'")
  renamed = {theirs: ours for ours, theirs in (columns or {}).items()}
  row = {renamed.get(name, name): value for name, value in row.items()}
  reader = next((read for needed, read in FORMATS if all(name in row for name in needed)), None)
  if reader is None:
    accepted = '; '.join('+'.join(needed) for needed, _ in FORMATS)
    raise BadRecord(f'{where}: columns {", ".join(map(str, row))} are no known format; rename some by data.columns, or give one of: {accepted}')
  try:
    return _finish(reader(row), row, where)
  except _Bad as e:
    column, reason = e.args
    raise BadRecord(f"{where}: column '{column}': {reason}") from e


def _finish(fields: dict[str, Any], row: Row, where: str) -> Record:
  responses = tuple(fields['responses'])
  for text in responses:
    if not text.strip():
      raise _Bad(fields.get('column', 'response'), 'an empty response has nothing to score')
  count = len(responses)
  ratings = np.asarray(fields.get('ratings', [math.nan] * count), np.float32)
  wins = fields.get('wins', np.zeros((count, count), np.float32))
  subset = str(row.get('subset') or '')
  margin = _number(row, 'margin', 0.0)
  return Record(fields['prompt'], responses, wins, ratings, _number(row, 'weight', 1.0), margin, subset, where)


# One reader a format: a row to `prompt`, `responses`, and `wins` or `ratings`.


def _chosen_rejected(row: Row) -> dict[str, Any]:
  """TRL and RewardBench 1: one chosen, one rejected; the prompt apart, or inside both."""
  if isinstance(row['chosen'], Sequence) and not isinstance(row['chosen'], str) and not _is_messages(row['chosen']):
    return _lists(row)
  prompt, (chosen, rejected) = _split(row, ('chosen', 'rejected'))
  if chosen == rejected:
    raise _Bad('rejected', 'the same as chosen: there is nothing to prefer')
  ratings = [_number(row, f'score_{name}', math.nan) for name in ('chosen', 'rejected')]
  return dict(prompt=prompt, responses=(chosen, rejected), wins=pairwise_wins(2, [(0, 1, 1.0)]), ratings=ratings, column='chosen or rejected')


def _lists(row: Row) -> dict[str, Any]:
  """RewardBench 2 and RM-Bench: several chosen ones against several rejected ones; those of one side are not compared."""
  sides = [_texts(row, name) for name in ('chosen', 'rejected')]
  chosen, rejected = (len(side) for side in sides)
  pairs = [(i, chosen + j, 1.0) for i in range(chosen) for j in range(rejected)]
  return dict(prompt=_prompt(row), responses=sides[0] + sides[1], wins=pairwise_wins(chosen + rejected, pairs), column='chosen or rejected')


def _responses(row: Row) -> dict[str, Any]:
  """N-way: `responses` with `wins` (who beat whom), `ratings`, or `ranks`, 1 being the best."""
  texts = _texts(row, 'responses')
  if 'wins' in row:
    wins = _matrix('wins', row['wins'], len(texts))
    ratings = [math.nan if value is None else value for value in row.get('ratings') or [None] * len(texts)]
    return dict(prompt=_prompt(row), responses=texts, wins=wins, ratings=ratings, column='responses')
  name = 'ratings' if 'ratings' in row else 'ranks'
  if name not in row:
    return dict(prompt=_prompt(row), responses=texts, column='responses')
  values = row[name]
  if not isinstance(values, Sequence) or len(values) != len(texts):
    raise _Bad(name, f'{len(values) if isinstance(values, Sequence) else values!r} values for {len(texts)} responses')
  values = [math.nan if value is None else _finite(name, value) for value in values]
  if name == 'ranks':
    return dict(prompt=_prompt(row), responses=texts, wins=wins_from_ratings([-value for value in values]), column='responses')
  return dict(prompt=_prompt(row), responses=texts, wins=wins_from_ratings(values), ratings=values, column='responses')


def _completions(row: Row) -> dict[str, Any]:
  """UltraFeedback: `completions` of objects with `response` and `overall_score`."""
  items = row['completions']
  if not isinstance(items, Sequence) or not items or not all(isinstance(item, Mapping) and 'response' in item for item in items):
    raise _Bad('completions', 'a list of objects with `response` is wanted')
  texts = [_text(item, 'response') for item in items]
  scores = [_number(item, 'overall_score', math.nan) for item in items]
  return dict(prompt=_text(row, 'instruction'), responses=texts, wins=wins_from_ratings(scores), ratings=scores, column='completions')


def _labelled(row: Row) -> dict[str, Any]:
  """TRL's unpaired preference: a completion and whether it is good."""
  label = row['label']
  if not isinstance(label, bool) and label not in (0, 1):
    raise _Bad('label', f'{label!r} is neither true nor false')
  prompt, (text,) = _split(row, ('completion',))
  return dict(prompt=prompt, responses=(text,), ratings=[float(label)], column='completion')


def _single(name: str, *ratings: str) -> Callable[[Row], dict[str, Any]]:
  """One response, with the first of the rating columns that is there, or none (to be scored)."""

  def read(row: Row) -> dict[str, Any]:
    prompt, (text,) = _split(row, (name,))
    rating = next((_number(row, rating, math.nan) for rating in ratings if rating in row), math.nan)
    return dict(prompt=prompt, responses=(text,), ratings=[rating], column=name)

  return read


def _judged(prompt: str, one: str, two: str, verdict: str, outcomes: Mapping[Any, float]) -> Callable[[Row], dict[str, Any]]:
  """Two responses and a verdict; `outcomes` says how much each verdict prefers the first."""

  def read(row: Row) -> dict[str, Any]:
    responses = (_text(row, one), _text(row, two))
    if responses[0] == responses[1]:
      raise _Bad(two, f'the same as {one}: there is nothing to prefer')
    try:
      outcome = outcomes[row[verdict]]
    except (KeyError, TypeError) as e:
      raise _Bad(verdict, f'{row[verdict]!r} is none of {", ".join(map(repr, outcomes))}') from e
    return dict(prompt=_text(row, prompt), responses=responses, wins=pairwise_wins(2, [(0, 1, outcome)]), column=f'{one} or {two}')

  return read


def _pandalm(row: Row) -> dict[str, Any]:
  """PandaLM: three votes, 1 or 2 for a response and 0 for a tie; the mean vote is a soft label."""
  votes = []
  for name in ('annotator1', 'annotator2', 'annotator3'):
    if row[name] not in (0, 1, 2):
      raise _Bad(name, f'{row[name]!r} is none of 0, 1, 2')
    votes.append((0.5, 1.0, 0.0)[row[name]])
  responses = (_text(row, 'response1'), _text(row, 'response2'))
  if responses[0] == responses[1]:
    raise _Bad('response2', 'the same as response1: there is nothing to prefer')
  prompt = '\n\n'.join(part for part in (_text(row, 'instruction'), row.get('input') or '') if part)
  return dict(prompt=prompt, responses=responses, wins=pairwise_wins(2, [(0, 1, sum(votes) / 3)]), column='response1 or response2')


_TULU = {'a-is-clearly-better': 1.0, 'a-is-better': 1.0, 'a-is-slightly-better': 1.0, 'tie': 0.5,
         'b-is-slightly-better': 0.0, 'b-is-better': 0.0, 'b-is-clearly-better': 0.0}  # fmt: skip

# The first whose columns a row has.
FORMATS: tuple[tuple[tuple[str, ...], Callable[[Row], dict[str, Any]]], ...] = (
  (('chosen', 'rejected'), _chosen_rejected),
  (('prompt', 'responses'), _responses),
  (('instruction', 'completions'), _completions),
  (('prompt', 'completion_a', 'completion_b', 'preference'), _judged('prompt', 'completion_a', 'completion_b', 'preference', _TULU)),
  (('question', 'response_A', 'response_B', 'label'), _judged('question', 'response_A', 'response_B', 'label', {'A>B': 1.0, 'B>A': 0.0, 'A=B': 0.5})),
  (('input', 'output_1', 'output_2', 'label'), _judged('input', 'output_1', 'output_2', 'label', {1: 1.0, 2: 0.0})),
  (('instruction', 'response1', 'response2', 'annotator1', 'annotator2', 'annotator3'), _pandalm),
  (('prompt', 'completion', 'label'), _labelled),
  (('prompt', 'completion'), _single('completion', 'rating')),
  (('prompt', 'response'), _single('response', 'rating', 'helpfulness')),
  (('original', 'translation'), lambda row: _single('response', 'z_mean', 'mean')({**row, 'prompt': row['original'], 'response': row['translation']})),
)


# Prompts and responses, as text or as messages.


def _prompt(row: Row) -> str | Messages:
  """The prompt column: text, or messages so far."""
  prompt = row.get('prompt', '')
  if isinstance(prompt, str):
    return prompt
  return _messages('prompt', prompt)


def _split(row: Row, names: tuple[str, ...]) -> tuple[str | Messages, list[str]]:
  """Prompt and responses where a response is text or messages, and the prompt may stand inside it."""
  values = [row[name] for name in names]
  if all(isinstance(value, str) for value in values):
    if 'prompt' in row:
      return _prompt(row), values
    return _split_transcript(values)
  talks = [_messages(name, value) for name, value in zip(names, values, strict=True)]
  prompt = row.get('prompt')
  if isinstance(prompt, str):
    prompt = [{'role': 'user', 'content': prompt}]
  prompt = _messages('prompt', prompt) if prompt else []
  # Each response goes on from the prompt, or repeats it.
  talks = [talk if talk[: len(prompt)] != prompt else talk[len(prompt) :] for talk in talks]
  shared = 0
  while all(len(talk) > shared + 1 and talk[shared] == talks[0][shared] for talk in talks):
    shared += 1
  for name, talk in zip(names, talks, strict=True):
    if len(talk) != shared + 1 or talk[-1]['role'] != 'assistant':
      raise _Bad(name, 'after the messages that all responses share there must be one more, the assistant\'s')
  return [*prompt, *talks[0][:shared]], [talk[-1]['content'] for talk in talks]


def _split_transcript(texts: list[str]) -> tuple[str | Messages, list[str]]:
  """Text without a prompt column: Anthropic's transcripts are messages; anything else is a response to nothing."""
  if not all(text.startswith(HUMAN) and ASSISTANT in text for text in texts):
    return '', texts
  cuts = [text.rindex(ASSISTANT) for text in texts]
  openings = {text[:cut] for text, cut in zip(texts, cuts, strict=True)}
  if len(openings) > 1:  # the dialogues part before their last turn: the rest of each is its response
    shared = _common_prefix(texts)
    cut = shared.rfind(ASSISTANT)
    if cut < 0:
      return '', texts
    cuts, openings = [cut] * len(texts), {texts[0][:cut]}
  responses = [text[cut + len(ASSISTANT) :].removeprefix(' ') for text, cut in zip(texts, cuts, strict=True)]
  return _transcript_messages(openings.pop()), responses


def _transcript_messages(text: str) -> Messages:
  messages = []
  for turn in text.split(HUMAN)[1:]:
    human, *assistant = turn.split(ASSISTANT)
    messages += [{'role': 'user', 'content': human.strip()}, *({'role': 'assistant', 'content': said.strip()} for said in assistant)]
  return messages


def _common_prefix(texts: list[str]) -> str:
  low, high = min(texts), max(texts)
  return low[: next((i for i, character in enumerate(low) if i >= len(high) or character != high[i]), len(low))]


def _is_messages(value: Any) -> bool:
  return bool(value) and all(isinstance(item, Mapping) for item in value)


def _messages(column: str, value: Any) -> list[dict[str, str]]:
  if not isinstance(value, Sequence) or isinstance(value, str) or not _is_messages(value):
    raise _Bad(column, f'text or a list of messages is wanted, not {_short(value)}')
  for i, message in enumerate(value):
    if message.get('role') not in ROLES:
      raise _Bad(column, f'message {i} has role {message.get("role")!r}, not one of {", ".join(ROLES)}')
    if not isinstance(message.get('content'), str):
      raise _Bad(column, f'message {i} has content {_short(message.get("content"))}, not text')
  return [{'role': message['role'], 'content': message['content']} for message in value]


# Values.


def _text(row: Row, column: str) -> str:
  if not isinstance(row.get(column), str):
    raise _Bad(column, f'text is wanted, not {_short(row.get(column))}')
  return row[column]


def _texts(row: Row, column: str) -> list[str]:
  values = row[column]
  if not isinstance(values, Sequence) or isinstance(values, str) or not values or not all(isinstance(value, str) for value in values):
    raise _Bad(column, f'a list of texts is wanted, not {_short(values)}')
  return list(values)


def _matrix(column: str, value: Any, size: int) -> np.ndarray:
  """float32[size, size] of a tournament."""
  try:
    wins = np.asarray(value, np.float32)
  except (TypeError, ValueError) as e:
    raise _Bad(column, f'numbers are wanted, not {_short(value)}') from e
  compared = wins + wins.T if wins.shape == (size, size) else np.full(1, np.nan)
  if not np.all(np.isclose(compared, 1) | (compared == 0)) or np.any(wins < 0):
    raise _Bad(column, f'for {size} responses a {size} x {size} matrix is wanted, wins[i][j] + wins[j][i] being 1 where compared and 0 elsewhere')
  return wins


def _number(row: Row, column: str, default: float) -> float:
  return default if row.get(column) is None else _finite(column, row[column])


def _finite(column: str, value: Any) -> float:
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
    raise _Bad(column, f'a finite number is wanted, not {_short(value)}')
  return float(value)


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 40 else f'{text[:37]}...'
