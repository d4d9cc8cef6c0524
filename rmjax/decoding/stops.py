"""Stop strings on the device: an automaton that reads the text of tokens.

A string may be tokenised in many ways and end inside a token, so sequences of token ids do not find it. This does, exactly, at the cost of one look-up a token.
"""

from collections import deque
from collections.abc import Sequence
import json

from jaxtyping import Int
import numpy as np
import tokenizers

from rmjax.errors import InputError


def stop_table(token_bytes: Sequence[bytes], strings: Sequence[str]) -> Int[np.ndarray, 'states V']:
  """Transitions of the automaton that has seen a stop string.

  Args:
    token_bytes: the text of every token, as `token_bytes` gives it; tokens without text change nothing.
    strings: what ends a response where its text first holds one of them. They are found in the response alone, not across the prompt's end.

  Returns:
    next_state[state, token] int32. State 0 is the start, the last one says that a string is complete.

  Raises:
    InputError: there is no string, or one is empty.

  Reference: Aho and Corasick, Efficient String Matching (1975).
  """
  if not strings or not all(strings):
    raise InputError(f'stop strings {list(strings)!r}: give at least one, and none that is empty')
  trie, complete = [{}], set()
  for text in strings:
    state = 0
    for byte in text.encode():
      if byte not in trie[state]:
        trie[state][byte] = len(trie)
        trie.append({})
      state = trie[state][byte]
    complete.add(state)
  step = np.zeros((len(trie), 256), np.int32)  # by bytes; where the trie has no way on, that of the longest suffix that it has
  queue = deque([(0, 0)])
  while queue:
    state, suffix = queue.popleft()
    if suffix in complete:
      complete.add(state)
    if state:
      step[state] = step[suffix]
    for byte, child in trie[state].items():
      queue.append((child, int(step[suffix, byte]) if state else 0))
      step[state, byte] = child
  final = len(trie)
  table = np.full((final + 1, len(token_bytes)), final, np.int32)
  ends = np.array([state in complete for state in range(final)] + [True])
  step = np.concatenate([step, np.full((1, 256), final, np.int32)])
  for token, text in enumerate(token_bytes):
    states = np.arange(final)
    for byte in text:
      states = step[states, byte]
      states = np.where(ends[states], final, states)
    table[:-1, token] = states
  return table


def token_bytes(backend: tokenizers.Tokenizer, vocab_size: int) -> list[bytes]:
  """The bytes that every token adds to a text; none for special tokens and ids without one.

  Args:
    backend: `rmjax.data.tokenizer.Tokenizer.backend`, for instance: byte-level BPE, or pieces with a mark for spaces and with bytes as '<0x0A>'.
    vocab_size: V of the decoder, which may have more than the tokenizer.
  """
  spec = json.loads(backend.to_str())
  special = {token['id'] for token in spec.get('added_tokens') or () if token['special']}
  decoder = json.dumps(spec.get('decoder') or {})
  byte_level, byte_fallback = '"ByteLevel"' in decoder, '"ByteFallback"' in decoder
  anchor = next((i for i in range(backend.get_vocab_size()) if i not in special and backend.decode([i]).isalpha()), None)
  found = []
  for token in range(vocab_size):
    piece = None if token in special else backend.id_to_token(token)
    if piece is None:
      found.append(b'')
    elif byte_level and all(char in _BYTE_LEVEL for char in piece):
      found.append(bytes(_BYTE_LEVEL[char] for char in piece))
    elif byte_fallback and len(piece) == 6 and piece.startswith('<0x'):
      found.append(bytes([int(piece[3:5], 16)]))
    else:  # what it adds after another token: many decoders drop the space that a text begins with
      before = [] if anchor is None else [anchor]
      found.append(backend.decode([*before, token])[len(backend.decode(before)) :].encode())
  return found


def _byte_level() -> dict[str, int]:
  """Characters that stand for bytes in byte-level BPE: printable ones for themselves, the others from 256 on (GPT-2)."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_LEVEL = _byte_level()
