"""Stop strings: the automaton against a search of the text, and the texts of tokens against what a tokenizer decodes."""

import itertools
import re

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from rmjax.data import llama2c
from rmjax.decoding.stops import stop_table, token_bytes
from rmjax.errors import InputError

PIECES = [b'a', b'b', b'ab', b'aba', b'', 'ä'.encode(), 'ä'.encode()[:1], 'ä'.encode()[1:]]


def first_stop(table, tokens):
  """Number of tokens until a string is complete; None if none ever is."""
  state = 0
  for count, token in enumerate(tokens, 1):
    state = table[state, token]
    if state == len(table) - 1:
      return count
  return None


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text('abä', min_size=1, max_size=4), min_size=1, max_size=3), st.lists(st.integers(0, len(PIECES) - 1), max_size=12))
def test_it_stops_where_the_text_first_holds_a_string(strings, tokens):
  texts = itertools.accumulate((PIECES[token] for token in tokens), initial=b'')
  expected = next((count for count, text in enumerate(texts) if any(string.encode() in text for string in strings)), None)
  assert first_stop(stop_table(PIECES, strings), tokens) == expected


def test_complete_stays_complete():
  table = stop_table(PIECES, ['ba'])
  np.testing.assert_array_equal(table[-1], len(table) - 1)


def test_bytes_of_a_byte_level_tokenizer():
  text = 'Stop here: 7 × ä, “quoted”\n\n'
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
  backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
  backend.add_special_tokens(['<eos>'])
  found = token_bytes(backend, 300)
  assert b''.join(found[i] for i in backend.encode(text).ids) == text.encode()
  assert sorted(found[:256]) == [bytes([byte]) for byte in range(256)]
  assert set(found[256:]) == {b''}  # special, or none of the tokenizer's


def test_bytes_of_pieces_with_spaces_and_byte_fallback(real_data, tmp_path):
  llama2c.convert(real_data / 'checkpoints' / 'stories260K' / 'tok512.bin', tmp_path)
  backend = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
  text = 'Once upon a time, Lily said: "×".\nThe end.'
  found = token_bytes(backend, 512)
  assert b''.join(found[i] for i in backend.encode(text).ids).decode() == ' ' + text  # the tokenizer's own leading space
  table = stop_table(found, ['said:', 'end'])
  ids = backend.encode(text, add_special_tokens=False).ids
  assert 'said:' in backend.decode(ids[: first_stop(table, ids)])
  assert 'said:' not in backend.decode(ids[: first_stop(table, ids) - 1])


def test_words_come_with_the_space_between_them():
  backend = tokenizers.Tokenizer(models.WordLevel({'one': 0, 'two': 1, '<unk>': 2}, unk_token='<unk>'))
  assert token_bytes(backend, 2) == [b' one', b' two']


@pytest.mark.parametrize('strings', [[], ['a', '']])
def test_no_string_is_named(strings):
  with pytest.raises(InputError, match=re.escape(f'stop strings {strings!r}')):
    stop_table(PIECES, strings)
