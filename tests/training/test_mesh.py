"""A mesh that does not fit is refused with the setting to change."""

import types

import pytest

from rmjax.errors import InputError
from rmjax.training import mesh as meshes

DECODER = types.SimpleNamespace(hidden_size=64, num_heads=4, num_kv_heads=2, intermediate_size=128, vocab_size=512)


def test_one_axis_takes_what_the_others_leave():
  mesh = meshes.make_mesh(data=2, fsdp=-1, tensor=2)
  assert dict(mesh.shape) == dict(data=2, fsdp=2, tensor=2, sequence=1)
  assert set(mesh.axis_types) == {meshes.AxisType.Auto}


@pytest.mark.parametrize('sizes', [dict(data=3), dict(data=-1, fsdp=3), dict(data=16), dict(data=-1, fsdp=-1), dict(data=0)])
def test_a_mesh_that_does_not_fit_the_devices(sizes):
  with pytest.raises(InputError, match='does not fit 8 devices: set one of config.mesh'):
    meshes.make_mesh(**sizes)


@pytest.mark.parametrize(
  ('sizes', 'batch', 'message'),
  [
    (dict(data=8), dict(rows=12), r'train.rows / train.accumulate = 12 cannot be split 8 ways \(mesh.data x mesh.fsdp\)'),
    (dict(data=8), dict(rows=8, accumulate=3), r'train.rows = 8 cannot be split 3 ways \(train.accumulate\)'),
    (dict(data=2, tensor=4), dict(rows=8), r'num_kv_heads = 2 cannot be split 4 ways \(mesh.tensor\)'),
  ],
)
def test_a_batch_or_a_network_that_does_not_fit_the_mesh(sizes, batch, message):
  with pytest.raises(InputError, match=message):
    meshes.check_fits(meshes.make_mesh(**sizes), **{'accumulate': 1, 'length': 64, **batch}, decoder=DECODER)


def test_what_fits_passes():
  assert meshes.check_fits(meshes.make_mesh(data=2, fsdp=2, tensor=2), rows=8, accumulate=2, length=64, decoder=DECODER) is None
