"""Pallas kernels of attention on trees, interpreted, against dense attention; and put through the compilers of TPUs and GPUs."""

import functools
import importlib.util

from attention_cases import ALIGNED, arrays, BLOCK, check, dense, layout, LENGTH, values_and_gradients
import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from rmjax.backbones import attention, blockwise, pallas_gpu, pallas_tpu
from rmjax.training import mesh as meshes

MODULES = {'tpu': pallas_tpu, 'gpu': pallas_gpu}
NO_WINDOW = 1 << 30


def interpreted(platform):
  """Attention by the platform's kernels, on a CPU."""
  kernels = blockwise.Kernels(*(functools.partial(function, interpret=True) for function in MODULES[platform].KERNELS))
  return functools.partial(blockwise.blockwise_attention, scale=0.6, block=BLOCK, kernels=kernels)


@functools.cache
def compiled(platform):
  """With soft caps, and windows that are traced; `dense` for dense attention."""
  return jax.jit(values_and_gradients(interpreted(platform) if platform in MODULES else dense, softcap=0.7))


@functools.cache
def dense_bfloat16():
  return jax.jit(values_and_gradients(dense))(*arrays(3, 3, dtype=jnp.bfloat16), *layout(1))


@pytest.mark.parametrize('platform', MODULES)
def test_values_and_gradients_are_those_of_dense_attention(platform):
  for seed in range(10):
    for window in (2, 9, NO_WINDOW):
      inputs = *arrays(), *layout(seed)
      check(compiled(platform)(*inputs, window=window), compiled('dense')(*inputs, window=window))


@pytest.mark.parametrize('platform', MODULES)
def test_bfloat16_with_as_many_heads_of_keys_and_neither_windows_nor_caps(platform):
  ours = jax.jit(values_and_gradients(interpreted(platform)))(*arrays(3, 3, dtype=jnp.bfloat16), *layout(1))
  assert ours[0].dtype == jnp.bfloat16
  check(ours, dense_bfloat16(), atol=0.06)


@pytest.mark.parametrize('platform', MODULES)
@pytest.mark.parametrize(
  ('poisoned', 'touched', 'window'),
  [
    (slice(0, 16), slice(0, 16), NO_WINDOW),  # another tree
    (slice(24, 32), slice(24, 32), NO_WINDOW),  # a sibling
    (slice(16, 24), slice(16, 32), 1),  # an ancestor, too far: of a path of 16 only the last counts; blocks 8 deep or less may be touched
    (slice(40, 43), slice(40, 43), NO_WINDOW),  # padding
  ],
)
def test_blocks_that_no_query_needs_are_not_computed_and_padding_gives_zero(platform, poisoned, touched, window):
  """NaN times zero is NaN, so a block that was computed and masked would show."""
  q, k, v = (np.array(x) for x in arrays())
  ends, positions = (np.pad(x[[0, 0, 0]], ((0, 0), (0, LENGTH - 40))) for x in (ALIGNED.subtree_end, ALIGNED.positions))
  k[:, poisoned] = v[:, poisoned] = np.nan
  y, dq, dk, dv = map(np.asarray, compiled(platform)(q, k, v, ends, positions, window=window))
  outside = np.ones(LENGTH, bool)
  outside[touched] = False
  assert np.isfinite(y[:, outside]).all()
  assert np.isfinite(dq[:, outside]).all()
  # Keys get NaN from queries that saw a poisoned one; those of other trees cannot.
  other = np.r_[16:43] if poisoned.stop <= 16 else np.r_[0:16]
  assert np.isfinite(dk[:, other]).all()
  assert np.isfinite(dv[:, other]).all()
  assert poisoned.start == 40 or np.isnan(y[:, poisoned]).all()
  for x in (y, dq, dk, dv):
    assert not x[:, 40:].any()


def test_the_list_of_pairs_is_what_the_trees_need_and_no_more():
  needed = np.zeros((2, 3, 4), bool)
  needed[0, 0, [0, 2]] = needed[0, 2, 3] = needed[1, 1, :] = True
  (lines, others, counts), steps = jax.device_get(jax.jit(pallas_tpu._pairs)(needed))
  # Lines 1, 3 and 5 need nothing: a pair each, for their output to be written, and a count of 0 for nothing to be computed.
  assert steps == 10
  assert [*zip(lines[:10].tolist(), others[:10].tolist(), strict=True)] == [
    (0, 0), (0, 2), (1, 0), (2, 3), (3, 4), (4, 4), (4, 5), (4, 6), (4, 7), (5, 4)
  ]  # fmt: skip
  assert lines[10] == -1  # ends the last line
  assert counts.tolist() == [2, 0, 1, 0, 4, 0]


def over_seeds(attend):
  """Seeds that share the batch."""
  inputs = *(np.stack([x, -x]) for x in map(np.asarray, arrays(rows=4, length=44))), *layout(4, rows=4, length=44)
  return jax.jit(jax.vmap(values_and_gradients(attend, window=9), (0, 0, 0, None, None)))(*inputs)


dense_over_seeds = functools.cache(functools.partial(over_seeds, dense))


@pytest.mark.parametrize('platform', MODULES)
def test_vmap_on_a_mesh_with_stretches_of_queries(platform, monkeypatch):
  """Seeds become rows, which on a TPU do not fit one call here; each device has half the rows, heads and queries."""
  monkeypatch.setattr(pallas_tpu, 'PAIRS', 40)
  with meshes.use_mesh(meshes.make_mesh(data=2, tensor=2, sequence=2)):
    ours = over_seeds(interpreted(platform))
  check(ours, dense_over_seeds())


# --- real compilers ---


def gradients(*arrays):
  """Of the default attention, with a window that is traced."""
  attend = lambda q, k, v, ends, positions, window: attention.tree_attention(q, k, v, ends, positions, scale=0.1, window=window, softcap=30.0)
  return jax.value_and_grad(lambda *x: attend(*x).astype(jnp.float32).sum(), (0, 1, 2))(*arrays)


def shapes(size, sharding=lambda *axes: None, *, rows=2, length=1024, heads=8, kv_heads=2):
  of = lambda dtype, shape, *axes: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(*axes))
  batch = ('data', 'fsdp')
  vectors = [of(jnp.bfloat16, (rows, length, count, size), batch) for count in (heads, kv_heads, kv_heads)]
  return *vectors, *[of(jnp.int32, (rows, length), batch)] * 2, of(jnp.int32, ())


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu, the compiler of TPUs, is not installed: the extra `tpu` has it')
@pytest.mark.parametrize(
  ('topology', 'size', 'axes', 'length'),
  [
    ('v5e:2x2', 64, (2, 1, 2, 1), 1024),
    ('v5p:2x2x1', 128, (1, 2, 1, 2), 2000),
    pytest.param('v5e:2x2', 128, (2, 1, 2, 1), 1024, marks=pytest.mark.slow),
    pytest.param('v5p:2x2x1', 64, (1, 4, 1, 1), 1024, marks=pytest.mark.slow),
  ],
)
def test_the_compiler_of_tpus_takes_the_kernels(topology, size, axes, length, monkeypatch):
  for name, value in dict(TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost', ALLOW_MULTIPLE_LIBTPU_LOAD='1').items():
    monkeypatch.setenv(name, value)
  devices = topologies.get_topology_desc(topology_name=topology, platform='tpu').devices
  mesh = Mesh(np.array(devices).reshape(axes), meshes.AXES, axis_types=(AxisType.Auto,) * len(axes))
  inputs = shapes(size, lambda *spec: NamedSharding(mesh, PartitionSpec(*spec)), rows=8, length=length)
  with meshes.use_mesh(mesh):
    program = jax.jit(gradients).lower(*inputs).compile().as_text()
  assert program.count('custom_call_target="tpu_custom_call"') == 3
  assert f'{length},{length}' not in program


# Later versions lower all the way to the GPU's own code, which takes the plugin.
@pytest.mark.skipif(jax.__version_info__ > (0, 10, 2) and importlib.util.find_spec('jax_plugins') is None, reason='jax[cuda13] is not installed')
@pytest.mark.parametrize('size', [64, 80, 256])
def test_the_kernels_lower_to_triton(size, monkeypatch):
  monkeypatch.setattr(attention, 'platform', lambda: 'gpu')
  program = jax.jit(gradients).trace(*shapes(size)).lower(lowering_platforms=('cuda',)).as_text()
  assert program.count('stablehlo.custom_call @__gpu$xla.gpu.triton') == 3
  assert '1024x1024' not in program
