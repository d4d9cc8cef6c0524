"""A real llama2.c tokenizer, against the ids that llama2.c's own encoder gives."""

import json

import pytest

from rmjax.data import llama2c
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError


@pytest.fixture(name='stories')
def _stories(real_data):
  return real_data / 'checkpoints' / 'stories260K'


def test_ids_are_llama2c_s(stories, tmp_path):
  llama2c.convert(stories / 'tok512.bin', tmp_path)
  tokenizer = Tokenizer.load(tmp_path)
  assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (512, 1, 2)
  for item in json.loads((stories / 'golden.json').read_text())['items']:
    assert tokenizer.backend.encode(item['prompt']).ids == item['ids']
    assert tokenizer.backend.decode(item['ids']) == item['prompt']
  text = 'naïve 🙂\nnew  line'  # pieces that the vocabulary lacks fall back to bytes
  encoding = tokenizer.backend.encode(text)
  assert 0 not in encoding.ids and tokenizer.backend.decode(encoding.ids) == text


def test_a_file_cut_short_is_named(stories, tmp_path):
  (tmp_path / 'tok.bin').write_bytes((stories / 'tok512.bin').read_bytes()[:1000])
  with pytest.raises(InputError, match='tok.bin is cut short at byte'):
    llama2c.convert(tmp_path / 'tok.bin', tmp_path)
