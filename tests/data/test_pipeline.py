"""Batches are exact, whatever stops them."""

import functools
import json

import grain
import numpy as np
import pytest

from rmjax import trees
from rmjax.data import llama2c, pipeline
from rmjax.data.records import pairwise_wins, Record
from rmjax.data.sources import open_source
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError

SHAPE = dict(rows=3, length=24, slots=4, responses=3)


def records(count, responses=2):
  wins = pairwise_wins(responses, [(0, 1, 1.0)])
  return [Record(f'{i}', ('a',) * responses, wins, np.full(responses, np.nan, np.float32), where=f'f:{i + 1}') for i in range(count)]


def encode(record):
  """Sizes that vary with the record's number, which every token repeats; multiples of 7 are refused."""
  number = int(record.prompt)
  if number % 7 == 0:
    return f'{record.where}: unlucky'
  tokens = [number] * (1 + number % 4)
  return trees.branch([number], [tokens] * len(record.responses), {'wins': record.wins, 'truncated': np.int32(number % 2)})


def train(source, **changes):
  return pipeline.train_batches(source, encode, **{**SHAPE, 'seed': 0, **changes})


def numbers(batch):
  """Record numbers in a batch, row by row."""
  return [i for i in batch.trees.labels['index'].ravel().tolist() if i >= 0]


def contents(batch):
  """Record numbers in a batch; checks that each tree holds its own record's tokens."""
  layout = batch.trees
  found = []
  for r, slot in zip(*np.nonzero(layout.prompt_ends >= 0), strict=True):
    index = layout.labels['index'][r, slot]
    assert layout.tokens[r, layout.prompt_ends[r, slot]] == index
    assert np.all(layout.tokens[r][layout.response_ids[r] // SHAPE['responses'] == slot] == index)
    found.append(int(index))
  return found


def test_every_epoch_has_each_record_once_in_another_order():
  batches, seen, counts = train(records(50)), [], dict(records=0, refused=0, truncated=0, incompatible=0)
  while len(seen) < 2 * 42 + 20:
    batch = next(batches)
    seen += contents(batch)
    counts = {name: counts[name] + batch.counts[name] for name in counts}
  kept = [i for i in range(50) if i % 7]
  # First fit moves a tree at most within its batch, so an epoch's border may fall inside one.
  assert sorted(set(seen)) == kept
  assert all(2 <= seen.count(i) <= 3 for i in kept)
  assert seen[:42] != seen[42:84]
  assert counts['records'] - counts['refused'] == len(seen)
  assert counts['truncated'] == sum(i % 2 for i in seen)


def test_batches_depend_on_the_seed_alone():
  one, two, other = (contents(next(train(records(50), seed=seed))) for seed in (0, 0, 1))
  assert one == two != other


def test_resume_is_exact_to_the_batch():
  batches = train(records(50))
  states, expected = [], []
  for _ in range(12):
    states.append(json.loads(json.dumps(batches.get_state())))
    expected.append(next(batches))
  for state, start in zip(states, range(12), strict=True):
    again = train(records(50))
    next(again)
    again.set_state(state)
    for batch in expected[start:]:
      got = next(again)
      assert got.counts == batch.counts
      for name in ('tokens', 'response_ends'):
        np.testing.assert_array_equal(getattr(got.trees, name), getattr(batch.trees, name))


def sharded(own, shards=4, count=50):
  return pipeline.ShardedBatches(records(count), encode, **{**SHAPE, 'rows': 8}, seed=0, shards=shards, own=own)


@pytest.mark.parametrize('processes', [2, 4])
def test_the_whole_batch_does_not_depend_on_the_processes_nor_does_going_on_with_others(processes):
  each = 4 // processes
  owns = [range(i * each, (i + 1) * each) for i in range(processes)]
  whole = sharded(range(4))

  def check(streams, count):
    for _ in range(count):
      expected, parts = next(whole), [next(stream) for stream in streams]
      np.testing.assert_array_equal(np.concatenate([part.trees.tokens for part in parts]), expected.trees.tokens)
      np.testing.assert_array_equal(np.concatenate([part.trees.labels['index'] for part in parts]), expected.trees.labels['index'])
      assert {name: sum(part.counts[name] for part in parts) for name in expected.counts} == expected.counts

  streams = [sharded(own) for own in owns]
  check(streams, 4)
  state = json.loads(json.dumps({shard: place for stream in streams for shard, place in stream.get_state().items()}))
  assert state == json.loads(json.dumps(whole.get_state()))
  again = [sharded([shard]) for shard in range(4)]  # four processes go on where two or four stopped
  for stream in again:
    stream.set_state(state)
  check(again, 4)


def test_shards_share_every_record_of_an_epoch():
  batches, seen = sharded(range(4), count=200), []
  for _ in range(3):
    seen += numbers(next(batches))
  assert len(seen) > 60
  assert len(set(seen)) == len(seen)  # less than an epoch: nothing twice


def test_a_state_of_fewer_shards_is_refused():
  state = sharded(range(2), shards=2).get_state()
  with pytest.raises(InputError, match='set data.shards to 2 again'):
    sharded(range(4)).set_state(state)


@pytest.mark.parametrize('count', [60, 61])
def test_shards_share_every_epoch_without_overlap(count):
  source = [record for i, record in enumerate(records(80)) if i % 7][:count]
  parts = []
  for index in range(3):
    batches, seen = train(source, rows=1, shard=index, shards=3), []  # one row is filled in the order of reading
    while len(seen) < 63:
      seen += numbers(next(batches))
    size = len(range(index, count, 3))
    parts.append([seen[epoch * size : (epoch + 1) * size] for epoch in range(3)])
  for epoch in zip(*parts, strict=True):
    assert sorted(sum(epoch, [])) == list(range(count))
  assert len({tuple(epoch) for epoch in parts[0]}) == 3


@pytest.mark.parametrize('processes', [1, 3])
def test_evaluation_reads_everything_once_in_order_on_every_process(processes):
  source = records(50)
  shares = [
    list(pipeline.eval_batches(source, encode, **{**SHAPE, 'rows': 3}, own=range(i * 3 // processes, (i + 1) * 3 // processes))) for i in range(processes)
  ]
  assert len({len(batches) for batches in shares}) == 1
  found = sorted(sum((contents(batch) for batches in shares for batch in batches), []))
  assert found == [i for i in range(50) if i % 7]
  assert sum(batch.counts['refused'] for batch in shares[0]) == 8 and sum(batch.counts['records'] for batch in shares[0]) == 50
  assert {batch.trees.tokens.shape for batches in shares for batch in batches} == {(3 // processes, 24)}


def test_a_process_without_rows_in_the_last_batch_has_the_same_labels():
  one, two = (list(pipeline.eval_batches(records(2), encode, **{**SHAPE, 'rows': 2}, own=[i])) for i in range(2))
  assert contents(one[0]) == [1] and contents(two[0]) == []
  shapes = [{name: (x.shape, x.dtype) for name, x in batches[0].trees.labels.items()} for batches in (one, two)]
  assert shapes[0] == shapes[1] and set(shapes[0]) == {'wins', 'truncated', 'index'}


def test_batches_are_mostly_full():
  batches = train(records(200), length=64, slots=16)
  filled = [np.mean(next(batches).trees.subtree_end > 0) for _ in range(10)]
  assert np.mean(filled) > 0.9


def test_grain_s_own_check_of_checkpoints():
  source = records(30)
  dataset = grain.MapDataset.source(pipeline._Encoded(source, encode, **SHAPE)).shuffle(seed=0).to_iter_dataset()
  packed = pipeline._PackIterDataset(dataset, SHAPE, most_refused=60)
  grain.experimental.assert_equal_output_after_checkpoint(packed.map(lambda batch: batch.trees.tokens))


def test_a_source_that_is_all_refused_is_an_error_at_once():
  unlucky = [record for i, record in enumerate(records(50)) if i % 7 == 0]
  with pytest.raises(InputError, match=r'every record of the training data was refused, the last one because: f:\d+: unlucky'):
    next(train(unlucky))
  with pytest.raises(InputError, match='none of the 8 records can be evaluated on, the last one because: f:50: unlucky'):
    list(pipeline.eval_batches(unlucky, encode, **SHAPE))
  rare = [records(2)[1], *unlucky * 20]
  assert set(numbers(next(train(rare, rows=1)))) == {0}  # the usable one in 161 is found


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    (records(0), 'has 0 records for data.shards = 1: there is nothing to train on'),
    (records(10, responses=4), r'f:\d+: 4 responses, and config.train.responses is 3'),
  ],
)
def test_what_cannot_be_trained_on_is_named(source, message):
  with pytest.raises(InputError, match=message):
    next(train(source))


def test_a_tree_wider_than_a_row_is_named():
  with pytest.raises(InputError, match=r'f:\d+: prompt and responses take \d+ tokens, and a row has 4'):
    for _ in range(3):
      next(train(records(10), length=4))


def test_labels_must_be_the_same_throughout():
  odd = lambda record: trees.branch([1], [[2], [3]], {'wins': record.wins, **({'gold': np.zeros(2)} if record.prompt == '3' else {})})
  with pytest.raises(InputError, match=r"f:\d+: labels \['gold'\] are not in all records"):
    list(pipeline.eval_batches(records(5), odd, **SHAPE))


@pytest.mark.parametrize(
  ('name', 'too_long'),
  [
    ('llmbar/llmbar', 'truncate'),
    ('llmbar/llmbar', 'refuse'),
    ('hh_harmless_base/test', 'truncate'),
    ('tulu_human_eval/annotations', 'refuse'),
    ('rm_bench/chat_filtered', 'truncate'),  # six long responses each: the row is what cuts them
  ],
)
def test_real_records_go_in_and_come_out(real_data, tmp_path, name, too_long):
  llama2c.convert(real_data / 'checkpoints' / 'stories260K' / 'tok512.bin', tmp_path)
  source = open_source(f'{real_data}/{name}.jsonl.gz', bad_rows='lenient')
  encode_text = functools.partial(Tokenizer.load(tmp_path).encode_record, max_length=512, max_size=1024, too_long=too_long)
  totals, seen = dict(records=0, truncated=0, refused=0, incompatible=0), []
  for batch in pipeline.eval_batches(source, encode_text, rows=4, length=1024, slots=8, responses=6):
    totals = {count: totals[count] + batch.counts[count] for count in totals}
    seen += numbers(batch)
    for r, s in zip(*np.nonzero(batch.trees.labels['index'] >= 0), strict=True):
      assert (batch.trees.response_ends[r, s] >= 0).sum() == len(source[batch.trees.labels['index'][r, s]].responses)
  assert totals['records'] == len(source) and len(set(seen)) == len(seen) == len(source) - totals['refused']
  assert totals['truncated' if too_long == 'truncate' else 'refused'] > 0 == totals['refused' if too_long == 'truncate' else 'truncated']
