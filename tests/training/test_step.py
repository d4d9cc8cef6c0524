"""The step is exact whatever it is cut into, and parts move only when told to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmjax.training import step as stepping


def objective(params, batch, key, step):
  """Two terms with different ragged counts, and a metric."""
  del key, step
  error = (batch['x'] @ params['reward']['w'] - batch['y']) ** 2
  sums = {'loss': {'fit': jnp.sum(batch['mask'] * error), 'size': 0.1 * jnp.sum(batch['other'] * jnp.abs(error))}, 'error': jnp.sum(error)}
  counts = {'loss': {'fit': batch['mask'].sum(), 'size': batch['other'].sum()}, 'error': jnp.float32(error.size)}
  return sums, counts


@pytest.fixture(name='batch')
def _batch():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  masks = (rng.random((2, 12)) < 0.4).astype(np.float32)
  return dict(x=draw(12, 3), y=draw(12), mask=masks[0], other=masks[1])


def state_of(optimizers, **parts):
  return stepping.init_state(parts, optimizers, jax.random.key(0))


@pytest.mark.parametrize('accumulate', [2, 3, 12])
def test_accumulation_is_exact_under_ragged_masks(batch, accumulate):
  optimizers = {'reward': optax.sgd(0.1)}
  state = state_of(optimizers, reward={'w': jnp.ones(3)})
  whole, metrics = jax.jit(stepping.make_step(objective, optimizers))(state, batch)
  cut, cut_metrics = jax.jit(stepping.make_step(objective, optimizers, accumulate=accumulate))(state, batch)
  np.testing.assert_allclose(whole.params['reward']['w'], cut.params['reward']['w'], rtol=1e-6)
  for name in metrics:
    np.testing.assert_allclose(metrics[name], cut_metrics[name], rtol=1e-5)
  error = (batch['x'] @ np.ones(3) - batch['y']) ** 2
  closed = (batch['mask'] * error).sum() / batch['mask'].sum() + 0.1 * (batch['other'] * error).sum() / batch['other'].sum()
  np.testing.assert_allclose(metrics['loss'][0], closed, rtol=1e-5)


def test_counting_costs_no_second_forward_pass(batch):
  optimizers = {'reward': optax.sgd(0.1)}
  wide = {**batch, 'x': np.ones((12, 512), np.float32)}
  deep = lambda params, batch, key, step: objective({'reward': {'w': jnp.tanh(params['reward']['m'] @ params['reward']['m'])[:, 0]}}, batch, key, step)
  state = state_of(optimizers, reward={'m': jnp.ones((512, 512))})
  flops = jax.jit(stepping.make_step(deep, optimizers)).lower(state, wide).compile().cost_analysis()['flops']
  product = 2 * 512**3
  assert flops < 3.5 * product  # one product forward, two backward; a second forward would make it 4


def test_an_empty_term_adds_nothing(batch):
  optimizers = {'reward': optax.sgd(0.1)}
  state = state_of(optimizers, reward={'w': jnp.ones(3)})
  new, metrics = stepping.make_step(objective, optimizers)(state, {**batch, 'other': np.zeros(12, np.float32)})
  assert np.isfinite(new.params['reward']['w']).all()
  np.testing.assert_allclose(metrics['loss'][0], metrics['loss/fit'][0] / metrics['loss/fit'][1], rtol=1e-6)


def test_a_resting_part_keeps_parameters_and_momentum(batch):
  both = lambda params, batch, key, step: objective({'reward': {'w': params['reward']['w'] + params['fit']['w']}}, batch, key, step)
  optimizers = {'reward': optax.adam(0.1), 'fit': optax.adam(0.1)}
  state = state_of(optimizers, reward={'w': jnp.ones(3)}, fit={'w': jnp.zeros(3)})
  step = jax.jit(stepping.make_step(both, optimizers, moves=lambda step: {'fit': step % 2 == 1}))
  one, _ = step(state, batch)
  np.testing.assert_array_equal(one.params['fit']['w'], 0.0)
  jax.tree.map(np.testing.assert_array_equal, one.opt_state['fit'], state.opt_state['fit'])
  two, _ = step(one, batch)
  assert np.all(two.params['fit']['w'] != 0) and np.all(one.params['reward']['w'] != 1)


def test_a_part_without_an_optimiser_stays(batch):
  optimizers = {'reward': optax.sgd(0.1)}
  state = state_of(optimizers, reward={'w': jnp.ones(3)}, frozen={'w': jnp.ones(2)})
  new, _ = jax.jit(stepping.make_step(objective, optimizers))(state, batch)
  np.testing.assert_array_equal(new.params['frozen']['w'], 1.0)
  assert int(new.step) == 1


def test_the_key_depends_on_the_step_alone(batch):
  noisy = lambda params, batch, key, step: ({'loss': {'noise': jax.random.normal(key) * params['reward']['w'].sum()}}, {'loss': {'noise': jnp.ones(())}})
  optimizers = {'reward': optax.sgd(0.0)}
  step = jax.jit(stepping.make_step(noisy, optimizers))
  state = state_of(optimizers, reward={'w': jnp.ones(3)})
  one, first = step(state, batch)
  _, second = step(one, batch)
  _, again = step(one, batch)
  assert first['loss'][0] != second['loss'][0]
  np.testing.assert_array_equal(second['loss'], again['loss'])
