"""Written critiques: whose, of what, and that they do not depend on the batch; the world that they are tested in; the rows they are read from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.backbones.decoder import DecoderConfig
from rmjax.data.formats import to_record
from rmjax.data.ordering import permuted
from rmjax.data.records import BadRecord
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.evaluation.scoring import score_records
from rmjax.models import build
from rmjax.rewards.critiques import write_critiques
from rmjax.training.mesh import one_device_mesh
from rmjax.training.saved import init_params
from rmjax.worlds import traits
from rmjax.worlds.critiques import critique, Critiques

WORLD = dict(traits=3, responses=3, values=2, weights=((0.0, 0.0, 0.0),), interactions=((0, 1, 1.0), (1, 2, 1.0)), tie=0.5)
TOKENIZER = Tokenizer.load(Critiques.tokenizer_path)
SIZES = DecoderConfig(vocab_size=TOKENIZER.vocab_size, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=2)
MODEL = build(SIZES, dtype='float32', remat='none', head=dict(name='rmjax.heads.critique:CritiqueScorer'), lora=dict(rank=0))
PARAMS = init_params(MODEL, '', one_device_mesh(), jax.random.key(1))
ENCODE = functools.partial(TOKENIZER.encode_record, max_length=64)
RECORDS = [Critiques(split='eval', size=5, **WORLD)[i] for i in range(5)]
write = functools.partial(write_critiques, MODEL, PARAMS, tokenizer=TOKENIZER, encode=ENCODE, max_new_tokens=4, rows=16)


def test_the_likeliest_critique_is_the_decoders_own_greedy_continuation():
  """Token by token, by full forward passes of prompt, response and what was said so far; `encode` leaves nothing of the record's own critiques."""
  record = RECORDS[0]
  (written,) = write(records=[record])
  assert written.responses == record.responses and len(written.critiques) == 3 and written.critiques != record.critiques
  forward = jax.jit(lambda ids, end: MODEL.backbone.apply({'params': PARAMS['backbone']}, ids, jnp.arange(48)[None], end, method='logits'))
  for response, text in zip(record.responses, written.critiques, strict=True):
    ids, said = TOKENIZER.encode_path(record.prompt, response)[0], []
    while len(said) < 4 and TOKENIZER.eos_id not in said:
      path = [*ids, *said]
      end = jnp.where(jnp.arange(48) < len(path), len(path), 0)[None]
      said.append(int(forward(jnp.array([path + [0] * (48 - len(path))]), end)[0, len(path) - 1].argmax()))
    assert text == TOKENIZER.decode(said)


def test_what_is_drawn_depends_on_number_and_seed_not_on_the_batch():
  texts = lambda **options: [one.critiques for one in write(records=RECORDS, temperature=1.0, **options)]
  first = texts(rows=4)
  assert first == texts() != texts(seed=1)
  copies = lambda **options: {text for one in write(records=RECORDS[:1] * 5, **options) for text in one.critiques[:1]}
  assert len(copies(temperature=1.0)) > 1 == len(copies())


def test_a_refused_record_comes_back_as_it_will_be_refused_again():
  refuse = functools.partial(ENCODE, max_length=10, too_long='refuse')
  out = list(write_critiques(MODEL, PARAMS, RECORDS, TOKENIZER, refuse, max_new_tokens=4))
  assert [one.prompt for one in out] == [one.prompt for one in RECORDS] and not any(one.critiques for one in out)
  assert list(write(records=[])) == []


def test_scores_are_of_the_critiques_that_the_records_have():
  rewards = lambda records: [one.rewards for one in score_records(MODEL, PARAMS, records, ENCODE, mesh=one_device_mesh(), rows=2, length=128, responses=3)]
  own, gold = rewards(write(records=RECORDS)), rewards(RECORDS)
  assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(own, gold, strict=True))
  order = np.array([2, 0, 1])
  np.testing.assert_allclose(rewards([permuted(RECORDS[0], order)])[0], gold[0][order], atol=1e-5)  # a response keeps its critique


def test_the_worlds_critiques_say_what_gold_is():
  s = traits.Settings(**{name: value for name, value in WORLD.items() if name != 'tie'})
  assert critique(np.array([1.0, 0.0, 0.0]), s) == 'year baby minus baby corner plus .'.replace('year', traits.SCALES[0][11]).replace(
    'baby', traits.SCALES[1][0]
  ).replace('corner', traits.SCALES[2][0])
  for record in RECORDS:
    said = [text.split().count('plus') - text.split().count('minus') for text in record.critiques]
    np.testing.assert_allclose(said, record.labels['gold'])
    tied = np.equal.outer(said, said) & (record.wins + record.wins.T > 0)
    np.testing.assert_array_equal(record.wins == 0.5, tied)
  assert any((record.wins == 0.5).any() for record in RECORDS) and any((record.wins == 1).any() for record in RECORDS)
  assert Critiques(split='eval', size=5, **WORLD, critiqued=0.0)[0].critiques == ()
  half = [text for i in range(200) for text in Critiques(split='train', size=200, **WORLD, critiqued=0.5)[i].critiques]
  assert 0.4 < np.mean([text == '' for text in half]) < 0.6
  with pytest.raises(InputError, match='nothing to say'):
    Critiques(split='train', traits=3)


def test_rows_with_critiques_and_ties():
  pair = dict(prompt='p', chosen='a', rejected='b')
  assert to_record(pair, where='f:1').critiques == ()
  one = to_record({**pair, 'chosen_critique': 'good', 'rejected_critique': None, 'is_tie': True}, where='f:1')
  assert one.critiques == ('good', '') and (one.wins == [[0, 0.5], [0.5, 0]]).all()
  many = to_record(dict(prompt='p', responses=['a', 'b', 'c'], ratings=[2, 1, 2], critiques=['x', None, 'z']), where='f:1')
  assert many.critiques == ('x', '', 'z') and many.wins[0, 2] == 0.5 and many.wins[0, 1] == 1
  for bad, reason in (
    ({**pair, 'is_tie': 'yes'}, "f:1: column 'is_tie'"),
    ({**pair, 'chosen_critique': 3}, "f:1: column 'chosen_critique': text is wanted"),
    (dict(prompt='p', responses=['a', 'b'], critiques=['x']), "f:1: column 'critiques': 2 texts"),
  ):
    with pytest.raises(BadRecord, match=reason):
      to_record(bad, where='f:1')
