"""A backbone and a head on packed trees: what a head is given, what it costs, and what is absent."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import trees
from rmjax.backbones.decoder import DecoderConfig
from rmjax.errors import InputError
from rmjax.models import build

CONFIG = DecoderConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2)
UNTIED = dataclasses.replace(CONFIG, tie_embeddings=False, logit_softcap=3.0)
HEADS = {
  'scalar': dict(name='rmjax.heads.scalar:ScalarHead'),
  'preference': dict(name='rmjax.heads.preference:PreferenceEmbeddingHead', dim=6),
  'ordinal': dict(name='rmjax.heads.ordinal:OrdinalHead'),
  'token': dict(name='rmjax.heads.ordinal:OrdinalTokenHead', token_ids=(7, 3, 20)),
  'quality': dict(name='rmjax.heads.quality:ScalarAndQualityHead'),
}
RNG = np.random.default_rng(0)
TEXT = [RNG.integers(0, 32, size).tolist() for size in (5, 3, 6, 4)]  # a prompt and three responses


def model_of(head, config=CONFIG, **changes):
  return build(config, **{'dtype': 'float32', 'remat': 'none', 'head': HEADS[head], 'lora': dict(rank=0), **changes})


def batch_of(*groups, responses=3, length=40):
  return trees.pack([[trees.branch(prompt, answers) for prompt, *answers in groups]], length=length, slots=2, responses=responses)


@functools.cache
def params_of(head, config=CONFIG):
  return nn.unbox(model_of(head, config).init(jax.random.key(0), batch_of(TEXT)))


@functools.cache
def apply(head, config=CONFIG):
  model = model_of(head, config)
  return jax.jit(lambda params, batch: (lambda scores: (scores, model.head.preference_logits(scores), model.head.reward(scores)))(model.apply(params, batch)))


def test_a_packed_response_s_embedding_ignores_what_the_others_say():
  before, _, _ = apply('preference')(params_of('preference'), batch_of(TEXT))
  after, _, _ = apply('preference')(params_of('preference'), batch_of([*TEXT[:2], [9, 9, 9, 9, 9, 9], TEXT[3]]))
  np.testing.assert_array_equal(after.embeddings[0, 0, [0, 2]], before.embeddings[0, 0, [0, 2]])
  assert np.abs(after.embeddings[0, 0, 1] - before.embeddings[0, 0, 1]).max() > 1e-3
  np.testing.assert_array_equal(after.gate, before.gate)  # of the prompt alone
  other, _, _ = apply('preference')(params_of('preference'), batch_of([[1, *TEXT[0][1:]], *TEXT[1:]]))
  assert np.abs(other.gate[0, 0] - before.gate[0, 0]).max() > 1e-4


@pytest.mark.parametrize('head', HEADS)
def test_empty_places_and_other_trees_change_no_record(head):
  """Rewards of a group are the same alone, beside another tree, and in a batch with places for more responses."""
  run, params = apply(head), params_of(head)
  other = [[4, 5], [6], [7, 8]]
  _, logits, rewards = run(params, batch_of(TEXT))
  for batch in (batch_of(TEXT, other), batch_of(other, TEXT), batch_of(TEXT, responses=5), batch_of(other, TEXT, responses=5)):
    slot = int(batch.prompt_ends[0, 0] != batch_of(TEXT).prompt_ends[0, 0])
    _, more_logits, more_rewards = run(params, batch)
    np.testing.assert_allclose(more_logits[0, slot, :3, :3], logits[0, 0], atol=1e-5)
    np.testing.assert_allclose(more_rewards[0, slot, :3], rewards[0, 0], atol=1e-5)
    absent = np.asarray(batch.response_ends) < 0
    np.testing.assert_allclose(np.where(absent, more_rewards, 0), np.where(absent, {'ordinal': 5, 'token': 2}.get(head, 0), 0), atol=1e-6)


def test_absent_hidden_states_are_zero_and_give_no_gradient():
  params = params_of('preference')
  batch = batch_of(TEXT, responses=5)
  scores, _, _ = apply('preference')(params, batch)
  np.testing.assert_array_equal(scores.embeddings[0, 0, 3:], 0.0)
  np.testing.assert_array_equal(scores.embeddings[0, 1], 0.0)
  np.testing.assert_allclose(scores.gate[0, 1], 1 / 3, rtol=1e-6)
  loss = lambda params: jnp.sum(model_of('preference').apply(params, batch).embeddings[0, :, 3:])
  assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(jax.grad(loss)(params)))


@pytest.mark.parametrize('config', [CONFIG, UNTIED])
def test_a_head_that_reads_logits_gets_the_language_model_s(config):
  model, params = model_of('token', config), params_of('token', config)
  assert ('unembedding' in params['params']['backbone']) == (not config.tie_embeddings) and 'head' not in params['params']
  batch = batch_of(TEXT)
  logits = model.backbone.apply({'params': params['params']['backbone']}, batch.tokens, batch.positions, batch.subtree_end, method='logits')
  expected = jax.nn.log_softmax(logits[0, batch.response_ends[0, 0]][:, jnp.array([7, 3, 20])])
  scores, _, rewards = apply('token', config)(params, batch)
  np.testing.assert_allclose(scores[0, 0], expected, atol=1e-5)
  np.testing.assert_allclose(rewards[0, 0], np.exp(expected) @ [1.0, 2.0, 3.0], rtol=1e-5)
  assert np.ptp(rewards[0, 0]) > 1e-3
  assert 'unembedding' not in params_of('scalar', UNTIED)['params']['backbone']


def test_logits_are_summed_in_float32_under_bfloat16():
  for config in (CONFIG, UNTIED):
    model = model_of('token', config, dtype='bfloat16')
    hidden = jax.random.normal(jax.random.key(0), (2, 3, 16), jnp.bfloat16)
    logits = model.backbone.apply({'params': params_of('token', config)['params']['backbone']}, hidden, method='unembed')
    assert logits.shape == (2, 3, 32) and logits.dtype == jnp.float32 and jnp.any(logits != logits.astype(jnp.bfloat16))


def test_adapters_and_logits_go_together():
  model = model_of('token', UNTIED, lora=dict(rank=2, alpha=4.0, modules='.*/(query|value)$'))
  params = nn.unbox(model.init(jax.random.key(0), batch_of(TEXT)))
  assert {'unembedding', 'layers'} <= params['params']['backbone'].keys()
  assert any('_lora_a' in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))
  assert np.isfinite(model.apply(params, batch_of(TEXT))).all()


def test_a_head_s_own_complaint_comes_through():
  with pytest.raises(InputError, match='^model.head.dim = 3: it must be even and positive'):
    build(CONFIG, dtype='float32', remat='none', head={**HEADS['preference'], 'dim': 3}, lora=dict(rank=0))
  with pytest.raises(InputError, match="model.head.name = 'rmjax.heads.preference:Nothing'"):
    build(CONFIG, dtype='float32', remat='none', head=dict(name='rmjax.heads.preference:Nothing'), lora=dict(rank=0))


def test_eight_responses_cost_one_prompt_and_eight_responses():
  """FLOPs of one packed forward pass, shapes only. The network is wide, so that attention's square in the length is a small part."""
  wide = DecoderConfig(vocab_size=32, hidden_size=1024, intermediate_size=4096, num_layers=2, num_heads=8, num_kv_heads=8)
  model, prompt, response = model_of('preference', wide), 64, 16
  group = lambda count: trees.pack([[trees.branch([1] * prompt, [[2] * response] * count)]], length=prompt + count * response, slots=1, responses=count)
  params = jax.eval_shape(lambda: nn.unbox(model.init(jax.random.key(0), group(1))))

  def flops(batch):
    return jax.jit(lambda params, batch: model.head.preference_logits(model.apply(params, batch))).lower(params, batch).cost_analysis()['flops']

  def alone(length):
    return flops(trees.pack([[trees.Tree([trees.Segment([1] * length, response=0)])]], length=length, slots=1, responses=1))

  packed, ideal, pairwise = flops(group(8)), alone(prompt) + 8 * alone(response), 8 * alone(prompt + response)
  np.testing.assert_allclose(packed, ideal, rtol=0.05)
  assert packed < 0.35 * pairwise
