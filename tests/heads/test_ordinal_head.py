"""Heads that rate: distributions over ratings, what is made of them, and the scalar head beside a classifier of quality."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.errors import InputError
from rmjax.heads.ordinal import expectation, log_preference, OrdinalHead, OrdinalTokenHead, variance
from rmjax.heads.quality import QualityScores, ScalarAndQualityHead

HEAD = OrdinalHead()
RESPONSE, PROMPT = jax.random.normal(jax.random.key(0), (2, 3, 16)), jnp.ones((2, 16))
LOGITS = 2 * jax.random.normal(jax.random.key(1), (2, 3, 9))


def log_p(*distributions):
  with np.errstate(divide='ignore'):
    return jnp.log(jnp.array(distributions, jnp.float32))


def point(*levels, count=9):
  return log_p(*(np.arange(1, count + 1) == level for level in levels))


def test_uniform_ratings_win_4_of_9():
  p = np.exp(log_preference(log_p(np.full(9, 1 / 9), np.full(9, 1 / 9))))
  np.testing.assert_allclose(p, 4 / 9, rtol=1e-6)
  np.testing.assert_allclose(expectation(log_p(np.full(9, 1 / 9))), 5.0, rtol=1e-6)
  np.testing.assert_allclose(variance(log_p(np.full(9, 1 / 9))), 20 / 3, rtol=1e-6)


def test_higher_lower_and_tied_are_everything():
  scores = jax.nn.log_softmax(LOGITS)
  p, q = np.exp(log_preference(scores)), np.exp(np.asarray(scores))
  tie = np.einsum('bik,bjk->bij', q, q)
  np.testing.assert_allclose(p + np.swapaxes(p, -1, -2) + tie, 1.0, atol=1e-5)
  strictly_below = np.tril(np.ones((9, 9)), -1)  # [k, l] with k > l
  np.testing.assert_allclose(p, np.einsum('bik,kl,bjl->bij', q, strictly_below, q), rtol=1e-5)


def test_point_masses_are_sure_and_finite():
  p = log_preference(point(8, 2, 2))
  assert p[0, 1] == 0
  assert -1e4 < p[1, 0] < -100 and np.isfinite(p).all()
  logits = HEAD.preference_logits(point(8, 2, 2))
  assert logits[0, 1] > 100 and logits[1, 0] < -100 and logits[1, 2] == 0
  np.testing.assert_allclose(HEAD.reward(point(8, 2)), [8.0, 2.0])
  np.testing.assert_allclose(variance(point(8, 2)), 0.0)
  gradient = jax.grad(lambda x: log_preference(x)[1, 0])(point(8, 2))
  assert np.isfinite(gradient).all()


def test_sharp_but_not_certain_ratings_have_a_gradient_where_the_product_of_probabilities_underflows():
  z = jnp.stack([jnp.where(jnp.arange(9) == 1, 0.0, -150.0), jnp.where(jnp.arange(9) == 7, 0.0, -150.0)])
  assert np.exp(log_preference(z)[0, 1]) == 0
  gradient = jax.grad(lambda z: log_preference(jax.nn.log_softmax(z))[0, 1])(z)
  assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0.1


def test_the_gradient_is_the_mass_below():
  p_c, p_r = np.exp(jax.nn.log_softmax(LOGITS[0, :2]))
  gradient = jax.grad(lambda p: jnp.exp(log_preference(jnp.log(jnp.stack([p, p_r])))[0, 1]))(p_c)
  np.testing.assert_allclose(gradient, np.concatenate([[0], np.cumsum(p_r)[:-1]]), atol=1e-6)
  above = jax.grad(lambda p: jnp.exp(log_preference(jnp.log(jnp.stack([p_c, p])))[0, 1]))(p_r)
  np.testing.assert_allclose(above, 1 - np.cumsum(p_c), atol=1e-6)


def test_gumbel_noise_on_a_fine_grid_is_bradley_terry():
  grid = np.linspace(-6, 20, 2000)
  density = lambda location: np.exp(-(grid - location) - np.exp(-(grid - location)))
  scores = log_p(*(density(location) / density(location).sum() for location in (1.0, 0.0)))
  # Half of the ties, which a continuous rating has not, is missing from P.
  tie = np.sum(np.exp(scores[0] + scores[1]))
  np.testing.assert_allclose(np.exp(log_preference(scores)[0, 1]) + tie / 2, 0.731059, atol=1e-4)
  np.testing.assert_allclose(jax.nn.sigmoid(HEAD.preference_logits(scores)[0, 1]), 0.731059, atol=1e-3)
  assert tie < 0.005


def test_dice_that_beat_one_another_in_turn():
  dice = log_p(*(np.isin(np.arange(1, 10), faces) / 3 for faces in ([2, 4, 9], [1, 6, 8], [3, 5, 7])))
  logits = HEAD.preference_logits(dice)
  np.testing.assert_allclose([logits[0, 1], logits[1, 2], logits[2, 0]], np.log(5 / 4), rtol=1e-5)
  np.testing.assert_allclose(HEAD.reward(dice), 5.0, rtol=1e-6)  # and the mean ratings know nothing of it


def test_no_table_of_pairs_of_ratings_is_made():
  big = jax.ShapeDtypeStruct((64, 512), jnp.float32)
  compiled = jax.jit(log_preference).lower(big).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * 64 * 64 * 512 * 4  # [N, N, L] a few times; [N, N, L, L] is 512 times


@pytest.mark.parametrize('head', [HEAD, OrdinalTokenHead(token_ids=(3, 1, 4))])
def test_logits_are_skew_symmetric_and_equals_are_even(head):
  scores = jax.nn.log_softmax(LOGITS)
  logits = head.preference_logits(scores)
  np.testing.assert_allclose(logits, -jnp.swapaxes(logits, -1, -2), atol=1e-6)
  higher = np.swapaxes(np.exp(log_preference(scores)), -1, -2)
  np.testing.assert_allclose(jax.nn.sigmoid(-logits), higher / (higher + np.swapaxes(higher, -1, -2)), rtol=1e-5)
  tied = jnp.broadcast_to(scores[:, :1], scores.shape)
  np.testing.assert_array_equal(head.preference_logits(tied), 0.0)
  np.testing.assert_array_equal(head.reward(tied), jnp.broadcast_to(head.reward(tied)[:, :1], (2, 3)))
  np.testing.assert_array_equal(head.preference_logits(scores[:, :1]), 0.0)


def test_the_dense_head_gives_log_probabilities_and_is_blind_to_the_prompt():
  params = HEAD.init(jax.random.key(1), RESPONSE, PROMPT)
  scores = HEAD.apply(params, RESPONSE.astype(jnp.bfloat16), PROMPT)
  assert scores.shape == (2, 3, 9) and scores.dtype == jnp.float32
  np.testing.assert_allclose(jnp.exp(scores).sum(-1), 1.0, rtol=1e-5)
  np.testing.assert_array_equal(HEAD.apply(params, RESPONSE, PROMPT), HEAD.apply(params, RESPONSE, PROMPT + 1))
  assert (HEAD.reward(scores) > 1).all() and (HEAD.reward(scores) < 9).all()
  absent = HEAD.apply(params, jnp.zeros_like(RESPONSE), PROMPT)
  np.testing.assert_allclose(HEAD.reward(absent), 5.0, rtol=1e-6)
  kernel = OrdinalHead(levels=5).init(jax.random.key(0), jnp.ones((1, 1, 4095)), jnp.ones((1, 4095)))['params']['rating']['kernel'].unbox()
  assert kernel.shape == (4095, 5)
  np.testing.assert_allclose(kernel.std(), 1 / 64, rtol=0.02)


def test_the_token_head_renormalises_over_its_tokens():
  head = OrdinalTokenHead(token_ids=[7, 2, 5])
  assert not head.init(jax.random.key(0), LOGITS, PROMPT)
  scores = head.apply({}, LOGITS, PROMPT)
  whole = np.exp(jax.nn.log_softmax(LOGITS))[..., [7, 2, 5]]
  np.testing.assert_allclose(jnp.exp(scores), whole / whole.sum(-1, keepdims=True), rtol=1e-5)
  elsewhere = LOGITS.at[..., 0].add(30.0)  # mass on other words is no rating
  np.testing.assert_array_equal(head.apply({}, elsewhere, PROMPT), scores)
  assert head.apply({}, LOGITS.astype(jnp.bfloat16), PROMPT).dtype == jnp.float32


def test_the_quality_head_prefers_by_its_reward_alone():
  head = ScalarAndQualityHead()
  params = head.init(jax.random.key(0), RESPONSE, PROMPT)
  scores = head.apply(params, RESPONSE, PROMPT)
  assert scores.reward.shape == (2, 3) and scores.quality_logits.shape == (2, 3, 3)
  other = QualityScores(scores.reward, scores.quality_logits + jnp.arange(3.0))
  np.testing.assert_array_equal(head.preference_logits(other), scores.reward[..., :, None] - scores.reward[..., None, :])
  np.testing.assert_array_equal(head.reward(other), scores.reward)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: OrdinalHead(levels=1), 'model.head.levels = 1: '),
    (lambda: ScalarAndQualityHead(levels=1), 'model.head.levels = 1: '),
    (lambda: OrdinalTokenHead(), 'model.head.token_ids = (): '),
    (lambda: OrdinalTokenHead(token_ids=(3, 3)), 'model.head.token_ids = (3, 3): '),
    (lambda: OrdinalTokenHead(token_ids=(3, -1)), 'model.head.token_ids = (3, -1): '),
    (lambda: OrdinalTokenHead(token_ids=(3, 9)).apply({}, LOGITS, PROMPT), 'model.head.token_ids = (3, 9): the model has 9 tokens'),
  ],
)
def test_bad_fields_are_named(make, message):
  with pytest.raises(InputError, match=re.escape(message)):
    make()
