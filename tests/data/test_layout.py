"""Responses in a chain: same tokens as in branches, each after the one before; what sees what; who may not say the separator."""

import functools

import jax
import numpy as np
import pytest

from rmjax import trees
from rmjax.backbones.decoder import DecoderConfig
from rmjax.data.ordering import Orders, permuted, ShuffledResponses
from rmjax.data.pipeline import train_batches
from rmjax.data.records import BadRecord, Record, wins_from_ratings
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.models import build
from rmjax.training.mesh import one_device_mesh
from rmjax.training.saved import init_params
from rmjax.worlds.traits import Traits

TOKENIZER = Tokenizer.load(Traits.tokenizer_path)
CHAIN = dict(max_length=64, layout='chain', separator='\n,\n')


def record(*responses, prompt='who asks : box ?\n', **labels):
  count = len(responses)
  return Record(prompt, responses, wins_from_ratings(np.arange(count)), np.arange(count, dtype=np.float32), where='f:1', labels=labels)


THREE = record('apple arm .', 'baby .', 'bacon basket bread .')


def test_a_chain_has_the_branches_tokens_with_the_separator_between():
  chain, branch = TOKENIZER.encode_record(THREE, **CHAIN), TOKENIZER.encode_record(THREE, max_length=64)
  assert [list(s.tokens) for s in chain.segments if s.response >= 0] == [list(s.tokens) for s in branch.segments[1:]]
  comma = TOKENIZER.backend.token_to_id(',')
  assert [(list(s.tokens), s.parent) for s in chain.segments if s.response < 0] == [(list(branch.segments[0].tokens), -1), ([comma], 1), ([comma], 3)]
  batch = trees.pack([[chain]], length=40, slots=1, responses=3)
  ends = batch.response_ends[0, 0]
  # A score is read at a response's last token, not at the separator after it.
  assert (batch.tokens[0, ends] == TOKENIZER.eos_id).all() and (batch.tokens[0, ends[:-1] + 1] == comma).all()
  used = trees.size(chain)
  np.testing.assert_array_equal(batch.positions[0, :used], np.arange(used))
  assert (batch.subtree_end[0, :used] == used).all() and set(batch.response_ids[0, ends[:-1] + 1]) == {-1}
  plain = TOKENIZER.encode_record(THREE, max_length=64, layout='chain')
  assert tuple(plain.segments) == trees.chain(branch.segments[0].tokens, [s.tokens for s in branch.segments[1:]]).segments


@pytest.fixture(scope='module', name='score')
def _score():
  model = build(
    DecoderConfig(vocab_size=TOKENIZER.vocab_size, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=2),
    dtype='float32', remat='none', head=dict(name='rmjax.heads.mlp:MLPRewardHead', width=8), lora=dict(rank=0),
  )  # fmt: skip
  params = init_params(model, '', one_device_mesh(), jax.random.key(0))
  apply = jax.jit(lambda batch: model.head.reward(model.apply({'params': params}, batch)))

  def score(record, **text):
    tree = TOKENIZER.encode_record(record, **(text or CHAIN))
    count = len(record.responses)
    batch = trees.pack([[tree._replace(labels={})]], length=64, slots=1, responses=4)
    return np.asarray(apply(batch))[0, 0, :count]

  return score


def test_the_first_score_depends_on_no_other_and_the_last_on_all(score):
  base = score(THREE)
  for place in range(3):
    changed = list(THREE.responses)
    changed[place] = 'zebra year .'
    moved = np.abs(score(record(*changed)) - base) > 1e-4
    assert moved[place:].all() and not moved[:place].any()
  more = score(record(*THREE.responses, 'window .'))
  np.testing.assert_allclose(more[:3], base, atol=1e-5)


def test_the_first_of_a_chain_has_the_branch_s_score_and_the_others_have_another(score):
  branch, chain = score(THREE, max_length=64), score(THREE)
  np.testing.assert_allclose(chain[0], branch[0], atol=1e-5)
  assert np.abs(chain[1:] - branch[1:]).min() > 1e-4


def test_branches_are_the_isolation_of_responses(score):
  """Each has the score that it has alone."""
  branch = score(THREE, max_length=64)
  alone = [score(record(response), max_length=64)[0] for response in THREE.responses]
  np.testing.assert_allclose(branch, alone, atol=1e-5)


def test_duplicates_score_alike_in_branches_and_not_in_a_chain(score):
  twice = record('apple arm .', 'apple arm .')
  branch, chain = score(twice, max_length=64), score(twice)
  assert abs(branch[0] - branch[1]) < 1e-6 and abs(chain[0] - chain[1]) > 1e-4


def test_many_trees_in_a_row_do_not_see_one_another(score):
  """The layout's own invariant, for a chain beside another tree."""
  found = [TOKENIZER.encode_record(r, **CHAIN)._replace(labels={}) for r in (record('zebra .', 'year .'), THREE)]
  batch = trees.pack([found], length=64, slots=2, responses=4)
  alone = trees.pack([[found[1]]], length=64, slots=1, responses=4)
  start = trees.size(found[0])
  mask = np.asarray(trees.attention_mask(batch.subtree_end))[0]
  assert not mask[start:, :start].any()
  np.testing.assert_array_equal(mask[start:, start:], np.asarray(trees.attention_mask(alone.subtree_end))[0][: 64 - start, : 64 - start])


@pytest.mark.parametrize('text', ['apple , arm .', 'apple .\n,\narm .', ','])
def test_a_response_that_holds_the_separator_is_an_error(text):
  bad = record('baby .', text)
  with pytest.raises(BadRecord, match=r"f:1: response 1 holds data.separator = '\\n,\\n': choose a separator that no response holds"):
    TOKENIZER.encode_record(bad, **CHAIN)
  assert 'response 1 holds data.separator' in TOKENIZER.encode_record(bad, **CHAIN, bad_rows='lenient')
  assert isinstance(TOKENIZER.encode_record(bad, max_length=64, separator='\n,\n'), trees.Tree)  # branches have none


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(layout='list'), "data.layout = 'list': choose 'branch' or 'chain'"),
    (dict(separator='<sep>'), "data.separator = '<sep>': the tokenizer does not know it"),
  ],
)
def test_a_layout_or_separator_that_there_is_not(changes, message):
  with pytest.raises(InputError, match=message):
    TOKENIZER.encode_record(THREE, **{**CHAIN, **changes})


def test_the_whole_chain_is_one_path_and_is_cut_to_its_length():
  size = trees.size(TOKENIZER.encode_record(THREE, **CHAIN))
  for most in range(14, size):
    tree = TOKENIZER.encode_record(THREE, **{**CHAIN, 'max_length': most})
    assert trees.size(tree) <= most and tree.labels['truncated'] == 1
    assert all(len(s.tokens) for s in tree.segments) and [s.response for s in tree.segments if s.response >= 0] == [0, 1, 2]
  refused = TOKENIZER.encode_record(THREE, **{**CHAIN, 'max_length': size - 1}, too_long='refuse')
  assert refused == f'f:1: prompt and responses take {size} tokens, and data.max_length is {size - 1}'
  assert TOKENIZER.encode_record(THREE, **CHAIN, max_size=size - 1, too_long='refuse').endswith(f'and a row has {size - 1}')
  assert TOKENIZER.encode_record(THREE, **{**CHAIN, 'max_length': size}).labels['truncated'] == 0


# Orders.


def test_everything_that_is_known_goes_along():
  labels = dict(gold=np.array([1.0, 2.0, 3.0]), pair=np.arange(9.0).reshape(3, 3), topic=np.int32(4))
  moved = permuted(record('a .', 'b .', 'c .', **labels), np.array([2, 0, 1]))
  assert moved.responses == ('c .', 'a .', 'b .') and moved.ratings.tolist() == [2, 0, 1] and moved.labels['topic'] == 4
  assert moved.labels['gold'].tolist() == [3, 1, 2] and moved.labels['pair'].tolist() == [[8, 6, 7], [2, 0, 1], [5, 3, 4]]
  np.testing.assert_array_equal(moved.wins, wins_from_ratings([2, 0, 1]))


SOURCE = Traits(split='train', size=12)


def test_training_reads_another_order_each_time_and_evaluation_never():
  encode = functools.partial(TOKENIZER.encode_record, **{**CHAIN, 'max_length': 128})
  read = lambda: train_batches(ShuffledResponses(SOURCE), encode, rows=1, length=128, slots=1, responses=4, seed=3)
  stream, orders = read(), {}
  for _ in range(5 * len(SOURCE)):
    batch = next(stream).trees
    number = int(batch.labels['index'][0, 0])
    gold = batch.labels['gold'][0, 0]
    known = SOURCE[number].labels['gold']
    order = tuple(int(np.argmin(abs(known - g))) for g in gold)
    np.testing.assert_allclose(known[list(order)], gold, rtol=1e-6)
    np.testing.assert_allclose(batch.labels['wins'][0, 0], SOURCE[number].wins[np.ix_(order, order)])
    orders.setdefault(number, []).append(order)
  assert len(orders) == 12 and sum(len(set(found)) > 2 for found in orders.values()) >= 11
  firsts = [order[0] for found in orders.values() for order in found]
  assert all(firsts.count(n) > 5 for n in range(4))
  assert ShuffledResponses(SOURCE)[3].responses == SOURCE[3].responses


def test_resume_goes_on_with_the_very_order():
  encode = functools.partial(TOKENIZER.encode_record, **{**CHAIN, 'max_length': 128})
  read = lambda: train_batches(ShuffledResponses(SOURCE), encode, rows=1, length=128, slots=1, responses=4, seed=3)
  one, two = read(), read()
  for _ in range(7):
    next(one)
  two.set_state(one.get_state())
  for _ in range(5):
    np.testing.assert_equal(vars(next(one).trees), vars(next(two).trees))


def test_every_response_stands_once_in_every_place():
  orders = Orders(SOURCE, 8)
  assert len(orders) == 96
  for number in (0, 7):
    found = np.array([orders[8 * number + turn].labels['order'] for turn in range(8)])
    for block in (found[:4], found[4:]):
      assert all(sorted(column) == [0, 1, 2, 3] for column in block.T)
    assert not np.array_equal(found[:4], found[4:])
    for turn in range(8):
      one = orders[8 * number + turn]
      assert one.labels['record'] == number and one.responses == tuple(SOURCE[number].responses[n] for n in found[turn])
  np.testing.assert_equal(orders[5].labels, Orders(SOURCE, 8)[5].labels)
  with pytest.raises(InputError, match='data.orders = 0'):
    Orders(SOURCE, 0)
