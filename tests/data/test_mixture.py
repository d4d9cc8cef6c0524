"""A mixture of sources: shares of the records read are the weights, whatever the sizes."""

import collections
import json

import numpy as np
import pytest

from configs import small_world
from experiments.setup import open_data, setup
from rmjax import trees
from rmjax.data.mixture import Mixture
from rmjax.data.pipeline import train_batches
from rmjax.data.records import pairwise_wins, Record
from rmjax.data.unpaired import Unpaired
from rmjax.errors import InputError


def records(name, count):
  return [Record(f'{name}{i}', ('a', 'b'), pairwise_wins(2, [(0, 1, 1.0)]), np.full(2, np.nan, np.float32), where=f'{name}:{i}') for i in range(count)]


def encode(record):
  labels = {'wins': record.wins, 'weights': np.float32(1)}
  return trees.branch([1], [[2], [3]], labels)


def read(source, count, **changes):
  stream = train_batches(source, encode, **{**dict(rows=1, length=3, slots=1, responses=2, seed=0), **changes})
  return [int(next(stream).trees.labels['index'][0, 0]) for _ in range(count)]


def test_shares_are_the_weights_and_a_small_source_begins_anew():
  source = Mixture([records('a', 10), records('b', 1000)], [3, 1])
  found = read(source, 400)
  counts = collections.Counter('ab'[number >= 10] for number in found)
  assert abs(counts['a'] - 300) <= 1 and abs(counts['b'] - 100) <= 1
  of_a = [number for number in found if number < 10]
  assert all(sorted(of_a[k : k + 10]) == list(range(10)) for k in range(0, 290, 10))  # every epoch of its own, whole
  assert of_a[:10] != of_a[10:20]
  assert len({number for number in found if number >= 10}) == counts['b']  # none of the large one twice before it is through
  assert found != read(source, 400, seed=1)


def test_processes_share_an_epoch_without_overlap():
  source = Mixture([records('a', 10), records('b', 10)], [1, 1])
  one, two = (set(read(source, 10, shard=p, shards=2)) for p in (0, 1))
  assert not one & two and one | two == set(range(20))


def test_it_is_a_source_of_all_records():
  source = Mixture([records('a', 2), records('b', 3)], [1, 2])
  assert [source[i].prompt for i in range(len(source))] == ['a0', 'a1', 'b0', 'b1', 'b2']
  assert Unpaired(source).parts == source.parts == [(2, 1.0), (3, 2.0)]


@pytest.mark.parametrize('weights', [(1,), (1, 0), (1, -2), (1, float('nan'))])
def test_weights_that_will_not_do(weights):
  with pytest.raises(InputError, match=r'data.mixture = .*: give one positive weight for each of the 2 parts of data.train'):
    Mixture([records('a', 2), records('b', 3)], weights)


def test_a_config_mixes_files(tmp_path):
  for name, count in (('a', 4), ('b', 6)):
    rows = [json.dumps(dict(prompt=f'who asks : {name} ?', chosen='apple .', rejected='arm .')) for _ in range(count)]
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(rows))
  config = small_world.get_config()
  config.data.update(train=f'{tmp_path}/a.jsonl,{tmp_path}/b.jsonl', eval=f'{tmp_path}/b.jsonl', mixture='1, 3')
  config.data.tokenizer = str(setup(small_world.get_config()).train_source.tokenizer_path)
  train, held_out, _ = open_data(config)
  assert train.parts == [(4, 1.0), (6, 3.0)] and len(held_out) == 6 and not hasattr(held_out, 'parts')
  config.data.mixture = '1,many'
  with pytest.raises(InputError, match="config.data.mixture = '1,many': give numbers"):
    open_data(config)
