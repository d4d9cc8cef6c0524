"""The world of long contexts: what its text says and does not say, at any length; its labels; and a model's scores with the length sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import trees
from rmjax.backbones import attention
from rmjax.backbones.decoder import DecoderConfig
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.losses.preference import preference_cross_entropy
from rmjax.models import build
from rmjax.training import mesh as meshes
from rmjax.training.saved import init_params
from rmjax.worlds.long_contexts import context_of, judge_error, LongContexts


def world(split='train', **settings):
  return LongContexts(split=split, size=10_000, **settings)


def facts_of(record):
  """(owner, thing) of every fact of the context."""
  return [tuple(fact.split(' has ')) for fact in context_of(record).removesuffix(' .').split(' . ')]


@pytest.mark.parametrize('wrong', ['absent', 'elsewhere'])
@pytest.mark.parametrize('length', [16, 64, 2048, 8192])
def test_the_answer_is_said_once_and_whole(wrong, length):
  for index in range(40 if length < 100 else 4):
    record = world(lengths=(length,), wrong=wrong, responses=3)[index]
    assert record.subset == str(length) and len(context_of(record).split()) == length
    owner = record.prompt.split()[-2]
    claims = [text.removesuffix(' .').split(' has ') for text in record.responses]
    assert {claim[0] for claim in claims} == {owner}
    (right,) = [claim[1] for claim, gold in zip(claims, record.labels['gold'], strict=True) if gold == 1]
    facts = facts_of(record)
    assert [fact for fact in facts if fact[0] == owner or fact[1] == right] == [(owner, right)]  # no distractor has either
    for claim in claims:
      if claim[1] != right:
        assert (claim[1] in [thing for _, thing in facts]) == (wrong == 'elsewhere')


def test_a_record_is_a_function_of_settings_seed_split_and_number():
  source, again = world(), LongContexts(split='train', size=5)
  assert [source[i].prompt for i in (4, 0, 4)] == [again[i].prompt for i in (4, 0, 4)]
  others = [source[1], LongContexts(split='train', seed=1)[0], world('eval')[0], world(chunk=4)[0]]
  assert len({record.prompt for record in [source[0], *others]}) == 5
  assert [record.prompt for record in (world(reach=100.0)[i] for i in range(5))] == [source[i].prompt for i in range(5)]  # the judge changes labels alone
  assert world(lengths=[16])[0].subset == '16'  # as JSON has them


def test_the_splits_share_no_question_with_its_answer():
  asked = {split: {record.responses[int(record.labels['gold'].argmax())] for record in map(world(split, lengths=(16,)).__getitem__, range(1500))}
           for split in ('train', 'eval')}  # fmt: skip
  assert not asked['train'] & asked['eval'] and min(map(len, asked.values())) > 100


def test_the_critical_chunk_is_anywhere_and_the_faithful_claim_too():
  records = [world(lengths=(64,), responses=3)[i] for i in range(1200)]
  eighths = np.bincount([int(8 * record.labels['place']) for record in records], minlength=8)
  assert np.abs(eighths - 150).max() < 5 * np.sqrt(1200 / 8 * 7 / 8)
  firsts = np.bincount([int(record.labels['gold'].argmax()) for record in records], minlength=3)
  assert np.abs(firsts - 400).max() < 5 * np.sqrt(1200 * 2 / 9)


def test_a_judge_errs_the_more_the_longer_the_context():
  assert judge_error(10**9, 100.0) == 0.5 and judge_error(10**9, 0.0) == 0.0
  np.testing.assert_allclose(judge_error(200, 200.0), (1 - np.exp(-1)) / 2)
  for length in (32, 256):
    records = [world(lengths=(length,), reach=200.0)[i] for i in range(1500)]
    wrong = np.mean([record.wins[record.labels['gold'].argmin(), record.labels['gold'].argmax()] for record in records])
    expected = judge_error(length, 200.0)
    assert abs(wrong - expected) < 4 * np.sqrt(expected * (1 - expected) / 1500)
    assert records[0].labels['probability'].max() == pytest.approx(1 - expected)
  clean = world(responses=3)[0]
  np.testing.assert_array_equal(clean.wins, clean.labels['gold'][:, None] * (1 - clean.labels['gold'])[None])  # unfaithful ones are not compared


def test_every_word_is_in_the_tokenizer():
  tokenizer = Tokenizer.load(LongContexts.tokenizer_path)
  record = world(lengths=(2048,), values=150)[0]
  tree = tokenizer.encode_record(record, max_length=4096)
  unknown = tokenizer.backend.token_to_id('<unk>')
  assert all(unknown not in segment.tokens for segment in tree.segments) and not tree.labels['truncated']
  assert [len(segment.tokens) for segment in tree.segments] == [2048 + 5, 5, 5]  # BOS and the question; EOS


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (dict(lengths=(8,)), 'give lengths of at least 16 words'),
    (dict(lengths=()), 'give lengths'),
    (dict(wrong='other'), "world.wrong = 'other'"),
    (dict(responses=1), 'a preference needs at least 2'),
    (dict(values=3), 'world.values = 3: from 4 to'),
    (dict(chunk=0), 'world.chunk = 0'),
    (dict(lengths=(20,), responses=4), 'a context of 20 words has no room'),
    (dict(reach=-1.0), 'world.reach = -1.0'),
    (dict(size_of=3), 'world.size_of: there is no such setting'),
  ],
)
def test_a_wrong_setting_is_named(settings, message):
  with pytest.raises(InputError, match=message):
    world(**settings)
  with pytest.raises(InputError, match="there are 'train' and 'eval'"):
    world('test')


def values_and_gradients(mesh):
  """Scores of long records, and the gradient of the loss, on a mesh."""
  tokenizer, source = Tokenizer.load(LongContexts.tokenizer_path), world(lengths=(128, 224))
  config = DecoderConfig(vocab_size=tokenizer.vocab_size, hidden_size=8, intermediate_size=16, num_layers=2, num_heads=2, num_kv_heads=1)
  model = build(config, dtype='float32', remat='none', head=dict(name='rmjax.heads.scalar:ScalarHead'), lora=dict(rank=0))
  rows = [[tokenizer.encode_record(source[index], max_length=250)] for index in range(2)]
  batch = trees.pack(rows, length=256, slots=1, responses=2)
  batch = trees.Trees(**{**vars(batch), 'labels': {'wins': batch.labels['wins']}})

  def loss(params, batch):
    scores = model.apply({'params': params}, batch)
    return jnp.sum(preference_cross_entropy(model.head.preference_logits(scores), batch.labels['wins'])), scores

  with meshes.use_mesh(mesh):
    params = init_params(model, '', mesh, jax.random.key(0))
    return jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(params, meshes.shard_batch(batch, mesh)))


def test_a_context_sharded_over_its_length_scores_and_learns_alike():
  assert attention.BLOCKWISE_FROM['cpu'] <= 256  # or this would be the dense attention
  (loss, scores), gradients = values_and_gradients(meshes.make_mesh(data=2, sequence=4))
  (expected_loss, expected_scores), expected = values_and_gradients(meshes.one_device_mesh())
  np.testing.assert_allclose(scores, expected_scores, atol=2e-5)
  np.testing.assert_allclose(loss, expected_loss, atol=2e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), gradients, expected)
  assert max(np.abs(x).max() for x in jax.tree.leaves(expected)) > 1e-2 and np.abs(scores[:, 0, 0] - scores[:, 0, 1]).min() > 1e-3
