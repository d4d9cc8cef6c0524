"""Attention in blocks against the dense one: values, gradients, what is skipped, memory, vmap, meshes."""

import functools

from attention_cases import ALIGNED, arrays, BLOCK, check, dense, layout, LENGTH, ROWS, values_and_gradients
import flax.linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.backbones import attention, blockwise
from rmjax.backbones.decoder import Decoder, DecoderConfig
from rmjax.training import mesh as meshes

OPTIONS = {'plain': {}, 'window': dict(window=5), 'both': dict(window=9, softcap=0.7)}

in_blocks = functools.partial(blockwise.blockwise_attention, scale=0.6, block=BLOCK)


@functools.cache
def compiled(name):
  return [jax.jit(values_and_gradients(attend, **OPTIONS[name])) for attend in (in_blocks, dense)]


@pytest.mark.parametrize(('name', 'heads', 'kv_heads'), [('plain', 3, 3), ('window', 4, 1), ('both', 4, 2)])
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_values_and_gradients_are_those_of_dense_attention(name, heads, kv_heads, seed):
  ours, theirs = compiled(name)
  check(ours(*arrays(heads, kv_heads), *layout(seed)), theirs(*arrays(heads, kv_heads), *layout(seed)))


@pytest.mark.parametrize('block', [1, 64])
def test_any_block_will_do(block):
  ours = jax.jit(values_and_gradients(functools.partial(in_blocks, block=block), window=7))
  check(ours(*arrays(), *layout(1)), jax.jit(values_and_gradients(dense, window=7))(*arrays(), *layout(1)))


def test_blocks_suit_the_trees(monkeypatch):
  """Large ones for a long path, small ones for short trees; values and gradients are those of dense attention either way."""
  monkeypatch.setattr(blockwise, 'SMALL', 4)
  monkeypatch.setattr(blockwise, 'LARGE', 8)
  columns = jnp.arange(LENGTH, dtype=jnp.int32)
  path = jnp.full_like(columns, LENGTH), columns
  short = columns // 4 * 4 + 4, columns % 4
  statics = blockwise.Statics(0.6, False, None, None, blockwise.LOOP)
  ours, theirs = (jax.jit(values_and_gradients(attend)) for attend in (functools.partial(in_blocks, block=None), dense))
  for trees, large in ((path, True), (short, False)):
    columns, ends, positions = (jnp.stack([x] * ROWS) for x in (jnp.arange(LENGTH), *trees))
    assert blockwise.large_suit(statics, blockwise.Layout(columns, positions, ends, positions)) == large
    check(ours(*arrays(), ends, positions), theirs(*arrays(), ends, positions))


def test_padding_gives_zero_whatever_comes_in_and_moves_nothing():
  ends, positions = layout(3)
  q, k, v = arrays()
  rubbish = lambda x: jnp.where((ends == 0)[..., None, None], 1e30, x)

  @jax.jit
  def run(*inputs):
    y, pull = jax.vjp(lambda *x: in_blocks(*x, ends, positions, softcap=3.0), *inputs)
    return y, *pull(jnp.ones_like(y))

  y, *gradients = run(*map(rubbish, (q, k, v)))
  assert not np.asarray(y)[ends == 0].any()
  for gradient in gradients:
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[ends == 0].any()


def test_bfloat16():
  ours = jax.jit(values_and_gradients(in_blocks))(*arrays(dtype=jnp.bfloat16), *layout(1))
  assert ours[0].dtype == jnp.bfloat16
  check(ours, jax.jit(values_and_gradients(dense))(*arrays(dtype=jnp.bfloat16), *layout(1)), atol=0.06)
  exact = jax.jit(values_and_gradients(dense))(*arrays(), *layout(1))
  check([np.float32(x) for x in ours], map(np.float32, exact), atol=0.1)


def test_large_logits_neither_overflow_nor_lose_their_order():
  q, k, v = arrays()
  check(jax.jit(values_and_gradients(in_blocks))(300 * q, k, v, *layout(2)), jax.jit(values_and_gradients(dense))(300 * q, k, v, *layout(2)), atol=2e-3)


@pytest.mark.parametrize('over_seeds', [False, True])
@pytest.mark.parametrize(
  ('poisoned', 'touched', 'options'),
  [
    (slice(0, 16), slice(0, 16), {}),  # another tree
    (slice(24, 32), slice(24, 32), {}),  # a sibling
    (slice(8, 16), slice(8, 16), {}),  # a later block of the same tree
    (slice(16, 24), slice(16, 40), {}),  # the prompt is needed by all of its tree
    (slice(16, 24), slice(16, 32), dict(window=1)),  # of a path of 16 only the last counts; blocks 8 deep or less may be touched
  ],
)
def test_blocks_that_no_query_needs_are_never_read(poisoned, touched, options, over_seeds):
  """NaN times zero is NaN, so a block that was computed and masked would show."""
  q, k, v = arrays(rows=2, length=40)
  k, v = (x.at[:, poisoned].set(jnp.nan) for x in (k, v))
  run = values_and_gradients(in_blocks, **options)
  if over_seeds:
    q, k, v = (jnp.stack([x, x]) for x in (q, k, v))
    run = jax.vmap(run, (0, 0, 0, None, None))
  y, dq, dk, dv = (np.asarray(x).reshape(-1, 40, x.shape[-2] * x.shape[-1]) for x in jax.jit(run)(q, k, v, ALIGNED.subtree_end, ALIGNED.positions))
  outside = np.ones(40, bool)
  outside[touched] = False
  for x in (y, dq):
    assert np.isfinite(x[:, outside]).all()
  assert np.isnan(y[:, poisoned]).all()
  # Keys get NaN from queries that saw a poisoned one; those of other trees cannot.
  other = np.r_[16:40] if poisoned.stop <= 16 else np.r_[0:16]
  assert np.isfinite(dk[:, other]).all()
  assert np.isfinite(dv[:, other]).all()


def test_long_rows_need_no_square():
  length = 4096
  shapes = [jax.ShapeDtypeStruct((2, length, heads, 8), jnp.float32) for heads in (4, 2, 2)] + [jax.ShapeDtypeStruct((2, length), jnp.int32)] * 2
  attend = functools.partial(attention.tree_attention, scale=0.3)  # the default takes blocks here
  for run in (attend, values_and_gradients(attend)):
    program = jax.jit(run).lower(*shapes).compile()
    assert f'{length},{length}' not in program.as_text()
    assert program.memory_analysis().temp_size_in_bytes < 2**24  # one head's square in bytes, of 8


@pytest.mark.parametrize(('shared', 'windows'), [(False, None), (True, [3, 7, 1 << 30])])
def test_vmap(shared, windows):
  """Over seeds that share the batch or not; windows, if any, are a seed's own."""
  seeds = [jnp.stack([x, 2 * x, -x]) for x in arrays()]
  drawn = [layout(0 if shared else i) for i in range(3)]
  ends, positions = layout(0) if shared else map(jnp.stack, zip(*drawn, strict=True))
  axes = (0, 0, 0, *((None if shared else 0),) * 2)
  run = lambda attend: lambda q, k, v, ends, positions, window: values_and_gradients(attend)(q, k, v, ends, positions, window=window)
  over = jax.jit(jax.vmap(run(in_blocks), (*axes, None if windows is None else 0)))
  one = jax.jit(run(dense))
  alone = [one(*(x[i] for x in seeds), *drawn[i], windows and windows[i]) for i in range(3)]
  check(over(*seeds, ends, positions, windows and jnp.array(windows)), [jnp.stack(x) for x in zip(*alone, strict=True)])


def test_vmaps_within_one_another_and_within_a_gradient():
  ends, positions = layout(0)
  seeds = [jnp.stack([jnp.stack([x, -x])] * 2) for x in arrays()]

  def loss(attend):
    attend = jax.vmap(jax.vmap(attend, (0, 0, 0, None, None)), (0, 0, 0, None, None))
    return lambda q, k, v: jnp.sum(jnp.where((ends > 0)[..., None, None], attend(q, k, v, ends, positions), 0) ** 2)

  check(*(jax.jit(jax.grad(loss(attend), (0, 1, 2)))(*seeds) for attend in (in_blocks, dense)), atol=5e-5)


@pytest.mark.parametrize('sizes', [dict(data=2, fsdp=2, tensor=2), dict(data=2, tensor=4), dict(data=2, sequence=4)])
def test_eight_devices_and_one_attend_alike(sizes):
  """`tensor` of 4 does not divide the 2 key heads, and `sequence` of 4 cuts the queries within their blocks."""
  run = values_and_gradients(in_blocks, window=9)
  inputs = *arrays(rows=8, length=44), *layout(4, rows=8, length=44)
  alone = jax.jit(run)(*inputs)
  mesh = meshes.make_mesh(**sizes)
  with meshes.use_mesh(mesh):
    program = jax.jit(run).lower(*meshes.shard_batch(inputs, mesh)).compile()
    check(program(*meshes.shard_batch(inputs, mesh)), alone)
    if 'sequence' not in sizes:  # rows and heads stay where they are
      assert not [line for line in program.as_text().splitlines() if 'all-gather' in line or 'all-reduce' in line or 'all-to-all' in line]


def test_vmap_on_a_mesh():
  inputs = *arrays(rows=4), *layout(4, rows=4)
  run = values_and_gradients(in_blocks)
  with meshes.use_mesh(meshes.make_mesh(data=4, tensor=2)):
    ours = jax.jit(jax.vmap(run))(*(jnp.stack([x, x]) for x in inputs))
  check(ours, [jnp.stack([x, x]) for x in jax.jit(run)(*inputs)])


CONFIG = DecoderConfig(
  vocab_size=8, hidden_size=16, intermediate_size=8, num_layers=2, num_heads=4, num_kv_heads=2, windows=(9, 0), local_rope_theta=100.0, attention_softcap=2.0
)  # fmt: skip


@pytest.mark.parametrize(('remat', 'sizes'), [('none', None), ('dots', None), ('full', dict(data=2, fsdp=2, tensor=2))])
def test_in_a_decoder(remat, sizes, monkeypatch):
  """Layers scanned, with a window and a base of its own in one of them, and recomputed; on one device and on eight."""
  monkeypatch.setattr(attention, 'blockwise_attention', functools.partial(blockwise.blockwise_attention, block=BLOCK))
  monkeypatch.setitem(attention.BLOCKWISE_FROM, 'cpu', LENGTH)
  mesh = meshes.make_mesh(**sizes) if sizes else meshes.one_device_mesh()
  with meshes.use_mesh(mesh):
    ours = decoder_values_and_gradients(remat, mesh)
  check(ours, dense_decoder(), atol=1e-4)


@functools.cache
def dense_decoder():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(attention.BLOCKWISE_FROM, 'cpu', 1 << 30)
    return decoder_values_and_gradients('none', meshes.one_device_mesh())


def decoder_values_and_gradients(remat, mesh):
  decoder = Decoder(CONFIG, remat=remat)
  ends, positions = layout(5, rows=8)
  tokens = np.random.default_rng(0).integers(0, 8, ends.shape).astype(np.int32)
  params = nn.unbox(decoder.init(jax.random.key(0), tokens[:, :4], positions[:, :4], ends[:, :4]))

  def loss(params, tokens, positions, ends):
    return jnp.sum(jnp.where((ends > 0)[..., None], decoder.apply(params, tokens, positions, ends), 0.0) ** 4) / LENGTH

  inputs = meshes.shard_batch((tokens, positions, ends), mesh)
  return jax.tree.leaves(jax.device_get(jax.jit(jax.value_and_grad(loss))(params, *inputs)))
