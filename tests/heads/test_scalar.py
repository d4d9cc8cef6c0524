"""The scalar head and its contract."""

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.heads.scalar import ScalarHead

HEAD = ScalarHead()


def test_logits_are_skew_symmetric_differences_and_rewards_the_scores():
  scores = jnp.array([[0.5, -1.0, 2.0]])
  logits = HEAD.preference_logits(scores)
  np.testing.assert_array_equal(logits, -jnp.swapaxes(logits, -1, -2))
  np.testing.assert_allclose(logits[0, 2, 1], 3.0)
  np.testing.assert_array_equal(HEAD.reward(scores), scores)


def test_scores_are_float32_and_blind_to_the_prompt_and_to_one_another():
  response, prompt = jax.random.normal(jax.random.key(0), (2, 3, 16), jnp.bfloat16), jnp.ones((2, 16), jnp.bfloat16)
  params = HEAD.init(jax.random.key(1), response, prompt)
  scores = HEAD.apply(params, response, prompt)
  assert scores.shape == (2, 3) and scores.dtype == jnp.float32
  np.testing.assert_array_equal(scores, HEAD.apply(params, response, prompt + 1))
  np.testing.assert_array_equal(scores[:, 1:], HEAD.apply(params, response.at[:, 0].add(1), prompt)[:, 1:])


def test_the_head_starts_at_unit_scale():
  kernel = ScalarHead(init_scale=2.0).init(jax.random.key(0), jnp.ones((1, 1, 4095)), jnp.ones((1, 4095)))['params']['score']['kernel'].unbox()
  assert kernel.shape == (4095, 1)
  np.testing.assert_allclose(kernel.std(), 2.0 / 64, rtol=0.05)
