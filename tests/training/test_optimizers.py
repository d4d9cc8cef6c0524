"""Schedules by hand, and which parameters an optimiser may touch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmjax.errors import InputError
from rmjax.training import optimizers

PARAMS = {'backbone': {'kernel': jnp.ones((2, 2)), 'scale': jnp.ones(2)}, 'head': {'kernel': jnp.ones((2, 1))}}


def updates_of(optimizer, gradient=0.0):
  return optimizer.update(jax.tree.map(lambda x: jnp.full_like(x, gradient), PARAMS), optimizer.init(PARAMS), PARAMS)[0]


def test_schedules():
  cosine = optimizers.make_schedule(learning_rate=1.0, steps=110, warmup=1 / 11, final=0.1)
  np.testing.assert_allclose([cosine(0), cosine(9), cosine(10), cosine(60), cosine(110)], [0.1, 1.0, 1.0, 0.55, 0.1], rtol=1e-5)
  linear = optimizers.make_schedule(learning_rate=2.0, steps=100, schedule='linear', warmup=0)
  np.testing.assert_allclose([linear(0), linear(50), linear(100)], [2.0, 1.0, 0.0], atol=1e-6)
  constant = optimizers.make_schedule(learning_rate=2.0, steps=100, schedule='constant', warmup=0.01)
  np.testing.assert_allclose([constant(0), constant(99)], 2.0)
  with pytest.raises(InputError, match="optimizer.schedule = 'step'"):
    optimizers.make_schedule(learning_rate=1.0, steps=1, schedule='step')


def test_weight_decay_spares_what_is_no_matrix():
  updates = updates_of(optimizers.make_optimizer(PARAMS, optax.constant_schedule(0.1), options=dict(weight_decay=0.5)))
  np.testing.assert_allclose(updates['backbone']['kernel'], -0.05, rtol=1e-6)
  np.testing.assert_array_equal(updates['backbone']['scale'], 0.0)


def test_frozen_parameters_stay_and_cost_no_state():
  optimizer = optimizers.make_optimizer(PARAMS, optax.constant_schedule(0.1), freeze='^backbone/', options=dict(weight_decay=0.5))
  updates = updates_of(optimizer, 1.0)
  np.testing.assert_array_equal(updates['backbone']['kernel'], 0.0)
  assert np.all(np.asarray(updates['head']['kernel']) < 0)
  sizes = [x.size for x in jax.tree.leaves(optimizer.init(PARAMS)) if x.ndim]
  assert sum(sizes) == 2 * 2  # two Adam moments of the head's two numbers


@pytest.mark.parametrize(('freeze', 'message'), [('.', 'nothing to train'), ('^nothing', 'nothing frozen')])
def test_a_freeze_that_makes_no_sense_is_refused(freeze, message):
  with pytest.raises(InputError, match=message + '; parameters are backbone/kernel, backbone/scale, head/kernel'):
    optimizers.make_optimizer(PARAMS, optax.constant_schedule(0.1), freeze=freeze)


def test_gradients_are_clipped_by_their_global_norm():
  optimizer = optimizers.make_optimizer(PARAMS, optax.constant_schedule(1.0), options=dict(b1=0.9), clip=0.5)
  _, state = optimizer.update(jax.tree.map(lambda x: jnp.full_like(x, 3.0), PARAMS), optimizer.init(PARAMS), PARAMS)
  (momentum,) = (x.mu for x in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, 'mu')) if hasattr(x, 'mu'))
  np.testing.assert_allclose(optax.tree.norm(momentum), 0.1 * 0.5, rtol=1e-5)


def test_an_unknown_optimiser_is_named():
  with pytest.raises(InputError, match="optimizer.name = 'optax:nope'"):
    optimizers.make_optimizer(PARAMS, optax.constant_schedule(1.0), name='optax:nope')
