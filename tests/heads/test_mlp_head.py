"""The head with hidden layers: by hand, its sizes and scales, its contract, its way to disk and out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import small_world
from experiments import export, train_reward
from rmjax.errors import InputError
from rmjax.heads.mlp import ACTIVATIONS, MLPRewardHead
from rmjax.training.saved import load_reward_model

HIDDEN = np.asarray(jax.random.normal(jax.random.key(0), (2, 3, 16)), np.float32)
PROMPT = np.ones((2, 16), np.float32)


def unboxed(head, hidden=HIDDEN):
  return nn.unbox(head.init(jax.random.key(1), hidden, hidden[:, 0]))


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('scale', [False, True])
def test_by_hand(activation, scale):
  head = MLPRewardHead(layers=3, width=5, activation=activation, scale=scale)
  params = jax.tree.map(lambda x: x + 0.1, unboxed(head))  # biases that are not 0
  p = params['params']
  act = dict(
    silu=lambda x: x / (1 + np.exp(-x)),
    relu=lambda x: np.maximum(x, 0),
    tanh=np.tanh,
    gelu=lambda x: 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
  )[activation]
  x = HIDDEN
  for name in ('hidden_0', 'hidden_1'):
    x = act(x @ np.asarray(p[name]['kernel']) + np.asarray(p[name]['bias']))
  x = (x @ np.asarray(p['score']['kernel']) + np.asarray(p['score']['bias']))[..., 0]
  np.testing.assert_allclose(head.apply(params, HIDDEN, PROMPT), x / 4 if scale else x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(('layers', 'width', 'shapes'), [(1, 7, [(16, 1)]), (2, 0, [(16, 16), (16, 1)]), (3, 7, [(16, 7), (7, 7), (7, 1)])])
def test_depth_and_width(layers, width, shapes):
  params = unboxed(MLPRewardHead(layers=layers, width=width))['params']
  assert [params[name]['kernel'].shape for name in [*(f'hidden_{i}' for i in range(layers - 1)), 'score']] == shapes
  assert not any(np.any(layer['bias']) for layer in params.values())


def test_yojo_s_first_scores_are_near_zero_and_ours_of_unit_scale():
  hidden = np.asarray(jax.random.normal(jax.random.key(2), (1, 2000, 64)), np.float32)
  params = unboxed(MLPRewardHead(width=1024, init_std=0.01, scale=True), hidden)['params']
  for layer in params.values():
    np.testing.assert_allclose(np.std(layer['kernel']), 0.01, rtol=0.1)
  one = MLPRewardHead(layers=1)
  scores = one.apply(unboxed(one, hidden), hidden, hidden[:, 0])
  assert 0.7 < float(np.std(scores)) < 1.4


def test_scores_are_float32_and_blind_to_the_prompt_and_to_one_another():
  head = MLPRewardHead()
  params = unboxed(head)
  low = jnp.asarray(HIDDEN, jnp.bfloat16)
  scores = head.apply(params, low, PROMPT)
  assert scores.shape == (2, 3) and scores.dtype == jnp.float32
  np.testing.assert_array_equal(scores, head.apply(params, low, PROMPT + 1))
  np.testing.assert_allclose(scores[:, 1:], head.apply(params, low.at[:, 0].add(1), PROMPT)[:, 1:], rtol=1e-6)
  logits = head.preference_logits(scores)
  np.testing.assert_array_equal(logits, -jnp.swapaxes(logits, -1, -2))
  np.testing.assert_allclose(logits[0, 2, 1], scores[0, 2] - scores[0, 1])
  np.testing.assert_array_equal(head.reward(scores), scores)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(layers=0), 'model.head.layers = 0: a head has 1'),
    (dict(width=-1), 'model.head.width = -1'),
    (dict(activation='swish'), "model.head.activation = 'swish': choose one of silu, relu, tanh, gelu"),
    (dict(init_std=float('nan')), 'model.head.init_std = nan'),
  ],
)
def test_fields_that_there_are_not(fields, message):
  with pytest.raises(InputError, match=message):
    MLPRewardHead(**fields)


def test_it_is_saved_and_loaded_and_export_says_that_hugging_face_has_no_form_for_it(tmp_path):
  config = small_world.get_config()
  config.model.decoder = dict(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=2)
  config.model.head = dict(name='rmjax.heads.mlp:MLPRewardHead', layers=3, width=8)
  config.train.update(steps=2)
  config.world.update(train_size=40, eval_size=10, marks=2, grade=4.0)
  train_reward.train(config, tmp_path / 'run')
  saved = load_reward_model(tmp_path / 'run')
  assert saved.model.head == MLPRewardHead(layers=3, width=8) and saved.params['head']['hidden_1']['kernel'].shape == (8, 8)
  with pytest.raises(InputError, match='MLPRewardHead, and Hugging Face has a form for ScalarHead alone'):
    export.export(tmp_path / 'run', tmp_path / 'out')
