"""The objective of reward models: metrics by hand, masks that hold, and bad configs named."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import trees
from rmjax.backbones.decoder import DecoderConfig
from rmjax.data.records import pairwise_wins
from rmjax.errors import InputError
from rmjax.heads.length import LengthBiasNet
from rmjax.models import build
from rmjax.training.reward import init_network, preference_metrics, reward_objective

SCALAR = 'rmjax.heads.scalar:ScalarHead'
LOSS = 'rmjax.losses.preference:preference_cross_entropy'
CONFIG = DecoderConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1)


def model_of(**changes):
  return build(CONFIG, **{**dict(dtype='float32', remat='none', head=dict(name='rmjax.heads.scalar:ScalarHead'), lora=dict(rank=0)), **changes})


def tree(rng, responses=2, **labels):
  text = lambda: rng.integers(1, 32, rng.integers(1, 5)).tolist()
  wins = pairwise_wins(responses, [(0, 1, 1.0)])
  known = dict(wins=wins, ratings=np.full(responses, np.nan, np.float32), weights=np.float32(1), margins=np.float32(0))
  return trees.branch(text(), [text() for _ in range(responses)], {**known, **labels})


def batch_of(rows, responses=2):
  return trees.pack(rows, length=32, slots=2, responses=responses)


def loss_of(model, batch, losses, params=None):
  params = params or {'reward': model.init(jax.random.key(0), batch)['params']}
  sums, counts = reward_objective(model, losses)(params, batch, jax.random.key(0), 0)
  return {term: sums['loss'][term] / counts['loss'][term] for term in sums['loss']}, sums, counts


def test_metrics_by_hand():
  wins = np.zeros((1, 2, 3, 3), np.float32)
  wins[0, 0] = pairwise_wins(3, [(0, 1, 1.0), (1, 2, 0.3), (0, 2, 0.5)])  # the last one is a tie, which has no right order
  zeros = np.zeros((1, 8), int)
  batch = trees.Trees(
    tokens=zeros, positions=zeros, subtree_end=np.array([[8, 8, 8, 8, 8, 0, 0, 0]]), parents=zeros, response_ids=zeros,
    prompt_ends=np.array([[1, -1]]), response_ends=np.array([[[2, 3, 4], [-1, -1, -1]]]), labels={'wins': wins},
  )  # fmt: skip
  rewards = jnp.array([[[2.0, 1.0, 1.0], [9.0, 9.0, 9.0]]])
  sums, counts = preference_metrics(rewards[..., :, None] - rewards[..., None, :], rewards, batch)
  means = {name: float(sums[name] / counts[name]) for name in sums}
  # 0 beats 1 by 1: right. 2 beats 1 with equal scores: half. The empty slot's rewards count for nothing.
  assert means == pytest.approx(dict(accuracy=0.75, margin=0.5, mean_reward=4 / 3, num_tokens=5.0))


def test_loss_is_the_plain_one_on_each_pair_alone():
  rng = np.random.default_rng(0)
  groups = [tree(rng, margins=np.float32(0.3)) for _ in range(3)]
  model, batch = model_of(), batch_of([groups[:2], groups[2:]])
  params = {'reward': model.init(jax.random.key(0), batch)['params']}
  loss, _, _ = loss_of(model, batch, {'p': dict(name=LOSS)}, params)
  alone = []
  for group in groups:
    r = model.apply({'params': params['reward']}, batch_of([[group]]))[0, 0]
    alone.append(np.log1p(np.exp(-(r[0] - r[1] - 0.3))))
  np.testing.assert_allclose(loss['p'], np.mean(alone), rtol=1e-5)


def test_empty_slots_and_unknown_labels_leave_loss_and_gradient_alone():
  rng = np.random.default_rng(1)
  group = tree(rng)
  model = model_of()
  full, sparse = batch_of([[group]]), batch_of([[group], []], responses=4)
  params = {'reward': model.init(jax.random.key(0), full)['params']}
  losses = {'p': dict(name=LOSS), 'r': dict(name='rmjax.losses.pointwise:rating_squared_error', per='rating')}
  total = lambda params, batch: sum(loss_of(model, batch, losses, params)[1]['loss'].values())
  for batch in (full, sparse):
    value, gradient = jax.value_and_grad(total)(params, batch)
    np.testing.assert_allclose(value, total(params, full), rtol=1e-5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_weights_scale_a_record_s_share():
  rng = np.random.default_rng(2)
  one, two = tree(rng), tree(rng)
  heavy = two._replace(labels={**two.labels, 'weights': np.float32(3)})
  model = model_of()
  single = [loss_of(model, batch_of([[group]]), {'p': dict(name=LOSS)})[0]['p'] for group in (one, two)]
  both = loss_of(model, batch_of([[one, heavy]]), {'p': dict(name=LOSS)})[0]['p']
  np.testing.assert_allclose(both, (single[0] + 3 * single[1]) / 4, rtol=1e-5)


def test_labels_by_name_reach_a_loss():
  rng = np.random.default_rng(3)
  rated = tree(rng, ratings=np.array([1.0, np.nan], np.float32))
  loss, _, counts = loss_of(model_of(), batch_of([[rated]]), {'r': dict(name='rmjax.losses.pointwise:rating_squared_error', per='rating', weight=2.0)})
  reward = model_of().apply({'params': model_of().init(jax.random.key(0), batch_of([[rated]]))['params']}, batch_of([[rated]]))[0, 0, 0]
  np.testing.assert_allclose(loss['r'], 2 * (reward - 1) ** 2, rtol=1e-5)
  assert counts['loss']['r'] == 1


def test_what_is_frozen_costs_no_gradient():
  batch = batch_of([[tree(np.random.default_rng(5))]])
  model = build(dataclasses.replace(CONFIG, num_layers=16), dtype='float32', remat='none', head=dict(name=SCALAR), lora=dict(rank=0))
  params = {'reward': nn.unbox(model.init(jax.random.key(0), batch))['params']}

  def gradients(freeze):
    objective = reward_objective(model, {'p': dict(name=LOSS)}, freeze=freeze)
    compiled = jax.jit(jax.grad(lambda params: sum(objective(params, batch, jax.random.key(0), 0)[0]['loss'].values()))).lower(params).compile()
    return compiled.cost_analysis()['flops'], compiled(params)['reward']

  all_flops, whole = gradients('')
  flops, part = gradients('^backbone/')
  assert flops < 0.5 * all_flops  # the backward pass ends at the head
  np.testing.assert_allclose(part['head']['score']['kernel'], whole['head']['score']['kernel'], rtol=1e-5)
  assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(part['backbone'])) and any(np.any(x) for x in jax.tree.leaves(whole['backbone']))


def test_rewards_are_float32_under_bfloat16():
  batch = batch_of([[tree(np.random.default_rng(4))]])
  model = model_of(dtype='bfloat16')
  params = model.init(jax.random.key(0), batch)
  assert model.apply(params, batch).dtype == jnp.float32
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(name='rmjax.losses.preference:nope'), "losses.p.name = 'rmjax.losses.preference:nope'"),
    (dict(name=LOSS, per='pair'), "losses.p.per = 'pair': choose"),
    (dict(name=LOSS, beta=0.1), "losses.p: .* has no argument 'beta'; it takes logits, wins, margin"),
  ],
)
def test_bad_losses_are_named(options, message):
  with pytest.raises(InputError, match=message):
    reward_objective(model_of(), {'p': options})


@pytest.mark.parametrize('changes', [dict(head=dict(name='rmjax.heads.scalar:None')), dict(head=dict(name=SCALAR, depth=2)), dict(dtype='int8')])
def test_bad_models_are_named(changes):
  with pytest.raises(InputError, match='model.(head.name|dtype) = '):
    model_of(**changes)


FIT = {'fit': dict(name='rmjax.losses.length_bias:bias_fit', per='batch'), 'rid': dict(name='rmjax.losses.length_bias:bias_decorrelate', per='batch', start=5)}


def test_a_network_of_lengths_beside_the_model_and_terms_of_the_whole_batch():
  """FiMi's two terms through the objective: each is one number a batch, starts when it should, and moves its own part alone."""
  rng = np.random.default_rng(3)
  model, network = model_of(), LengthBiasNet(size=8, hidden=4)
  batch = batch_of([[tree(rng, weights=np.float32(7)), tree(rng)], [tree(rng)]])
  params = {'reward': model.init(jax.random.key(0), batch)['params'], 'fit': init_network(network, jax.random.key(1))}
  objective = reward_objective(model, FIT, networks={'fit': network})
  rewards = model.head.reward(model.apply({'params': params['reward']}, batch))
  lengths = trees.response_lengths(batch)
  rho = abs(np.corrcoef(rewards[lengths > 0], network.apply({'params': params['fit']}, lengths)[lengths > 0])[0, 1])
  for step, started in ((4, 0), (5, 1)):
    sums, counts = objective(params, batch, jax.random.key(0), step)
    np.testing.assert_allclose([sums['loss']['fit'], sums['loss']['rid']], [-rho, started * rho], atol=1e-5)
    assert counts['loss'] == {'fit': 1, 'rid': 1}
  for term, part in (('fit', 'fit'), ('rid', 'reward')):
    gradient = jax.grad(lambda params, term=term: objective(params, batch, jax.random.key(0), 9)[0]['loss'][term])(params)
    moved = {name: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree)) > 0 for name, tree in gradient.items()}
    assert moved == {name: name == part for name in params}


def test_labelled_responses_are_counted_and_a_missing_label_is_named():
  rng = np.random.default_rng(4)
  losses = {'q': dict(name='rmjax.losses.ordinal:quality_cross_entropy', per='labelled')}
  model = model_of(head=dict(name='rmjax.heads.quality:ScalarAndQualityHead'))
  batch = batch_of([[tree(rng, quality=np.array([2, -1], np.int32)), tree(rng, quality=np.array([0, 1], np.int32))]])
  assert loss_of(model, batch, losses)[2]['loss']['q'] == 3
  with pytest.raises(InputError, match='losses.q needs `quality`, which neither the data nor a network gives'):
    loss_of(model, batch_of([[tree(rng)]]), losses)
