"""A real llama2.c tokenizer, against the ids that llama2.c's own encoder gives, and against its algorithm written plainly."""

import itertools
import json
import struct

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from rmjax.data import llama2c
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError

SAMPLE = 'Once upon a time, there was a little girl named Lily.\nShe said, "Let\'s go to the park!" 12?'


@pytest.fixture(name='stories', scope='module')
def _stories(real_data):
  return real_data / 'checkpoints' / 'stories260K'


@pytest.fixture(name='tokenizer', scope='module')
def _tokenizer(stories, tmp_path_factory):
  directory = tmp_path_factory.mktemp('stories')
  llama2c.convert(stories / 'tok512.bin', directory)
  return Tokenizer.load(directory)


def test_ids_are_llama2c_s(stories, tokenizer):
  assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (512, 1, 2, 0)
  for item in json.loads((stories / 'golden.json').read_text())['items']:
    assert tokenizer.backend.encode(item['prompt']).ids == item['ids']
    assert tokenizer.backend.decode(item['ids']) == item['prompt']
    assert tokenizer.backend.decode(item['ids'] + item['greedy_ids_64']) == item['greedy_text']


def test_what_the_vocabulary_lacks_falls_back_to_bytes(tokenizer):
  ids = tokenizer.backend.encode('ж\n🙂').ids
  assert ids[1:] == [tokenizer.backend.token_to_id('▁'), *(3 + byte for byte in 'ж\n🙂'.encode())]


@pytest.fixture(name='vocabulary', scope='module')
def _vocabulary(stories):
  table = json.loads((stories / 'tok512.json').read_text())
  tokens = [token.encode('latin-1') for token in table['tokens']]
  return tokens, {token: i for i, token in enumerate(tokens)}, table['scores']


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(st.one_of(st.sampled_from(SAMPLE), st.characters(codec='utf-8', exclude_characters='▁<')), max_size=60))
def test_any_text_is_encoded_as_the_greedy_merge_does_and_comes_back(tokenizer, vocabulary, text):
  ids = tokenizer.backend.encode(text).ids
  assert ids == _encode(text, *vocabulary)
  assert tokenizer.backend.decode(ids) == text


def _encode(text, tokens, ids, scores):
  """Characters, or their bytes; then the adjacent pair whose union has the best score, the leftmost of equals, until none is left."""
  found = []
  for character in ' ' + text if text else '':
    piece = character.encode()
    found += [ids[piece]] if piece in ids else [3 + byte for byte in piece]
  while True:
    unions = [(scores[ids[union]], -i) for i, pair in enumerate(itertools.pairwise(found)) if (union := tokens[pair[0]] + tokens[pair[1]]) in ids]
    if not unions:
      return [1, *found]
    i = -max(unions)[1]
    found[i : i + 2] = [ids[tokens[found[i]] + tokens[found[i + 1]]]]


def _file(pieces, longest=None):
  longest = max(map(len, pieces)) if longest is None else longest
  return struct.pack('<i', longest) + b''.join(struct.pack('<fi', 0.0, len(piece)) + piece for piece in pieces)


BASE = [b'<unk>', b'\n<s>\n', b'\n</s>\n', *(piece.encode() for piece in llama2c.BYTES)]


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (_file([*BASE, b'abc'])[:-1], 'cut short at byte'),
    (_file([*BASE, b'abc'])[:-8], 'cut short at byte'),
    (_file([*BASE, b'abc'], longest=9), 'cut short, or no llama2.c tokenizer'),
    (b'', 'cut short, or no llama2.c tokenizer'),
    (bytes(1000), 'cut short at byte 4'),
    (_file([*BASE, b'\xff']), 'a piece is not UTF-8'),
    (_file([*BASE, b'a', b'a']), 'a piece is there twice'),
    (_file(BASE[:100]), 'ids 3 to 258 are not the single bytes'),
  ],
)
def test_another_file_is_named(tmp_path, data, message):
  (tmp_path / 'tok.bin').write_bytes(data)
  with pytest.raises(InputError, match=f'tok.bin: .*{message}'):
    llama2c.convert(tmp_path / 'tok.bin', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_the_smallest_tokenizer_needs_no_real_data(tmp_path):
  pieces = [b' a', b'ab', b' ', b'a', b'b']  # ' a' scores above 'ab', so 'ab' merges only where no space is before it
  scores = [0.0] * len(BASE) + [-1.0, -2.0, -3.0, -4.0, -5.0]
  data = struct.pack('<i', 6) + b''.join(struct.pack('<fi', score, len(piece)) + piece for score, piece in zip(scores, BASE + pieces, strict=True))
  (tmp_path / 'tok.bin').write_bytes(data)
  llama2c.convert(tmp_path / 'tok.bin', tmp_path)
  tokenizer = Tokenizer.load(tmp_path)
  assert tokenizer.backend.encode('abab').ids == [1, 259, 263, 260]
  assert tokenizer.backend.decode([1, 259, 263, 260]) == 'abab'
