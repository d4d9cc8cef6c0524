"""The mixture head: probabilities that are mixtures, gates, symmetry."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.errors import InputError
from rmjax.heads.mixture import MixtureHead, MixtureScores

HEAD = MixtureHead(components=3)
HIDDEN, PROMPT = (np.asarray(jax.random.normal(jax.random.key(k), shape), np.float32) for k, shape in ((0, (2, 4, 16)), (1, (2, 16))))
SCORES = MixtureScores(
  np.asarray(2 * jax.random.normal(jax.random.key(2), (5, 4, 3))), np.asarray(jax.nn.log_softmax(jax.random.normal(jax.random.key(3), (5, 3))))
)


def test_the_logit_is_that_of_the_mixture_of_probabilities():
  logits = HEAD.preference_logits(SCORES)
  np.testing.assert_allclose(logits, -np.swapaxes(logits, -1, -2), atol=1e-6)
  for b in range(5):
    for i in range(4):
      for j in range(4):
        d = SCORES.components[b, i] - SCORES.components[b, j]
        p = np.sum(np.exp(SCORES.log_gate[b]) / (1 + np.exp(-d)))
        np.testing.assert_allclose(1 / (1 + np.exp(-logits[b, i, j])), p, rtol=1e-5)


def test_extreme_gaps_and_gates_give_numbers():
  scores = MixtureScores(jnp.array([[200.0, -200.0], [0.0, 0.0]]), jnp.array([-0.0, -1e9]))
  found = HEAD.preference_logits(scores)
  assert np.isfinite(found).all() and found[0, 1] == pytest.approx(200, rel=1e-5)


def test_one_component_is_bradley_terry():
  head = MixtureHead(components=1)
  params = nn.unbox(head.init(jax.random.key(0), HIDDEN, PROMPT))
  scores = head.apply(params, HIDDEN, PROMPT)
  np.testing.assert_allclose(scores.log_gate, 0, atol=1e-7)
  r = scores.components[..., 0]
  np.testing.assert_allclose(head.preference_logits(scores), r[..., :, None] - r[..., None, :], atol=1e-5)
  np.testing.assert_allclose(head.reward(scores), r, rtol=1e-6)


def test_the_reward_is_the_gate_s_mean():
  np.testing.assert_allclose(HEAD.reward(SCORES)[1, 2], np.exp(SCORES.log_gate[1]) @ SCORES.components[1, 2], rtol=1e-5)


@pytest.mark.parametrize('gate', ['prompt', 'static', 'uniform'])
def test_what_each_gate_reads(gate):
  head = MixtureHead(components=3, gate=gate, hidden=8)
  params = nn.unbox(head.init(jax.random.key(0), HIDDEN, PROMPT))
  apply = lambda hidden, prompt: head.apply(params, hidden, prompt)
  scores = apply(HIDDEN, PROMPT)
  assert scores.components.shape == (2, 4, 3) and scores.log_gate.shape == (2, 3) and scores.log_gate.dtype == scores.components.dtype == jnp.float32
  np.testing.assert_allclose(np.exp(scores.log_gate).sum(-1), 1, rtol=1e-6)
  assert np.array_equal(apply(HIDDEN + 1, PROMPT).log_gate, scores.log_gate) and np.array_equal(apply(HIDDEN, PROMPT + 1).components, scores.components)
  reads = not np.allclose(apply(HIDDEN, PROMPT + 1).log_gate, scores.log_gate)
  assert reads == (gate == 'prompt')
  names = set(params['params'])
  assert names == {'prompt': {'score', 'router'}, 'static': {'score', 'weights'}, 'uniform': {'score'}}[gate]
  if gate == 'prompt':
    assert params['params']['router']['hidden']['kernel'].shape == (16, 8)
  else:
    np.testing.assert_allclose(scores.log_gate, -np.log(3), rtol=1e-6)  # where it starts


def test_equal_components_stay_equal_and_the_initial_ones_differ():
  params = nn.unbox(HEAD.init(jax.random.key(0), HIDDEN, PROMPT))
  kernel = params['params']['score']['maps']['kernel']
  assert np.abs(kernel[:, 0] - kernel[:, 1]).max() > 0.05
  equal = jax.tree.map(lambda x: x, params)
  equal['params']['score']['maps']['kernel'] = jnp.broadcast_to(kernel[:, :1], kernel.shape)
  equal['params']['router']['gate'] = jax.tree.map(jnp.zeros_like, equal['params']['router']['gate'])
  gradient = jax.grad(lambda p: HEAD.preference_logits(HEAD.apply(p, HIDDEN, PROMPT))[..., 0, 1].sum())(equal)['params']['score']['maps']['kernel']
  np.testing.assert_allclose(gradient, np.broadcast_to(gradient[:, :1], gradient.shape), atol=1e-6)
  assert np.abs(gradient).max() > 0


@pytest.mark.parametrize(('fields', 'message'), [(dict(components=0), 'components = 0'), (dict(hidden=0), 'hidden = 0'), (dict(gate='soft'), "gate = 'soft'")])
def test_fields_that_there_are_not(fields, message):
  with pytest.raises(InputError, match=message):
    MixtureHead(**fields)
