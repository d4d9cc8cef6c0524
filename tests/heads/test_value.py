"""The value head, and values of the state before each token on trees of any shape."""

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.heads.value import ValueHead, values_before
from rmjax.trees import branch, pack


def test_the_critic_starts_at_zero_and_learns_each_signal_apart():
  head, hidden = ValueHead(num_signals=3), jax.random.normal(jax.random.key(0), (2, 5, 16), jnp.bfloat16)
  params = head.init(jax.random.key(1), hidden)
  values = head.apply(params, hidden)
  assert values.shape == (2, 5, 3) and values.dtype == jnp.float32
  np.testing.assert_array_equal(values, 0.0)
  slope = jax.grad(lambda params: jnp.sum((head.apply(params, hidden)[..., 1] - 1.0) ** 2))(params)['params']['value']
  assert np.abs(slope['kernel'].unbox()[:, 1]).min() > 0 and slope['bias'][1] < 0
  np.testing.assert_array_equal(np.asarray(slope['kernel'].unbox())[:, [0, 2]], 0.0)


def test_a_value_is_that_of_the_state_before_the_token():
  batch = pack([[branch([5, 6], [[7, 8], [9]]), branch([4], [[3, 2]])]], length=10, slots=2, responses=2)
  values = np.stack([np.arange(10.0), -np.arange(10.0)], -1)[None].astype(np.float32)
  before = values_before(values, batch)
  #                                            5  6  7  8  9 | 4  3  2 | padding
  np.testing.assert_array_equal(before[0, :, 0], [0, 0, 1, 2, 1, 0, 5, 6, 0, 0])
  np.testing.assert_array_equal(before[0, :, 1], -before[0, :, 0])


def test_what_padding_computes_is_not_read():
  batch = pack([[branch([5, 6], [[7, 8]])]], length=6, slots=1, responses=1)
  values = jnp.full((1, 6, 1), jnp.nan).at[0, :4].set(1.0)
  np.testing.assert_array_equal(values_before(values, batch)[0, :, 0], [0, 1, 1, 1, 0, 0])
