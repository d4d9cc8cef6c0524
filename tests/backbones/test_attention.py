"""Attention on trees, in every implementation, against a loop over queries that walks up the parents."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import trees
from rmjax.backbones import attention
from rmjax.backbones.attention import tree_attention
from rmjax.errors import InputError

LENGTH, HEADS, KV_HEADS, SIZE = 16, 4, 2, 6
# Row 0: a prompt with two branches, of which the first branches again; a chain. Row 1: padding alone.
FOREST = [
  [
    trees.Tree((trees.Segment([1, 2]), trees.Segment([3, 4], 0, 0), trees.Segment([5], 1, 1), trees.Segment([6, 7], 1, 2), trees.Segment([8, 9], 0, 3))),
    trees.chain([1], [[2, 3]]),
  ],
  [],
]
BATCH = trees.pack(FOREST, length=LENGTH, slots=2, responses=4)


def draw(dtype=np.float32):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.normal(size=(2, LENGTH, heads, SIZE)), dtype) for heads in (HEADS, KV_HEADS, KV_HEADS)]


ANYWHERE = ('dense', 'blockwise')  # test_pallas_attention.py has the kernels


@pytest.fixture(name='attend', params=ANYWHERE)
def _attend(request):
  def attend(q, k, v, **options):
    layout = jnp.asarray(BATCH.subtree_end), jnp.asarray(BATCH.positions)
    return tree_attention(q, k, v, *layout, scale=0.3, implementation=request.param, **options)

  return attend


def by_hand(q, k, v, *, window=1 << 30, softcap=None):
  """Float64, one query at a time over its path."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = {}
  for query in np.flatnonzero(BATCH.subtree_end[0]):
    path, column = [], query
    while column >= 0 and len(path) < window:
      path.append(column)
      column = BATCH.parents[0, column]
    for head in range(HEADS):
      group = head // (HEADS // KV_HEADS)
      logits = k[0, path, group] @ q[0, query, head] * 0.3
      logits = softcap * np.tanh(logits / softcap) if softcap else logits
      weights = np.exp(logits - logits.max())
      out[query, head] = weights / weights.sum() @ v[0, path, group]
  return out


@pytest.mark.parametrize('options', [{}, dict(window=3), dict(softcap=0.5), dict(window=2, softcap=0.5), dict(window=1)])
def test_a_query_attends_to_its_path_alone(attend, options):
  q, k, v = draw()
  ours = np.asarray(attend(q, k, v, **options))
  for (query, head), value in by_hand(q, k, v, **options).items():
    np.testing.assert_allclose(ours[0, query, head], value, atol=2e-6)


def test_the_window_may_be_traced(attend):
  q, k, v = draw()
  traced = jax.jit(lambda window: attend(q, k, v, window=window))
  np.testing.assert_allclose(traced(3), attend(q, k, v, window=3), atol=1e-6)
  np.testing.assert_allclose(traced(1 << 30), attend(q, k, v), atol=1e-6)


def test_padding_is_finite_and_moves_nothing(attend):
  q, k, v = draw()
  padding = BATCH.subtree_end == 0
  assert np.isfinite(attend(q, k, v, window=3, softcap=2.0)).all()
  loss = lambda q, k, v: jnp.sum(jnp.where(padding[..., None, None], 0.0, attend(q, k, v, window=3, softcap=2.0)) ** 2)
  for gradient in jax.grad(loss, (0, 1, 2))(q, k, v):
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[padding].any()
    assert np.asarray(gradient)[~padding].any()


def test_bfloat16_in_and_out_with_a_float32_softmax(attend):
  exact = attend(*draw())
  ours = attend(*draw(jnp.bfloat16))
  assert ours.dtype == jnp.bfloat16
  np.testing.assert_allclose(ours.astype(jnp.float32), exact, atol=0.05)


@pytest.mark.parametrize('implementation', ANYWHERE)
def test_logits_are_float32(implementation):
  # 1000 and 1001 are one number in bfloat16; float32 logits tell them apart.
  q = jnp.full((1, 2, 1, 1), 1.0, jnp.bfloat16)
  k = jnp.array([1000.0, 1001.0], jnp.float32).reshape(1, 2, 1, 1)
  v = jnp.array([0.0, 1.0], jnp.bfloat16).reshape(1, 2, 1, 1)
  y = tree_attention(q, k, v, jnp.array([[2, 2]]), jnp.array([[0, 1]]), scale=1.0, implementation=implementation)
  np.testing.assert_allclose(y[0, 1, 0, 0].astype(jnp.float32), jax.nn.sigmoid(1.0), atol=4e-3)


def test_long_rows_are_attended_to_in_blocks():
  shape = lambda length: [jax.ShapeDtypeStruct((1, length, 1, 2), jnp.float32)] * 3 + [jax.ShapeDtypeStruct((1, length), jnp.int32)] * 2
  square = lambda length, **options: f'{length},{length}' in str(jax.make_jaxpr(lambda *x: tree_attention(*x, scale=1.0, **options))(*shape(length)))
  threshold = attention.BLOCKWISE_FROM['cpu']
  assert square(threshold - 1)
  assert not square(threshold)
  assert square(threshold, implementation='dense')


def test_an_unknown_implementation_is_refused():
  with pytest.raises(InputError, match="implementation = 'flash': choose one of dense, blockwise, pallas, or None"):
    tree_attention(*draw(), BATCH.subtree_end, BATCH.positions, scale=1.0, implementation='flash')


@pytest.mark.parametrize(
  ('kind', 'platform'), [('cpu', 'cpu'), ('TPU v5 lite', 'tpu'), ('TPU v5', 'tpu'), ('NVIDIA H100 80GB HBM3', 'gpu'), ('AMD Instinct MI300X', 'gpu')]
)
def test_the_mesh_says_what_computes(kind, platform, monkeypatch):
  """As the kinds of devices are called by jax.experimental.topologies and by the makers."""
  mesh = types.SimpleNamespace(abstract_device=types.SimpleNamespace(device_kind=kind))
  monkeypatch.setattr(jax.sharding, 'get_abstract_mesh', lambda: mesh)
  chosen = {'cpu': {255: 'dense', 256: 'blockwise', 1 << 20: 'blockwise'}}.get(platform, {1023: 'dense', 1024: 'pallas'})
  assert {length: attention._fastest(length) for length in chosen} == chosen
  assert attention.platform() == platform


def test_kernels_are_refused_on_a_cpu():
  with pytest.raises(InputError, match="implementation = 'pallas' needs a GPU or a TPU, and this is a cpu: choose dense or blockwise, or None"):
    tree_attention(*draw(), BATCH.subtree_end, BATCH.positions, scale=1.0, implementation='pallas')
