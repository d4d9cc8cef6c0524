"""The general preference head: signs, cycles, Bradley-Terry as a special case, gates, temperature, and neutral values."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.errors import InputError
from rmjax.heads.preference import GATES, PreferenceEmbeddingHead, PreferenceScores
from rmjax.losses.preference import preference_cross_entropy

HEAD = PreferenceEmbeddingHead()
RESPONSE, PROMPT = jax.random.normal(jax.random.key(0), (2, 4, 16)), jax.random.normal(jax.random.key(1), (2, 16))
CYCLE = jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])


def scores_of(vectors, *, gate=None, temperature=1.0):
  """Scores of embeddings [N, K, 2]."""
  vectors = jnp.asarray(vectors, jnp.float32)
  return PreferenceScores(vectors, jnp.ones(vectors.shape[1]) if gate is None else jnp.asarray(gate), jnp.float32(temperature))


def circle(*degrees):
  angle = np.deg2rad(degrees)
  return np.stack([np.cos(angle), np.sin(angle)], -1)[:, None, :]


def apply(head, response=RESPONSE, prompt=PROMPT):
  params = head.init(jax.random.key(2), RESPONSE, PROMPT)
  return head.apply(params, response, prompt)


def test_the_sign_is_the_definition_s():
  logits = HEAD.preference_logits(scores_of([[[1, 0]], [[0, 1]]]))
  np.testing.assert_array_equal(logits, [[0.0, 1.0], [-1.0, 0.0]])


def test_three_points_on_a_circle_are_a_cycle():
  scores = scores_of(circle(0, 120, 240), temperature=0.1)
  logits = HEAD.preference_logits(scores)
  edges = np.array([logits[0, 1], logits[1, 2], logits[2, 0]])
  np.testing.assert_allclose(edges * 0.1, 0.866025, atol=1e-6)
  np.testing.assert_allclose(jax.nn.sigmoid(edges), 0.999827, atol=1e-6)
  np.testing.assert_allclose(preference_cross_entropy(logits, CYCLE) / 3, 1.733e-4, rtol=1e-3)
  np.testing.assert_allclose(HEAD.reward(scores), 0.0, atol=1e-5)  # nobody is best: a scalar says nothing of a cycle


def test_bradley_terry_is_a_special_case():
  r = jnp.array([0.3, -1.2, 2.0])
  scores = scores_of(jnp.stack([r, jnp.ones(3)], -1)[:, None, :])
  np.testing.assert_array_equal(HEAD.preference_logits(scores), r[:, None] - r[None, :])
  np.testing.assert_allclose(HEAD.reward(scores), r - r.mean(), atol=1e-6)


def test_a_rotation_of_each_plane_changes_nothing():
  rng = np.random.default_rng(0)
  v, gate, angle = rng.standard_normal((5, 3, 2)), rng.uniform(size=3), np.array([0.4, -2.0, 1.1])
  turn = np.stack([np.stack([np.cos(angle), -np.sin(angle)], -1), np.stack([np.sin(angle), np.cos(angle)], -1)], -2)
  one, two = (HEAD.preference_logits(scores_of(x, gate=gate.astype(np.float32))) for x in (v, np.einsum('kab,nkb->nka', turn, v)))
  np.testing.assert_allclose(one, two, atol=1e-5)
  assert np.abs(one).max() > 0.5


@pytest.mark.parametrize('gate', GATES)
def test_logits_are_skew_symmetric_and_weigh_each_plane_by_its_gate(gate):
  head = PreferenceEmbeddingHead(dim=6, gate=gate)
  scores = apply(head)
  logits = head.preference_logits(scores)
  assert scores.embeddings.shape == (2, 4, 3, 2) and scores.gate.shape == (2, 3) and scores.temperature.shape == (2,) and logits.shape == (2, 4, 4)
  np.testing.assert_allclose(logits, -jnp.swapaxes(logits, -1, -2), atol=1e-6)
  a, b = scores.embeddings[:, 1], scores.embeddings[:, 3]
  expected = jnp.sum(scores.gate * (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]), -1) / 0.1
  np.testing.assert_allclose(logits[:, 1, 3], expected, atol=1e-5)


def test_gates_and_their_scales():
  gates = {name: apply(PreferenceEmbeddingHead(dim=6, gate=name)).gate for name in GATES}
  np.testing.assert_array_equal(gates['none'], 1.0)
  np.testing.assert_allclose(gates['softmax'].sum(-1), 1.0, rtol=1e-6)
  np.testing.assert_allclose(gates['softmax_k'], 3 * gates['softmax'], rtol=1e-6)
  assert (gates['softplus'] > 0).all() and not np.allclose(gates['softplus'].sum(-1), 1.0)
  np.testing.assert_array_equal(apply(PreferenceEmbeddingHead(dim=2)).gate, 1.0)  # of one plane: no gate
  params = lambda gate: PreferenceEmbeddingHead(gate=gate).init(jax.random.key(0), RESPONSE, PROMPT)['params'].keys()
  assert params('none') == {'embedding'} and params('softmax') == {'embedding', 'eigenvalues'}


def test_the_gate_reads_the_prompt_alone_and_embeddings_their_response_alone():
  before, other, moved = apply(HEAD), apply(HEAD, response=RESPONSE.at[:, 1].add(1.0)), apply(HEAD, prompt=PROMPT + jnp.arange(16.0))
  np.testing.assert_array_equal(other.gate, before.gate)
  np.testing.assert_array_equal(other.embeddings[:, 0], before.embeddings[:, 0])
  assert (other.embeddings[:, 1] != before.embeddings[:, 1]).any()
  np.testing.assert_array_equal(moved.embeddings, before.embeddings)
  assert np.abs(moved.gate - before.gate).max() > 1e-3


def test_normalised_embeddings_bound_the_logits():
  scores = apply(HEAD, response=100 * RESPONSE)
  np.testing.assert_allclose(jnp.sum(scores.embeddings**2, (-2, -1)), 1.0, rtol=1e-5)
  assert np.abs(HEAD.preference_logits(scores)).max() <= 10
  free = apply(PreferenceEmbeddingHead(normalize=False), response=100 * RESPONSE)
  assert (jnp.sum(free.embeddings**2, (-2, -1)) > 2).all()
  tiny = 1e-8 * jnp.ones((1, 1, 16))  # shorter than 1e-6: not blown up to length 1
  params = {'params': {'embedding': {'kernel': jnp.eye(16)}}}
  np.testing.assert_allclose(PreferenceEmbeddingHead(dim=16, gate='none').apply(params, tiny, jnp.ones((1, 16))).embeddings, 1e-2, rtol=1e-5)


def test_the_initial_scale_and_dtype():
  params = PreferenceEmbeddingHead(dim=64).init(jax.random.key(0), jnp.ones((1, 1, 4095)), jnp.ones((1, 4095)))['params']
  for name, columns in (('embedding', 64), ('eigenvalues', 32)):
    kernel = params[name]['kernel'].unbox()
    assert kernel.shape == (4095, columns)
    np.testing.assert_allclose(kernel.std(), 1 / 4096, rtol=0.02)
  rough = apply(HEAD, response=RESPONSE.astype(jnp.bfloat16), prompt=PROMPT.astype(jnp.bfloat16))
  assert {x.dtype for x in rough} == {jnp.dtype(jnp.float32)}


def test_gradients_at_a_zero_vector_are_finite():
  absent = RESPONSE.at[:, 3].set(0.0)
  params = HEAD.init(jax.random.key(2), RESPONSE, PROMPT)
  loss = lambda params, response: jnp.sum(HEAD.preference_logits(HEAD.apply(params, response, PROMPT))[:, 0] ** 2)
  gradients = jax.grad(loss, argnums=(0, 1))(params, absent)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
  assert np.abs(gradients[1][:, 0]).max() > 0


def test_the_temperature_divides_and_may_be_learnt():
  warm = PreferenceEmbeddingHead(temperature=1.0)
  np.testing.assert_allclose(HEAD.preference_logits(apply(HEAD)), 10 * warm.preference_logits(apply(warm)), rtol=1e-5)
  head = PreferenceEmbeddingHead(learn_temperature=True, temperature=7.0)
  params = head.init(jax.random.key(2), RESPONSE, PROMPT)
  np.testing.assert_allclose(head.apply(params, RESPONSE, PROMPT).temperature, np.log1p(np.exp(-2.25)), rtol=1e-5)
  cold = {'params': {**params['params'], 'raw_temperature': jnp.float32(-50.0)}}
  np.testing.assert_allclose(head.apply(cold, RESPONSE, PROMPT).temperature, 1e-2, rtol=1e-6)
  sharper = jax.grad(lambda params: jnp.sum(head.preference_logits(head.apply(params, RESPONSE, PROMPT)) ** 2))(params)
  assert sharper['params']['raw_temperature'].unbox() < 0


def test_the_reward_is_the_mean_logit_over_those_who_are_there():
  scores = apply(HEAD)
  logits = HEAD.preference_logits(scores)
  np.testing.assert_allclose(HEAD.reward(scores), logits.mean(-1), atol=1e-6)
  padded = PreferenceScores(jnp.pad(scores.embeddings, ((0, 0), (0, 3), (0, 0), (0, 0))), scores.gate, scores.temperature)
  np.testing.assert_allclose(HEAD.reward(padded), jnp.pad(HEAD.reward(scores), ((0, 0), (0, 3))), atol=1e-6)  # three empty places change nothing
  np.testing.assert_allclose(2 * HEAD.reward(scores), (logits - jnp.swapaxes(logits, -1, -2)).mean(-1), atol=1e-5)  # the released rank score


def test_rewards_against_fixed_opponents():
  scores = apply(PreferenceEmbeddingHead(dim=6, gate='softplus'))
  for group in range(2):
    one = jax.tree.map(lambda x, group=group: x[group], scores)
    np.testing.assert_allclose(HEAD.reward(one, opponents=one.embeddings), HEAD.reward(one), atol=1e-5)
    absent = jnp.concatenate([one.embeddings, jnp.zeros((2, 3, 2))])
    np.testing.assert_allclose(HEAD.reward(one, opponents=absent), HEAD.reward(one), atol=1e-5)
  opponent = scores.embeddings[0, :1]
  both = HEAD.reward(scores, opponents=opponent)
  assert both.shape == (2, 4)
  np.testing.assert_allclose(both[0], HEAD.preference_logits(scores)[0, :, 0], atol=1e-5)
  np.testing.assert_allclose(HEAD.reward(scores_of([[[1, 0]]]), opponents=jnp.array([[[0.0, 1.0]]])), [1.0])


def test_groups_of_one_and_equals_are_worth_zero():
  np.testing.assert_array_equal(HEAD.reward(apply(HEAD, response=RESPONSE[:, :1])), 0.0)
  equal = apply(HEAD, response=jnp.broadcast_to(RESPONSE[:, :1], RESPONSE.shape))
  np.testing.assert_array_equal(HEAD.preference_logits(equal), 0.0)
  np.testing.assert_array_equal(HEAD.reward(equal), 0.0)
  absent = apply(HEAD, response=jnp.zeros_like(RESPONSE))
  np.testing.assert_array_equal(HEAD.reward(absent), 0.0)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(dim=5), 'model.head.dim = 5: it must be even and positive'),
    (dict(dim=0), 'model.head.dim = 0: it must be even and positive'),
    (dict(gate='sigmoid'), "model.head.gate = 'sigmoid': choose one of none, softmax, softmax_k, softplus"),
    (dict(temperature=0.0), 'model.head.temperature = 0.0: it must be positive'),
  ],
)
def test_bad_fields_are_named(fields, message):
  with pytest.raises(InputError, match=re.escape(message)):
    PreferenceEmbeddingHead(**fields)
