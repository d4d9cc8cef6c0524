"""AdamW in 8 bits: how exact its moments are, that it trains as AdamW does, and what it takes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmjax.training import adam8bit, optimizers
from rmjax.training.adam8bit import dequantize, quantize, Quantized


def tensor(key=0, shape=(64, 512), spread=3.0):
  """Values over many orders of magnitude, as second moments are."""
  rng = np.random.default_rng(key)
  return jnp.asarray(rng.choice([-1, 1], shape) * np.exp(spread * rng.standard_normal(shape)), jnp.float32)


def test_relative_errors_are_those_of_the_power_law():
  x = tensor()
  found = quantize(x)
  assert found.codes.dtype == jnp.int8 and found.codes.shape == x.shape and found.scales.shape == (64, 2)
  blocks = np.asarray(x).reshape(64, 2, 256)
  unit = (np.abs(blocks) / np.abs(blocks).max(-1, keepdims=True)) ** (1 / 4)
  bound = ((unit + 0.5 / 127) ** 4 - unit**4) * np.abs(blocks).max(-1, keepdims=True)  # half a code up: the side that is further off
  error = np.abs(np.asarray(dequantize(found)) - np.asarray(x)).reshape(blocks.shape)
  assert (error <= bound * (1 + 1e-4) + 1e-12).all()
  largest = np.abs(blocks).argmax(-1)[..., None]
  np.testing.assert_allclose(np.take_along_axis(error, largest, -1), 0, atol=1e-4)  # the largest of each block is exact


def test_quantizing_again_changes_nothing():
  once = dequantize(quantize(tensor()))
  np.testing.assert_allclose(dequantize(quantize(once)), once, rtol=1e-5)


def test_zeros_stay_zero_and_small_tensors_stay_as_they_are():
  assert not np.asarray(dequantize(quantize(jnp.zeros((64, 64))))).any()
  small = tensor(shape=(63, 65)[:1])
  assert quantize(small) is small
  assert isinstance(quantize(tensor(shape=(5000,))), Quantized)  # 5000 = 8 x 625: blocks of 8


def run(optimizer, steps=200):
  """Linear regression of 128 outputs; returns losses and the last state."""
  key = jax.random.split(jax.random.key(0), 3)
  truth, x = jax.random.normal(key[0], (64, 128)), jax.random.normal(key[1], (256, 64)) * jnp.logspace(0, -2, 64)
  loss = lambda params: jnp.mean((x @ params['kernel'] + params['bias'] - x @ truth) ** 2)
  params = {'kernel': jnp.zeros((64, 128)), 'bias': jnp.zeros(128)}

  @jax.jit
  def step(carry, _):
    params, state = carry
    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradients, state, params)
    return (optax.apply_updates(params, updates), state), value

  (params, state), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
  return np.asarray(losses), state, params


def test_it_trains_as_adamw_does():
  options = dict(b1=0.9, b2=0.95, weight_decay=0.01)
  ours, state, params = run(adam8bit.adamw_8bit(3e-2, **options))
  theirs, *_ = run(optax.adamw(3e-2, **options))
  np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
  assert theirs[-1] < 0.05 * theirs[0]
  np.testing.assert_allclose(ours, theirs, rtol=0.05, atol=0.01 * theirs[0])
  adam = state[0]
  assert adam.mu['kernel'].codes.dtype == jnp.int8 and adam.mu['bias'].dtype == jnp.float32
  taken = sum(x.nbytes for x in jax.tree.leaves(adam)) - 4 - 2 * params['bias'].nbytes
  assert taken == 2 * (64 * 128 + 64 * 1 * 4)  # a byte a value and a scale for each block of 128


def test_the_first_step_is_adamws():
  """Nothing has been quantized yet."""
  params, gradients = {'w': jnp.ones((64, 512))}, {'w': tensor(1)}
  step = lambda optimizer: optimizer.update(gradients, optimizer.init(params), params)[0]['w']
  np.testing.assert_allclose(step(adam8bit.adamw_8bit(0.1, weight_decay=0.3)), step(optax.adamw(0.1, weight_decay=0.3)), rtol=1e-4)


EIGHT_BITS, HALF = dict(name='rmjax.training.adam8bit:adamw_8bit'), dict(options=dict(mu_dtype='bfloat16'))


@pytest.mark.parametrize(('options', 'dtype'), [(EIGHT_BITS, jnp.int8), (HALF, jnp.bfloat16)])
def test_a_config_names_it(options, dtype):
  params = {'backbone': {'kernel': jnp.zeros((64, 128)), 'scale': jnp.ones(128)}}
  optimizer, _ = optimizers.from_config(params, dict(learning_rate=1e-3, clip=1.0, freeze='', **options), steps=10)
  state = optimizer.init(params)
  assert np.dtype(dtype) in {x.dtype for x in jax.tree.leaves(state)}
  updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))
