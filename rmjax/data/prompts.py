"""Prompts without responses, for policies to answer."""

from collections.abc import Mapping
from typing import Any, SupportsIndex

import numpy as np

from rmjax import trees
from rmjax.data.records import BadRecord, Record
from rmjax.data.sources import open_tables
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError


class Prompts:
  """Prompts by number, with the other columns of their rows.

  Attributes:
    bad: a line for each row that is left out.
  """

  def __init__(self, spec: str, *, columns: Mapping[str, str] | None = None, bad_rows: str = 'strict'):
    """Opens files with a column `prompt` of text or messages and checks every row.

    Args:
      spec: as for `rmjax.data.sources.open_source`.
      columns: our column -> the data's.
      bad_rows: 'strict' stops at the first row that cannot be used, 'lenient' leaves such rows out and lists them in `bad`.

    Raises:
      InputError: a file is missing, damaged or of another kind, or no row can be used.
      BadRecord: a bad row, if strict.
    """
    self._tables, self._name, self.bad, self._places = open_tables(spec), (columns or {}).get('prompt', 'prompt'), [], []
    for table in self._tables:
      for row in range(len(table)):
        try:
          self._read(table, row)
        except BadRecord as e:
          if bad_rows == 'strict':
            raise
          self.bad.append(str(e))
        else:
          self._places.append((table, row))
    if not self._places:
      raise InputError(f"'{spec}' has no prompt that can be used: {self.bad[0] if self.bad else 'it is empty'}")

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: SupportsIndex) -> Record:
    where, prompt, _ = self._read(*self._places[index])
    return Record(prompt, (), np.zeros((0, 0), np.float32), np.zeros(0, np.float32), where=where)

  def columns(self, index: int) -> dict[str, Any]:
    """The other columns of a prompt's row."""
    return self._read(*self._places[index])[2]

  def _read(self, table: Any, row: int) -> tuple[str, Any, dict[str, Any]]:
    where, values = table.row(row)
    if not isinstance(values, Mapping) or self._name not in values:
      raise BadRecord(f"{where}: column '{self._name}': missing; a prompt is text or messages")
    prompt = values[self._name]
    is_messages = isinstance(prompt, list) and all(isinstance(m, Mapping) and isinstance(m.get('content'), str) and 'role' in m for m in prompt)
    if not isinstance(prompt, str) and not is_messages:
      raise BadRecord(f"{where}: column '{self._name}': a prompt is text or messages, not {type(prompt).__name__}")
    if not prompt:
      raise BadRecord(f"{where}: column '{self._name}': empty")
    return where, prompt, {name: value for name, value in values.items() if name != self._name}


def encode_prompt(tokenizer: Tokenizer, record: Record, *, max_length: int, text_prompts: str = 'plain', too_long: str = 'truncate') -> trees.Tree | str:
  """A prompt's tree, without responses.

  Args:
    tokenizer: with the chat template for prompts of messages; its generation prompt is put at their end.
    record: the prompt; its responses are left out.
    max_length: most tokens.
    text_prompts: 'plain' takes text as it is, 'chat' for what the user says.
    too_long: 'truncate' cuts a longer prompt at its beginning, BOS kept; 'refuse' gives it up.

  Returns:
    The tree with label `truncated`, or why it is refused.

  Raises:
    BadRecord: the prompt has no tokens.
  """
  prompt = record.prompt
  if text_prompts == 'chat' and isinstance(prompt, str):
    prompt = [{'role': 'user', 'content': prompt}]
  ids = tokenizer.encode_opening(prompt)
  if not ids:
    raise BadRecord(f'{record.where}: the prompt has no tokens, and the tokenizer has no BOS to begin with')
  truncated = len(ids) > max_length
  if truncated and too_long == 'refuse':
    return f'{record.where}: {len(ids)} tokens, and data.max_length is {max_length}'
  if truncated:
    keep = int(ids[0] == tokenizer.bos_id)
    ids = ids[:keep] + ids[len(ids) - (max_length - keep) :]
  return trees.Tree((trees.Segment(ids),), dict(truncated=np.int32(truncated)))
