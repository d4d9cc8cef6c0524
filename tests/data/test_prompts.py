import json

import pytest

from rmjax.data.prompts import encode_prompt, Prompts
from rmjax.data.records import BadRecord
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.worlds.preferences import TOKENIZER

MESSAGES = [{'role': 'user', 'content': 'Count to four .'}]


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def test_text_messages_and_further_columns(tmp_path):
  file = write(tmp_path / 'p.jsonl', [{'prompt': 'one', 'answer': 3}, {'prompt': MESSAGES, 'answer': None}])
  source = Prompts(file)
  assert [record.prompt for record in (source[0], source[1])] == ['one', MESSAGES]
  assert source.columns(0) == {'answer': 3}
  assert source[0].responses == ()
  assert Prompts(write(tmp_path / 'q.jsonl', [{'question': 'one'}]), columns={'prompt': 'question'})[0].prompt == 'one'


BAD = [({'text': 'x'}, 'missing'), ({'prompt': 3}, 'not int'), ({'prompt': ''}, 'empty'), ({'prompt': [{'role': 'user'}]}, 'not list')]


@pytest.mark.parametrize('row, reason', BAD)
def test_bad_rows_are_named_or_counted(tmp_path, row, reason):
  file = write(tmp_path / 'p.jsonl', [{'prompt': 'fine'}, row])
  with pytest.raises(BadRecord, match=rf"p.jsonl:2: column 'prompt': .*{reason}"):
    Prompts(file)
  source = Prompts(file, bad_rows='lenient')
  assert (len(source), len(source.bad)) == (1, 1)
  with pytest.raises(InputError, match='has no prompt that can be used'):
    Prompts(write(tmp_path / 'q.jsonl', [row]), bad_rows='lenient')


def test_a_prompt_begins_as_the_whole_text_does(tmp_path):
  """What the policy continues is what training on the whole text has before the response."""
  tokenizer = Tokenizer.load(TOKENIZER)
  source = Prompts(write(tmp_path / 'p.jsonl', [{'prompt': 'Count to four .'}]))
  (segment,), labels = encode_prompt(tokenizer, source[0], max_length=64)
  ids, first = tokenizer.encode_path('Count to four .', ' one two')
  assert list(segment.tokens) == ids[:first]
  assert labels['truncated'] == 0
  chat = encode_prompt(tokenizer, source[0], max_length=64, text_prompts='chat').segments[0].tokens
  ids, first = tokenizer.encode_path(MESSAGES, 'one two')
  assert list(chat) == ids[:first]


def test_long_prompts_lose_their_beginning(tmp_path):
  tokenizer = Tokenizer.load(TOKENIZER)
  source = Prompts(write(tmp_path / 'p.jsonl', [{'prompt': 'Count to four . ' * 4}]))
  whole = encode_prompt(tokenizer, source[0], max_length=64).segments[0].tokens
  tree = encode_prompt(tokenizer, source[0], max_length=5)
  keep = int(whole[0] == tokenizer.bos_id)
  assert list(tree.segments[0].tokens) == [*whole[:keep], *whole[len(whole) - (5 - keep) :]]
  assert tree.labels['truncated'] == 1
  assert 'data.max_length is 5' in encode_prompt(tokenizer, source[0], max_length=5, too_long='refuse')
