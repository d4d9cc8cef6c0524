"""Eight devices and one train alike."""

import jax
import numpy as np
import optax
import pytest

from rmjax import trees
from rmjax.backbones.decoder import DecoderConfig
from rmjax.data.records import pairwise_wins
from rmjax.models import build
from rmjax.training import mesh as meshes
from rmjax.training.reward import reward_objective
from rmjax.training.saved import init_params
from rmjax.training.step import init_state, make_step

CONFIG = DecoderConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2)


def batches(count):
  rng = np.random.default_rng(0)
  text = lambda: rng.integers(1, 64, rng.integers(2, 9)).tolist()
  labels = dict(wins=pairwise_wins(2, [(0, 1, 1.0)]), ratings=np.full(2, np.nan, np.float32), weights=np.float32(1), margins=np.float32(0))
  for _ in range(count):
    rows = [[trees.branch(text(), [text(), text()], labels) for _ in range(2)] for _ in range(8)]
    yield trees.pack(rows, length=64, slots=2, responses=2)


def losses(mesh, accumulate=1):
  model = build(CONFIG, dtype='float32', remat='full', head=dict(name='rmjax.heads.scalar:ScalarHead'), lora=dict(rank=0))
  optimizers = {'reward': optax.adamw(1e-3)}
  objective = reward_objective(model, {'preference': dict(name='rmjax.losses.preference:preference_cross_entropy')})
  with meshes.use_mesh(mesh):
    state = init_state({'reward': init_params(model, '', mesh, jax.random.key(0))}, optimizers, jax.random.key(1))
    step = jax.jit(make_step(objective, optimizers, accumulate=accumulate), donate_argnums=0)
    found = []
    for batch in batches(20):
      state, metrics = step(state, meshes.shard_batch(batch, mesh))
      found.append(float(metrics['loss'][0] / metrics['loss'][1]))
  return found, state.params['reward']


@pytest.fixture(scope='module', name='alone')
def _alone():
  return losses(meshes.one_device_mesh())[0]


@pytest.mark.parametrize(('sizes', 'accumulate'), [(dict(data=2, fsdp=2, tensor=2), 1), (dict(data=1, fsdp=4, tensor=2), 2), (dict(data=8), 1)])
def test_twenty_losses_are_those_of_one_device(alone, sizes, accumulate):
  mesh = meshes.make_mesh(**sizes)
  found, params = losses(mesh, accumulate)
  np.testing.assert_allclose(found, alone, atol=1e-5, rtol=0)
  kernel = params['backbone']['layers']['attention']['query']['kernel']
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 32 // mesh.shape['fsdp'], 32 // mesh.shape['tensor'])
