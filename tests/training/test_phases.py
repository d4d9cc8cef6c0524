"""FiMi's three stages, and that a part that rests keeps its momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rmjax.training.phases import warmup_fit_alternate
from rmjax.training.step import init_state, make_step


def moving(step, **options):
  return {part: bool(on) for part, on in warmup_fit_alternate(jnp.asarray(step), **options).items()}


def test_stages_by_step():
  parts = [''.join(part[0] for part, on in moving(step, warmup=3, fit=2, period=4).items() if on) for step in range(5 + 12)]
  assert parts == ['r'] * 3 + ['f'] * 2 + ['f'] * 4 + ['r'] * 4 + ['f'] * 4


def test_joint_training_moves_both():
  assert [moving(step, warmup=0, fit=0, period=0) for step in range(3)] == [dict(reward=True, fit=True)] * 3


@pytest.mark.parametrize('steps', [3, 5, 9, 13])
def test_a_part_that_rests_keeps_its_parameters_and_its_momentum(steps):
  """Each part ends where it would be had it alone made its own steps: nothing leaks from the steps at which it rested."""
  options = dict(warmup=3, fit=2, period=4)
  optimizers = {part: optax.adam(0.1) for part in ('reward', 'fit')}
  objective = lambda params, batch, key, step: ({'loss': {'a': params['reward'] ** 2 + (params['fit'] - 1) ** 2}}, {'loss': {'a': jnp.ones(())}})
  run = lambda moves, count: _run(objective, optimizers, moves, count)
  state = run(dict(moves=lambda step: warmup_fit_alternate(step, **options)), steps)
  own = {part: sum(moving(step, **options)[part] for step in range(steps)) for part in optimizers}
  for part, count in own.items():
    alone = run({}, count)  # the two parts' gradients do not depend on one another
    jax.tree.map(np.testing.assert_array_equal, (state.params[part], state.opt_state[part]), (alone.params[part], alone.opt_state[part]))


def _run(objective, optimizers, moves, count):
  state = init_state(dict(reward=jnp.array(3.0), fit=jnp.array(-2.0)), optimizers, jax.random.key(0))
  step = jax.jit(make_step(objective, optimizers, **moves))
  for _ in range(count):
    state, _ = step(state, {'x': jnp.zeros(1)})
  return state
