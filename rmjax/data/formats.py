"""Rows of public data sets to records. The columns that a row has decide how it is read.

Dimensions: N responses of the record.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

import numpy as np

from rmjax.data.records import BadRecord, Messages, pairwise_wins, Record, wins_from_ratings

Row = Mapping[str, Any]
Fields = dict[str, Any]  # of the record: prompt, responses, and wins, ratings or labels where they are known
ROLES = ('system', 'user', 'assistant', 'tool')
HUMAN, ASSISTANT = '\n\nHuman:', '\n\nAssistant:'


class _Bad(Exception):
  """(column, reason) of what is wrong with a row; the column is empty if it is the row."""


def to_record(row: Any, *, where: str, columns: Mapping[str, str] | None = None) -> Record:
  """Reads one row.

  Args:
    row: column -> value.
    where: 'file:line', for messages.
    columns: our name -> the row's, for data with other names.

  Raises:
    BadRecord: one line with file, line, column and reason.
  """
  if not isinstance(row, Mapping):
    raise BadRecord(f'{where}: a row is an object with columns, not {_short(row)}')
  try:
    row = _renamed(row, columns or {})
    return _finish(_reader(row)(row), row, where)
  except _Bad as e:
    column, reason = e.args
    raise BadRecord(f"{where}: column '{column}': {reason}" if column else f'{where}: {reason}') from None


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
  """A row in our names. One of ours that is read from elsewhere hides the row's own."""
  for ours, theirs in columns.items():
    if theirs not in row:
      raise _Bad(theirs, f"missing; it was to be read as '{ours}'")
  rest = {name: value for name, value in row.items() if name not in columns.values()}
  return {**rest, **{ours: row[theirs] for ours, theirs in columns.items()}}


def _reader(row: Row) -> Callable[[Row], Fields]:
  for needed, read in FORMATS:
    if all(name in row for name in needed):
      return read
  accepted = ', '.join('+'.join(needed) for needed, _ in FORMATS)
  advice = f'the columns are {_cut(", ".join(map(str, row)), 120)}; one of these is wanted: {accepted}; data.columns renames'
  gaps = [[name for name in needed if name not in row] for needed, _ in FORMATS if any(name in row and name != 'prompt' for name in needed)]
  missing = next((gap[0] for gap in gaps if len(gap) == 1), None)
  raise _Bad(missing, f'missing; {advice}') if missing else _Bad('', f'no known format; {advice}')


def _finish(fields: Fields, row: Row, where: str) -> Record:
  responses = tuple(fields['responses'])
  count = len(responses)
  weight = _number(row, 'weight', 1.0)
  if weight < 0:
    raise _Bad('weight', f'{weight} is negative')
  return Record(
    prompt=fields['prompt'],
    responses=responses,
    wins=fields.get('wins', np.zeros((count, count), np.float32)),
    ratings=np.asarray(fields.get('ratings', [math.nan] * count), np.float32),
    weight=weight,
    margin=_number(row, 'margin', 0.0),
    subset=str(row.get('subset') or ''),
    where=where,
    labels=fields.get('labels', {}),
    columns=row,
    critiques=fields.get('critiques', ()),
  )


# One reader a format.


def _chosen_rejected(row: Row) -> Fields:
  """TRL and RewardBench 1: one chosen, one rejected; the prompt apart, or inside both. RewardBench 2 has lists of them.

  `is_tie` says that neither is better; `chosen_critique` and `rejected_critique` what is to be said of each, null where nothing is known.
  """
  if any(isinstance(row[name], (list, tuple)) and not _is_messages(row[name]) for name in ('chosen', 'rejected')):
    return _lists(row)
  prompt, responses = _split(row, ('chosen', 'rejected'))
  _different('chosen', 'rejected', responses)
  ratings = [_number(row, f'score_{name}', math.nan) for name in ('chosen', 'rejected')]
  if row.get('is_tie') not in (None, False, True):
    raise _Bad('is_tie', f'{_short(row["is_tie"])} is neither true nor false')
  fields = dict(prompt=prompt, responses=responses, wins=pairwise_wins(2, [(0, 1, 0.5 if row.get('is_tie') else 1.0)]), ratings=ratings)
  names = ('chosen_critique', 'rejected_critique')
  return dict(fields, critiques=_critiques(names, [row.get(name) for name in names])) if any(name in row for name in names) else fields


def _lists(row: Row) -> Fields:
  """RewardBench 2 and RM-Bench: several chosen ones against several rejected ones; those of one side are not compared."""
  chosen, rejected = (_responses(name, row[name]) for name in ('chosen', 'rejected'))
  for j, text in enumerate(rejected):
    if text in chosen:
      raise _Bad(f'rejected[{j}]', f'the same as chosen[{chosen.index(text)}]: there is nothing to prefer')
  pairs = [(i, len(chosen) + j, 1.0) for i in range(len(chosen)) for j in range(len(rejected))]
  return dict(prompt=_prompt(row), responses=chosen + rejected, wins=pairwise_wins(len(chosen) + len(rejected), pairs))


def _many(row: Row) -> Fields:
  """N-way: `responses` with `ratings`, or `ranks` (1 is the best), or `wins` (who beat whom), or nothing yet; `labels` are further numbers.

  `critiques` are texts, one a response, null where nothing is known.
  """
  texts = _responses('responses', row['responses'])
  values = {name: _numbers(row, name, len(texts)) for name in ('ratings', 'ranks') if row.get(name) is not None}
  fields = dict(prompt=_prompt(row), responses=texts, ratings=values.get('ratings', [math.nan] * len(texts)))
  if isinstance(row.get('labels'), Mapping):
    fields['labels'] = {name: _label(f'labels.{name}', value, len(texts)) for name, value in row['labels'].items()}
  if (critiques := row.get('critiques')) is not None:
    if not isinstance(critiques, (list, tuple)) or len(critiques) != len(texts):
      raise _Bad('critiques', f'{len(texts)} texts are wanted, one a response, not {_short(critiques)}')
    fields['critiques'] = _critiques([f'critiques[{i}]' for i in range(len(texts))], critiques)
  if row.get('wins') is not None:
    return dict(fields, wins=_tournament(row['wins'], len(texts)))
  return dict(fields, wins=_rated(texts, [-rank for rank in values['ranks']] if 'ranks' in values else fields['ratings']))


def _completions(row: Row) -> Fields:
  """UltraFeedback: `completions` of objects with `response` and `overall_score`."""
  items = row['completions']
  if not isinstance(items, (list, tuple)) or not items or not all(isinstance(item, Mapping) and 'response' in item for item in items):
    raise _Bad('completions', f"a list of objects with 'response' is wanted, not {_short(items)}")
  texts = _responses('completions', [item['response'] for item in items])
  scores = [_number(item, 'overall_score', math.nan) for item in items]
  return dict(prompt=_text('instruction', row['instruction']), responses=texts, wins=_rated(texts, scores), ratings=scores)


def _prefixes(row: Row) -> Fields:
  """ProcessBench: a problem, steps, and the number of the first wrong one (-1 for none). Each prefix of the steps is a response."""
  steps = _responses('steps', row['steps'])
  label = row['label']
  if isinstance(label, bool) or not isinstance(label, int) or not -1 <= label < len(steps):
    raise _Bad('label', f'{_short(label)} is no step: there are {len(steps)}, from 0, and -1 says that none is wrong')
  responses = ['\n\n'.join(steps[: n + 1]) for n in range(len(steps))]
  return dict(prompt=_text('problem', row['problem']), responses=responses)


def _sampled(row: Row) -> Fields:
  """Qwen2.5-Math: several samples of a question, and whether each is right."""
  texts = _responses('response', row['response'])
  if not isinstance(row['score'], (list, tuple)) or len(row['score']) != len(texts) or not all(right in (0, 1) for right in row['score']):
    raise _Bad('score', f'{len(texts)} of true and false are wanted, one a response, not {_short(row["score"])}')
  ratings = [float(right) for right in row['score']]
  return dict(prompt=_text('question', row['question']), responses=texts, wins=_rated(texts, ratings), ratings=ratings)


def _outputs(row: Row) -> Fields:
  """AlpacaEval: an instruction, and each system's output, not compared yet."""
  outputs = row['outputs']
  if not isinstance(outputs, Mapping) or not outputs:
    raise _Bad('outputs', f'an object of system -> text is wanted, not {_short(outputs)}')
  responses = [_response(f'outputs.{name}', text) for name, text in outputs.items() if text is not None]
  return dict(prompt=_text('instruction', row['instruction']), responses=responses)


def _labelled(row: Row) -> Fields:
  """TRL's unpaired preference: a completion and whether it is good."""
  prompt, responses = _split(row, ('completion',))
  if row['label'] not in (0, 1):
    raise _Bad('label', f'{_short(row["label"])} is neither true nor false')
  return dict(prompt=prompt, responses=responses, ratings=[float(row['label'])])


def _single(name: str, *ratings: str) -> Callable[[Row], Fields]:
  """One response, with the first of the rating columns that has a value, or with none (to be scored)."""

  def read(row: Row) -> Fields:
    prompt, responses = _split(row, (name,))
    rating = next((_number(row, rating, math.nan) for rating in ratings if row.get(rating) is not None), math.nan)
    return dict(prompt=prompt, responses=responses, ratings=[rating])

  return read


def _translation(row: Row) -> Fields:
  """MLQE-PE: a translation and the mean of its ratings, standardised by rater where that is there."""
  rating = _number(row, 'z_mean', _number(row, 'mean', math.nan))
  return dict(prompt=_text('original', row['original']), responses=[_response('translation', row['translation'])], ratings=[rating])


def _judged(prompt: str, one: str, two: str, verdicts: Sequence[str], outcomes: Mapping[Any, float]) -> Callable[[Row], Fields]:
  """Two responses and verdicts; `outcomes` says how much each verdict prefers the first, and their mean is the label."""

  def read(row: Row) -> Fields:
    responses = [_response(name, row[name]) for name in (one, two)]
    _different(one, two, responses)
    votes = []
    for name in verdicts:
      try:
        votes.append(outcomes[row[name]])
      except (KeyError, TypeError):
        raise _Bad(name, f'{_short(row[name])} is none of {", ".join(map(repr, outcomes))}') from None
    return dict(prompt=_text(prompt, row[prompt]), responses=responses, wins=pairwise_wins(2, [(0, 1, sum(votes) / len(votes))]))

  return read


def _pandalm(row: Row) -> Fields:
  """PandaLM: an instruction, often with an input, and three votes: 0 for a tie, 1 or 2 for a response."""
  parts = [_text(name, row[name]) for name in ('instruction', 'input') if row.get(name)]
  read = _judged('instruction', 'response1', 'response2', _ANNOTATORS, {0: 0.5, 1: 1.0, 2: 0.0})
  return dict(read(row), prompt='\n\n'.join(parts))


_ANNOTATORS = ('annotator1', 'annotator2', 'annotator3')
_TULU = {'a-is-better': 1.0, 'a-is-slightly-better': 1.0, 'tie': 0.5, 'b-is-slightly-better': 0.0, 'b-is-better': 0.0}

# The first whose columns a row has.
FORMATS: tuple[tuple[tuple[str, ...], Callable[[Row], Fields]], ...] = (
  (('chosen', 'rejected'), _chosen_rejected),
  (('prompt', 'responses'), _many),
  (('instruction', 'completions'), _completions),
  (('prompt', 'completion_a', 'completion_b', 'preference'), _judged('prompt', 'completion_a', 'completion_b', ['preference'], _TULU)),
  (('question', 'response_A', 'response_B', 'label'), _judged('question', 'response_A', 'response_B', ['label'], {'A>B': 1.0, 'B>A': 0.0, 'A=B': 0.5})),
  (('input', 'output_1', 'output_2', 'label'), _judged('input', 'output_1', 'output_2', ['label'], {1: 1.0, 2: 0.0})),
  (('instruction', 'response1', 'response2', *_ANNOTATORS), _pandalm),
  (('problem', 'steps', 'label'), _prefixes),
  (('question', 'response', 'score'), _sampled),
  (('instruction', 'outputs'), _outputs),
  (('prompt', 'completion', 'label'), _labelled),
  (('prompt', 'completion'), _single('completion', 'rating')),
  (('prompt', 'response'), _single('response', 'rating', 'helpfulness')),
  (('original', 'translation'), _translation),
)


# Prompts and responses, as text or as messages.


def _prompt(row: Row) -> str | Messages:
  """The prompt column: text, or messages so far."""
  prompt = row.get('prompt', '')
  return _text('prompt', prompt) if isinstance(prompt, str) else _messages('prompt', prompt)


def _split(row: Row, names: Sequence[str]) -> tuple[str | Messages, list[str]]:
  """Prompt and responses where a response is text or messages, and the prompt may stand inside it."""
  values = [row[name] for name in names]
  if isinstance(values[0], str):
    texts = [_text(name, value) for name, value in zip(names, values, strict=True)]
    prompt, texts = (_prompt(row), texts) if 'prompt' in row else _split_transcripts(texts)
    return prompt, [_response(name, text) for name, text in zip(names, texts, strict=True)]
  talks = [_messages(name, value) for name, value in zip(names, values, strict=True)]
  if row.get('prompt'):
    talks = [_joined(row, name, talk) for name, talk in zip(names, talks, strict=True)]
  shared = 0
  while all(len(talk) > shared + 1 and talk[shared] == talks[0][shared] for talk in talks):
    shared += 1
  for name, talk in zip(names, talks, strict=True):
    if len(talk) != shared + 1 or talk[-1]['role'] != 'assistant':
      raise _Bad(name, "after the messages that all responses share there must be one more, the assistant's")
  return talks[0][:shared], [_response(name, talk[-1]['content']) for name, talk in zip(names, talks, strict=True)]


def _joined(row: Row, name: str, talk: Messages) -> Messages:
  """The whole conversation: messages that go on from the prompt, or that repeat it."""
  prompt = _prompt(row)
  prompt = [{'role': 'user', 'content': prompt}] if isinstance(prompt, str) else prompt
  if talk[: len(prompt)] == prompt or (isinstance(row['prompt'], str) and prompt[0] in talk):
    return talk
  if prompt[-1]['role'] == 'user' and talk[0]['role'] in ('system', 'user'):
    raise _Bad(name, f"begins with the {talk[0]['role']}'s turn and not as the prompt does: give the assistant's answer, or the prompt and the answer")
  return [*prompt, *talk]


def _split_transcripts(texts: list[str]) -> tuple[str | Messages, list[str]]:
  """Text without a prompt column: transcripts of the hh data are messages; anything else is a response to nothing."""
  if not all(text.startswith(HUMAN) and ASSISTANT in text for text in texts):
    return '', texts
  cuts = [text.rindex(ASSISTANT) for text in texts]
  if len({text[:cut] for text, cut in zip(texts, cuts, strict=True)}) > 1:  # dialogues that part earlier: the rest of each is its response
    cut = _common_prefix(texts).rfind(ASSISTANT)
    if cut < 0:
      return '', texts
    cuts = [cut] * len(texts)
  return _transcript_messages(texts[0][: cuts[0]]), [text[cut + len(ASSISTANT) :].removeprefix(' ') for text, cut in zip(texts, cuts, strict=True)]


def _transcript_messages(text: str) -> Messages:
  messages = []
  for turn in text.split(HUMAN)[1:]:
    human, *assistant = turn.split(ASSISTANT)
    messages += [{'role': 'user', 'content': human.strip()}, *({'role': 'assistant', 'content': said.strip()} for said in assistant)]
  return messages


def _common_prefix(texts: list[str]) -> str:
  low, high = min(texts), max(texts)
  return low[: next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))]


def _is_messages(value: Any) -> bool:
  return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _messages(column: str, value: Any) -> list[dict[str, str]]:
  if not _is_messages(value):
    raise _Bad(column, f'text or a list of messages is wanted, not {_short(value)}')
  for i, message in enumerate(value):
    if message.get('role') not in ROLES:
      raise _Bad(column, f'message {i} has role {_short(message.get("role"))}, not one of {", ".join(ROLES)}')
    if message.get('tool_calls'):
      raise _Bad(column, f'message {i} has tool_calls, and only role and content are read: write the calls into the content')
    if not isinstance(message.get('content'), str):
      raise _Bad(column, f'message {i} has content {_short(message.get("content"))}, not text')
  return [{'role': message['role'], 'content': _text(column, message['content'])} for message in value]


# Values.


def _text(column: str, value: Any) -> str:
  if not isinstance(value, str):
    raise _Bad(column, f'text is wanted, not {_short(value)}')
  try:
    value.encode()
  except UnicodeEncodeError as e:  # JSON can spell half of a surrogate pair, and no tokenizer takes it
    raise _Bad(column, f'character {e.start + 1} is half of a surrogate pair') from None
  return value


def _response(column: str, value: Any) -> str:
  if not _text(column, value).strip():
    raise _Bad(column, 'an empty response: there is nothing to score')
  return value


def _responses(column: str, values: Any) -> list[str]:
  if not isinstance(values, (list, tuple)) or not values:
    raise _Bad(column, f'a list of texts is wanted, not {_short(values)}')
  return [_response(f'{column}[{i}]', value) for i, value in enumerate(values)]


def _critiques(names: Sequence[str], values: Sequence[Any]) -> tuple[str, ...]:
  """One text a response, '' where there is none."""
  return tuple('' if value is None else _text(name, value) for name, value in zip(names, values, strict=True))


def _different(one: str, two: str, responses: Sequence[str]) -> None:
  if responses[0] == responses[1]:
    raise _Bad(two, f'the same as {one}: there is nothing to prefer')


def _rated(texts: Sequence[str], ratings: Sequence[float]) -> np.ndarray:
  """float32[N, N] wins by rating. A text is not compared with itself."""
  same = np.array([[one == two for two in texts] for one in texts])
  return np.where(same, 0, wins_from_ratings(ratings)).astype(np.float32)


def _tournament(value: Any, size: int) -> np.ndarray:
  """float32[N, N] of who beat whom."""
  wins = _array('wins', value).astype(np.float32)
  if wins.shape == (size, size) and not np.diag(wins).any() and np.all(wins >= 0):
    compared = wins + wins.T
    if np.all(np.isclose(compared, 1) | (compared == 0)):
      return wins
  raise _Bad('wins', f'for {size} responses a {size} x {size} matrix is wanted, wins[i][j] + wins[j][i] being 1 where compared and 0 elsewhere')


def _label(column: str, value: Any, size: int) -> np.ndarray:
  """int32 or float32 of shape [], [N] or [N, N]."""
  label = _array(column, value)
  if label.shape not in ((), (size,), (size, size)):
    raise _Bad(column, f'for {size} responses one number, {size} or {size} x {size} are wanted, not shape {label.shape}')
  return label.astype(np.float32 if label.dtype.kind == 'f' else np.int32)


def _array(column: str, value: Any) -> np.ndarray:
  try:
    array = np.asarray(value)
  except ValueError:  # ragged lists
    array = np.array('')
  if array.dtype.kind not in 'fiub' or (array.dtype.kind in 'iu' and np.any(array != array.astype(np.int32))):
    raise _Bad(column, f'numbers of 32 bits are wanted, not {_short(value)}')
  return array


def _number(row: Row, column: str, default: float) -> float:
  return default if row.get(column) is None else _finite(column, row[column])


def _numbers(row: Row, column: str, size: int) -> list[float]:
  """One number a response; null is an unknown one."""
  values = row[column]
  if not isinstance(values, (list, tuple)) or len(values) != size:
    raise _Bad(column, f'{size} numbers are wanted, one a response, not {_short(values)}')
  return [math.nan if value is None else _finite(f'{column}[{i}]', value) for i, value in enumerate(values)]


def _finite(column: str, value: Any) -> float:
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST:
    raise _Bad(column, f'a finite number is wanted, not {_short(value)}')
  return float(value)


_LARGEST = float(np.finfo(np.float32).max)


def _short(value: Any) -> str:
  return _cut(repr(value), 40)


def _cut(text: str, most: int) -> str:
  return text if len(text) <= most else f'{text[: most - 3]}...'
