"""Text to trees: whole paths, exact seams, templates, truncation."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from rmjax import trees
from rmjax.data.records import BadRecord, pairwise_wins, Record
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError

CHATML = (
  "{{ bos_token }}{% for message in messages %}\n{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' }}\n"
  "{% endfor %}\n{% if add_generation_prompt %}\n{{ '<|im_start|>assistant' }}\n{% endif %}"
)
TEXT = ['the cat sat on the mat', 'a naïve café, 12 times', 'emoji 🙂🙂 here', 'the the the hello hello', 'Question: what? Answer: that.'] * 3


@pytest.fixture(scope='module', name='directory')
def _directory(tmp_path_factory):
  """A byte-level BPE with merges across spaces' edges, as GPT-2's, Llama 3's and Qwen's, and a chat template."""
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  special = ['<s>', '</s>', '<|im_start|>', '<|im_end|>']
  backend.train_from_iterator(
    TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
  )
  backend.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 0)])
  path = tmp_path_factory.mktemp('tokenizer')
  backend.save(str(path / 'tokenizer.json'))
  config = {'bos_token': '<s>', 'eos_token': {'content': '</s>'}, 'pad_token': '</s>', 'chat_template': CHATML}
  (path / 'tokenizer_config.json').write_text(json.dumps(config))
  return path


@pytest.fixture(scope='module', name='tokenizer')
def _tokenizer(directory):
  return Tokenizer.load(directory)


def record(prompt, *responses, **fields):
  count = len(responses)
  wins = pairwise_wins(count, [(0, 1, 1.0)] if count > 1 else [])
  return Record(prompt, responses, wins, np.full(count, np.nan, np.float32), where='f:1', **fields)


def paths(tree):
  """Tokens of each response's path, and how many of them are the response's own."""
  found = {}
  for segment in tree.segments:
    if segment.response >= 0:
      tokens, parent = list(segment.tokens), segment.parent
      while parent >= 0:
        tokens, parent = list(tree.segments[parent].tokens) + tokens, tree.segments[parent].parent
      found[segment.response] = (tokens, len(segment.tokens))
  return [found[n] for n in sorted(found)]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(TEXT) | st.text(max_size=20), st.lists(st.sampled_from(TEXT) | st.text(min_size=1, max_size=20), min_size=1, max_size=3))
def test_every_path_is_the_whole_text_s_tokenisation(tokenizer, prompt, responses):
  tree = tokenizer.encode_record(record(prompt, *responses), max_length=1000)
  for response, (tokens, own) in zip(responses, paths(tree), strict=True):
    whole = tokenizer.backend.encode(prompt + response)
    assert tokens == [*whole.ids, tokenizer.eos_id]
    before = tokenizer.backend.decode(tokens[1 : len(tokens) - own], skip_special_tokens=False)
    assert (prompt + response).startswith(before.rstrip('\ufffd')) and len(before.rstrip('\ufffd')) <= len(prompt)  # no response character before it


def test_a_seam_that_merges_belongs_to_the_response(tokenizer):
  tree = tokenizer.encode_record(record('the c', 'at sat', 'ar'), max_length=100)
  ids = [tokenizer.backend.encode(text).ids for text in ('the cat sat', 'the car')]
  assert ids[0][2] != ids[1][2]  # ' cat' is one token: the prompt's last letter merges with the response
  assert list(tree.segments[0].tokens) == ids[0][:2]
  assert [tokens[:-1] for tokens, _ in paths(tree)] == ids


def test_prompt_tokens_that_the_response_changes_are_no_response_s():
  vocab = {token: i for i, token in enumerate(['<s>', 'a', 'b', 'c', 'd', 'bc', 'ab'])}
  backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[('b', 'c'), ('a', 'b')]))
  backend.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 0)])
  tree = Tokenizer(backend, {'bos': '<s>'}, None).encode_record(record('ab', 'c', 'd'), max_length=9)
  # 'abc' is a|bc and 'abd' is ab|d: after BOS the prompt itself differs.
  assert [(list(s.tokens), s.parent, s.response) for s in tree.segments] == [([0], -1, -1), ([1], 0, -1), ([5], 1, 0), ([6], 0, -1), ([4], 3, 1)]
  batch = trees.pack([[tree]], length=8, slots=1, responses=2)
  np.testing.assert_array_equal(batch.response_ids[0], [-1, -1, 0, -1, 1, -1, -1, -1])


def test_the_prompt_is_there_once(tokenizer):
  tree = tokenizer.encode_record(record('the cat sat on ', 'the mat', 'hello'), max_length=100)
  assert len(tree.segments) == 3 and trees.size(tree) < sum(len(tokens) for tokens, _ in paths(tree))
  assert set(tree.labels) == {'wins', 'ratings', 'weights', 'margins', 'truncated'}


MESSAGES = ({'role': 'user', 'content': 'the cat?'},)


def test_chat_template_as_transformers_renders_it(tokenizer):
  # What transformers' apply_chat_template gives for this template: trim_blocks and lstrip_blocks swallow the newlines that follow blocks.
  expected = '<s><|im_start|>user\nthe cat?<|im_end|>\n<|im_start|>assistant\n'
  assert tokenizer.render(MESSAGES, add_generation_prompt=True) == expected
  tree = tokenizer.encode_record(record(MESSAGES, 'sat', 'hello'), max_length=100)
  for response, (tokens, own) in zip(('sat', 'hello'), paths(tree), strict=True):
    text = expected + response + '<|im_end|>\n'
    assert tokens == tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert tokens.count(tokenizer.bos_id) == 1 and tokenizer.eos_id not in tokens  # neither doubled nor added
    assert tokenizer.backend.decode(tokens[-own:], skip_special_tokens=False) == response + '<|im_end|>\n'


@pytest.mark.parametrize(
  ('template', 'expected'),  # as transformers 5.23 renders them
  [
    ('{% for m in messages %}\n  {% generation %}\n  {{ m.content }}\n  {% endgeneration %}\n{% endfor %}', '  the cat?\n'),
    ("{% for m in messages %}{% if m.role == 'user' %}{% break %}{% endif %}{% endfor %}{{ messages | tojson }}", '[{"role": "user", "content": "the cat?"}]'),
    ("{{ strftime_now('%%') }}{% if tools %}tools{% endif %}{{ eos_token }}{{ unset }}", '%</s>'),
    ("{{ {'x': ['<é>', 1]} | tojson(indent=1) }}", '{\n "x": [\n  "<é>",\n  1\n ]\n}'),
  ],
)
def test_what_templates_use_is_there(tokenizer, template, expected):
  assert Tokenizer(tokenizer.backend, tokenizer.special, template).render(MESSAGES) == expected


def test_messages_without_a_template_become_a_transcript(directory):
  bare = Tokenizer.load(directory / 'tokenizer.json')
  assert not bare.has_chat_template
  messages = [*MESSAGES, {'role': 'assistant', 'content': 'sat'}, {'role': 'user', 'content': 'where?'}]
  text = '\n\nHuman: the cat?\n\nAssistant: sat\n\nHuman: where?\n\nAssistant: '
  assert bare.render(messages, add_generation_prompt=True) == text
  ((tokens, own),) = paths(bare.encode_record(record(messages, 'the mat'), max_length=100))
  assert tokens == [*bare.backend.encode(text + 'the mat').ids, bare.eos_id]  # a transcript is text: it has BOS and EOS
  assert tokens[0] == bare.bos_id and bare.backend.decode(tokens[-own:]).strip() == 'the mat'


def test_a_text_prompt_may_be_what_the_user_says(tokenizer):
  said, text = (tokenizer.encode_record(record(prompt, 'sat', 'hello'), max_length=100, text_prompts='chat') for prompt in (MESSAGES, 'the cat?'))
  assert paths(text) == paths(said)
  assert paths(text) != paths(tokenizer.encode_record(record('the cat?', 'sat', 'hello'), max_length=100))


def test_pad_may_be_eos(tokenizer):
  assert tokenizer.pad_id == tokenizer.eos_id
  tree = tokenizer.encode_record(record('the cat', ' sat', ' hello'), max_length=100)
  batch = trees.pack([[tree]], length=32, slots=1, responses=2)
  assert all(batch.tokens[0, end] == tokenizer.eos_id for end in batch.response_ends[0, 0])  # the pooled token is EOS itself, not the one before


def test_eos_in_the_text_is_not_doubled(tokenizer):
  ((tokens, _),) = paths(tokenizer.encode_record(record('the cat', ' sat</s>'), max_length=100))
  assert tokens.count(tokenizer.eos_id) == 1


@pytest.mark.parametrize('max_length', [2, 3, 4, 9, 12, 14, 20])
def test_truncation_keeps_bos_the_prompt_s_end_and_a_response(tokenizer, max_length):
  one = record('the cat sat on the mat ', 'hello hello hello', 'the mat')
  whole = tokenizer.encode_record(one, max_length=1000)
  tree = tokenizer.encode_record(one, max_length=max_length)
  longest = max(len(tokens) for tokens, _ in paths(whole))
  assert tree.labels['truncated'] == (longest > max_length)
  for (tokens, own), (full, full_own) in zip(paths(tree), paths(whole), strict=True):
    assert len(tokens) <= max_length and own >= 1 and tokens[0] == tokenizer.bos_id
    assert tokens[-own:] == full[len(full) - full_own :][:own]
    prompt, full_prompt = tokens[1:-own], full[1 : len(full) - full_own]
    assert not prompt or full_prompt[-len(prompt) :] == prompt  # cut from the left
    assert prompt == full_prompt or len(full_prompt) + 1 >= max_length  # and only where it leaves no room
  if longest > max_length:
    assert tokenizer.encode_record(one, max_length=max_length, too_long='refuse') == f'f:1: {longest} tokens, and data.max_length is {max_length}'


@settings(deadline=None, max_examples=60)
@given(
  st.lists(st.sampled_from(TEXT) | st.text(max_size=8), max_size=4).map(''.join),
  st.lists(st.sampled_from(TEXT) | st.text(min_size=1, max_size=20), min_size=1, max_size=4),
  st.integers(1, 40), st.integers(1, 60),
)  # fmt: skip
def test_a_truncated_tree_fits_and_keeps_each_response_s_beginning(tokenizer, prompt, responses, max_length, max_size):
  whole = tokenizer.encode_record(record(prompt, *responses), max_length=10_000)
  tree = tokenizer.encode_record(record(prompt, *responses), max_length=max_length, max_size=max_size)
  fits = max(len(tokens) for tokens, _ in paths(whole)) <= max_length and trees.size(whole) <= max_size
  if isinstance(tree, str):
    assert not fits and tree.startswith('f:1: ')
    return
  assert trees.size(tree) <= max_size and tree.labels['truncated'] == (not fits)
  for (tokens, own), (full, full_own) in zip(paths(tree), paths(whole), strict=True):
    assert len(tokens) <= max_length and tokens[-own:] == full[len(full) - full_own :][:own] and own >= 1
    assert tokens[0] == tokenizer.bos_id or len(tokens) < 3
  if fits:
    assert paths(tree) == paths(whole)


def test_many_responses_are_cut_at_one_depth_until_the_row_holds_them(tokenizer):
  many = record('the cat', *([' sat on the mat and the mat and the mat'] * 6), ' hello')
  whole, tree = (tokenizer.encode_record(many, max_length=100, max_size=size) for size in (None, 40))
  depths = [len(tokens) for tokens, _ in paths(tree)]
  assert len(set(depths[:6])) == 1 and 40 - 7 < trees.size(tree) <= 40  # one token more in each would be too many
  assert paths(tree)[6] == paths(whole)[6]  # the short one is whole
  refused = tokenizer.encode_record(many, max_length=100, max_size=40, too_long='refuse')
  assert refused == f'f:1: prompt and responses take {trees.size(whole)} tokens, and a row has 40'


def test_text_without_prompt_and_bos_is_a_forest(directory):
  tokenizer = Tokenizer.load(directory)
  tokenizer.backend.post_processor = processors.ByteLevel()
  tree = tokenizer.encode_record(record('', 'the cat', 'hello'), max_length=100)
  batch = trees.pack([[tree]], length=16, slots=1, responses=2)
  assert [segment.parent for segment in tree.segments] == [-1, -1]
  np.testing.assert_array_equal(batch.positions[0, batch.response_ends[0, 0]], [len(tokens) - 1 for tokens, _ in paths(tree)])


def test_save_and_load_again(tokenizer, tmp_path):
  tokenizer.save(tmp_path)
  again = Tokenizer.load(tmp_path)
  assert again.render(MESSAGES) == tokenizer.render(MESSAGES)
  assert (again.bos_id, again.eos_id, again.pad_id, again.unk_id, again.vocab_size) == (0, 1, 1, -1, tokenizer.vocab_size)


def test_bad_input_is_named(tokenizer, tmp_path):
  with pytest.raises(InputError, match='holds no tokenizer.json: put'):
    Tokenizer.load(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(InputError, match='tokenizer.json is no tokenizer'):
    Tokenizer.load(tmp_path)
  with pytest.raises(BadRecord, match='f:1: a response has no tokens'):
    tokenizer.encode_record(record('the', ''), max_length=9)
  picky = Tokenizer(tokenizer.backend, {}, "{{ raise_exception('roles must alternate') }}")
  with pytest.raises(BadRecord, match='f:1: the chat template refuses the messages: roles must alternate'):
    picky.encode_record(record(MESSAGES, 'a'), max_length=9)
  assert picky.encode_record(record(MESSAGES, 'a'), max_length=9, bad_rows='lenient') == 'f:1: the chat template refuses the messages: roles must alternate'
  with pytest.raises(InputError, match='the chat template is malformed at line 2: '):
    Tokenizer(tokenizer.backend, {}, '\n{% for %}')
  with pytest.raises(InputError, match='the chat template refuses the messages: can only concatenate'):
    Tokenizer(tokenizer.backend, {}, "{{ messages[0]['content'] + 1 }}").render(MESSAGES)
  for choice in ('too_long', 'bad_rows', 'text_prompts'):
    with pytest.raises(InputError, match=f"data.{choice} = 'cut': choose "):
      tokenizer.encode_record(record('the', 'cat'), max_length=9, **{choice: 'cut'})


def test_a_suffix_stands_in_place_of_the_end(tokenizer):
  tree = tokenizer.encode_record(record('the cat ', 'sat', 'hello there'), max_length=100, suffix='\nScore:')
  for response, (tokens, own) in zip(('sat', 'hello there'), paths(tree), strict=True):
    assert tokens == tokenizer.backend.encode('the cat ' + response + '\nScore:').ids  # tokenised as one text, and no EOS
    assert tokenizer.backend.decode(tokens[-own:]).strip() == response + '\nScore:'  # it is the response's
  batch = trees.pack([[tree]], length=64, slots=1, responses=2)
  colon = tokenizer.backend.token_to_id(':')
  assert all(batch.tokens[0, end] == colon for end in batch.response_ends[0, 0])


def test_a_suffix_is_the_last_thing_whatever_the_tokenizer_ends_with(directory):
  tokenizer = Tokenizer.load(directory)
  tokenizer.backend.post_processor = processors.TemplateProcessing(single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 1)])
  ((tokens, _),) = paths(tokenizer.encode_record(record('the ', 'cat'), max_length=100, suffix=' Score:'))
  assert tokens[0] == tokenizer.bos_id and tokens[-1] == tokenizer.backend.token_to_id(':')
  ((tokens, own),) = paths(tokenizer.encode_record(record('the ', 'cat'), max_length=100, suffix='<|im_end|>'))  # a special token of the text's own
  assert tokens[-1] == tokenizer.backend.token_to_id('<|im_end|>') and own >= 2


def test_a_suffix_stands_within_the_turn_of_a_chat_template(tokenizer):
  tree = tokenizer.encode_record(record(MESSAGES, 'sat', 'hello'), max_length=100, suffix='\nScore:')
  for response, (tokens, own) in zip(('sat', 'hello'), paths(tree), strict=True):
    text = tokenizer.render(MESSAGES, add_generation_prompt=True) + response + '\nScore:'
    assert tokens == tokenizer.backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.backend.decode(tokens[-own:], skip_special_tokens=False) == response + '\nScore:'
  with pytest.raises(BadRecord, match=r"f:1: the chat template does not keep data.suffix = 'Score: ' at the end of a response"):
    tokenizer.encode_record(record(MESSAGES, 'sat'), max_length=100, suffix='Score: ')  # the template trims it


@pytest.mark.parametrize('max_length', [8, 9, 10, 12, 14, 15])
def test_truncation_cuts_before_the_suffix(tokenizer, max_length):
  suffix = '\nScore:'
  tail = tokenizer.backend.encode(suffix).ids[1:]
  one = record('the cat sat on the mat ', 'hello hello hello', 'the mat')
  tree, whole = (tokenizer.encode_record(one, max_length=length, suffix=suffix) for length in (max_length, 1000))
  assert len(tail) < 8 and max(len(tokens) for tokens, _ in paths(whole)) > max_length
  for (tokens, own), (full, full_own) in zip(paths(tree), paths(whole), strict=True):
    kept = own - len(tail)
    assert len(tokens) <= max_length and tokens[-len(tail) :] == tail and kept >= 1
    assert tokens[-own : -len(tail)] == full[len(full) - full_own :][:kept]  # the response's beginning
  assert tree.labels['truncated'] == 1


def test_a_record_that_has_no_room_for_a_response_and_its_suffix_is_refused(tokenizer):
  one, suffix = record('the cat sat on the mat ', 'hello hello hello'), '\nScore:'
  tail = len(tokenizer.backend.encode(suffix).ids) - 1
  reason = tokenizer.encode_record(one, max_length=tail, suffix=suffix)
  assert reason.startswith('f:1: ') and reason.endswith(f'tokens, and data.max_length is {tail}')
  assert tokenizer.encode_record(one, max_length=12, suffix=suffix, too_long='refuse').startswith('f:1: ')
  with pytest.raises(BadRecord, match='f:1: a response has no tokens'):
    tokenizer.encode_record(record('the', ''), max_length=9, suffix=suffix)


def test_next_tokens_are_those_of_the_whole_text(tokenizer):
  ids = tokenizer.next_token_ids([str(i) for i in range(1, 10)], '\nScore:')
  assert len(set(ids)) == 9
  for i, token in enumerate(ids, 1):
    assert tokenizer.backend.encode(f'the cat\nScore:{i}').ids[-1] == token
  spaced = tokenizer.next_token_ids(['1', '2'], 'Score: ')
  assert spaced == ids[:2]
  assert tokenizer.next_token_ids([' cat'], 'the') == (tokenizer.backend.encode('the cat').ids[2],)


@pytest.mark.parametrize(
  ('texts', 'after', 'message'),
  [
    (['1', '10'], 'Score:', "the tokenizer splits '10' after 'Score:' into 2 tokens: 1 0; choose"),
    (['1', ''], 'Score:', "the tokenizer splits '' after 'Score:' into 0 tokens: none; choose"),
    (['he', 'at'], 'the c', "the tokenizer joins 'at' with the end of 'the c': "),
    (['1', '2', '1'], 'Score:', "the tokenizer has one token for '1' and '1' after 'Score:': choose different texts"),
  ],
)
def test_texts_that_are_not_one_token_each_are_named(tokenizer, texts, after, message):
  with pytest.raises(InputError, match=message):
    tokenizer.next_token_ids(texts, after)


def test_texts_that_the_tokenizer_does_not_know_are_named():
  backend = tokenizers.Tokenizer(models.WordLevel({'<unk>': 0, 'Score:': 1, '1': 2}, unk_token='<unk>'))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  with pytest.raises(InputError, match="the tokenizer does not know ' 7'"):
    Tokenizer(backend, {'unk': '<unk>'}, None).next_token_ids([' 1', ' 7'], 'Score:')
