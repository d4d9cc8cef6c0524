"""Scoring a stream: every record comes out, in order, with the reward that it has alone."""

import jax
import numpy as np
import pytest

from rmjax import trees
from rmjax.backbones.decoder import Decoder, DecoderConfig
from rmjax.data.records import pairwise_wins, Record
from rmjax.evaluation.scoring import score_records
from rmjax.heads.scalar import ScalarHead
from rmjax.models import RewardModel
from rmjax.training.mesh import make_mesh

CONFIG = DecoderConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=1)


def _encode(record):
  if record.prompt == 'refuse me':
    return 'longer than 9 tokens'
  tokens = lambda text: [1 + ord(c) % 60 for c in text]
  return trees.branch(tokens(record.prompt), list(map(tokens, record.responses)), {'truncated': np.int32('t' in record.prompt)})


def _records(count=40):
  rng = np.random.default_rng(0)
  text = lambda: ''.join(rng.choice(list('abcdefgh'), rng.integers(1, 12)))
  records = [Record(text(), (text(), text()), pairwise_wins(2, [(0, 1, 1.0)]), np.full(2, np.nan), where=f'f:{k}') for k in range(count)]
  for place, prompt in ((3, 'refuse me'), (11, 'truncated'), (12, 'refuse me'), (count - 1, 'refuse me')):
    records[place] = Record(prompt, ('x', 'yy'), records[place].wins, records[place].ratings, where=f'f:{place}')
  return records


@pytest.fixture(scope='module', name='system')
def _system():
  model = RewardModel(backbone=Decoder(CONFIG), head=ScalarHead())
  example = trees.pack([[_encode(_records()[0])]], length=32, slots=1, responses=2)
  return model, jax.tree.map(lambda x: 3 * x, model.init(jax.random.key(0), example)['params']), make_mesh()


def _score(system, records, **shape):
  model, params, mesh = system
  return list(score_records(model, params, records, _encode, mesh=mesh, **shape))


def test_every_record_comes_out_in_order_with_its_own_reward(system):
  model, params, _ = system
  apply, records = jax.jit(model.apply), _records()
  scored = _score(system, records, rows=8, length=64, slots=3)
  assert [item.index for item in scored] == list(range(40))
  assert [item.where for item in scored] == [record.where for record in records]
  for item, record in zip(scored, records, strict=True):
    if record.prompt == 'refuse me':
      assert item.refused == 'longer than 9 tokens' and np.isnan(item.rewards).all() and item.rewards.shape == (2,)
      continue
    for reward, length, response in zip(item.rewards, item.lengths, record.responses, strict=True):
      alone = trees.pack([[_encode(Record(record.prompt, (response,), np.zeros((1, 1)), np.zeros(1)))]], length=32, slots=1, responses=1)
      np.testing.assert_allclose(reward, apply({'params': params}, alone)[0, 0, 0], atol=1e-5)
      assert length == len(response)
    np.testing.assert_allclose(item.logits, item.rewards[:, None] - item.rewards, atol=1e-6)
    assert item.truncated == ('t' in record.prompt)


def test_the_shape_of_batches_changes_nothing(system):
  first, second = (_score(system, _records(), **shape) for shape in (dict(rows=8, length=64, slots=3), dict(rows=16, length=32, slots=1)))
  np.testing.assert_allclose([item.rewards for item in first], [item.rewards for item in second], atol=1e-5)


def test_a_record_that_needs_more_room_gets_it(system):
  records = _records()
  wide = Record('p' * 10, tuple('abcde'[:n] * 4 for n in range(1, 6)), np.zeros((5, 5)), np.full(5, np.nan))
  found = _score(system, [records[0], wide, records[1]], rows=8, length=32, slots=2)
  assert [len(item.rewards) for item in found] == [2, 5, 2]
  np.testing.assert_allclose(found[2].rewards, _score(system, [records[1]])[0].rewards, atol=1e-5)
  alone = [_score(system, [Record(wide.prompt, (text,), np.zeros((1, 1)), np.zeros(1))])[0].rewards[0] for text in wide.responses]
  np.testing.assert_allclose(found[1].rewards, alone, atol=1e-5)


def test_memory_is_bounded(system):
  pulled = 0

  def stream():
    nonlocal pulled
    for record in _records(1000):
      pulled += 1
      yield record

  model, params, mesh = system
  ahead = [pulled - 1 - item.index for item in score_records(model, params, stream(), _encode, mesh=mesh, rows=8, length=64, slots=3)]
  assert len(ahead) == 1000 and max(ahead) <= 3 * 8 * 3  # batches of at most rows x slots: one read, one on the device, one packed


def test_one_prompt_is_one_group(system):
  one, two = _records()[:2]
  groups = [item.group for item in _score(system, [one, two, one])]
  assert groups[0] == groups[2] != groups[1]
  bare = Record('', one.responses, one.wins, one.ratings)
  encode = lambda record: trees.branch([1], [[2], [3]], {'truncated': np.int32(0)})
  model, params, mesh = system
  groups = [item.group for item in score_records(model, params, [bare, bare], encode, mesh=mesh)]
  assert groups[0] != groups[1]


def test_nothing_in_is_nothing_out(system):
  assert _score(system, []) == []
