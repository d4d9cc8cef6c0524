"""The decoder: its parameters, scan and remat, bfloat16, windows, rotary embeddings, sharding, and configs that cannot be."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.backbones.decoder import Block, Decoder, DecoderConfig, NO_WINDOW, RMSNorm, rope_frequencies
from rmjax.errors import InputError
from rmjax.training.mesh import make_mesh, RULES, shardings, use_mesh

PLAIN = DecoderConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=3, num_heads=4, num_kv_heads=2)
EVERYTHING = dataclasses.replace(
  PLAIN, windows=(2, 0, 2), local_rope_theta=500.0, activation='gelu_tanh', attention_bias=True, output_bias=True, mlp_bias=True, qk_norm=True,
  sandwich_norm=True, unit_offset=True, embedding_scale=True, query_scale=5, attention_softcap=4.0, logit_softcap=3.0, tie_embeddings=False,
)  # fmt: skip
TOKENS = jax.random.randint(jax.random.key(0), (4, 16), 0, 32)


def causal(tokens):
  return tokens, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape), jnp.full(tokens.shape, tokens.shape[1])


@functools.cache
def random_params(config):
  """Norms and biases too."""
  init = jax.jit(lambda key: nn.unbox(Decoder(config).init(key, *causal(TOKENS), method='logits'))['params'])
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), init(jax.random.key(0)))


@functools.partial(jax.jit, static_argnames=('config', 'method', 'dtype'))
def run(params, tokens, positions, subtree_end, *, config, method=None, dtype=jnp.float32):
  return Decoder(config, dtype=dtype).apply({'params': params}, tokens, positions, subtree_end, method=method)


@pytest.mark.parametrize('config', [PLAIN, EVERYTHING])
def test_every_dimension_of_every_parameter_has_a_name_that_the_mesh_knows(config):
  decoder = Decoder(config)
  boxed = jax.eval_shape(lambda key: decoder.init(key, *causal(TOKENS), method=decoder.logits), jax.random.key(0))['params']
  leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  for path, leaf in leaves:
    name = jax.tree_util.keystr(path)
    assert isinstance(leaf, nn.LogicallyPartitioned), name
    assert len(leaf.names) == leaf.value.ndim, name
    assert set(leaf.names) <= {name for name, _ in RULES}, name
    assert (leaf.names[0] == 'layers') == ('layers' in name), name
    assert leaf.value.dtype == jnp.float32, name


def test_only_logits_make_an_output_matrix_and_only_if_it_is_not_tied():
  shapes = lambda config, **options: jax.eval_shape(lambda key: Decoder(config).init(key, *causal(TOKENS), **options), jax.random.key(0))['params']
  assert 'unembedding' in shapes(EVERYTHING, method='logits')
  assert 'unembedding' not in shapes(EVERYTHING)
  assert 'unembedding' not in shapes(PLAIN, method='logits')


def test_scanned_layers_are_the_layers_one_by_one():
  params = random_params(EVERYTHING)
  tokens, positions, subtree_end = causal(TOKENS)
  x = params['embedding']['embedding'][tokens] * 4.0
  angles = [positions[..., None] * rope_frequencies(EVERYTHING, local=local) for local in (False, True)]
  block = jax.jit(Block(EVERYTHING, jnp.float32).apply)
  for layer, window in enumerate(EVERYTHING.windows):
    weights = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params['layers'])
    x, _ = block({'params': weights}, x, window or NO_WINDOW, angles, subtree_end, positions)
  x = RMSNorm(EVERYTHING.norm_eps, True).apply({'params': params['norm']}, x)
  np.testing.assert_allclose(run(params, *causal(TOKENS), config=EVERYTHING), x, atol=1e-5)


def test_remat_changes_memory_and_nothing_else():
  results, memory = {}, {}
  config = dataclasses.replace(PLAIN, num_layers=8, windows=(3, 0) * 4)
  params = random_params(config)
  tokens = jax.random.randint(jax.random.key(0), (4, 128), 0, 32)
  for remat in ('none', 'dots', 'full'):
    decoder = Decoder(config, remat=remat)
    loss = lambda params, decoder=decoder: jnp.mean(decoder.apply({'params': params}, *causal(tokens)) ** 3)
    compiled = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
    results[remat], memory[remat] = compiled(params), compiled.memory_analysis().temp_size_in_bytes
  for remat in ('dots', 'full'):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), results[remat], results['none'])
  assert memory['full'] < memory['dots'] < memory['none']


@pytest.mark.parametrize('config', [PLAIN, EVERYTHING])
def test_bfloat16_computes_what_float32_does_within_its_precision(config):
  compute = functools.partial(run, random_params(config), *causal(TOKENS), config=config)
  assert compute(dtype=jnp.bfloat16).dtype == jnp.bfloat16
  exact, rough = (compute(dtype=dtype, method='logits') for dtype in (jnp.float32, jnp.bfloat16))
  assert rough.dtype == jnp.float32
  assert jnp.any(rough != rough.astype(jnp.bfloat16))  # summed in float32, not rounded before
  assert 1e-4 < jnp.linalg.norm(rough - exact) / jnp.linalg.norm(exact) < 0.05


def test_norm_statistics_are_float32():
  x = 3 + jax.random.normal(jax.random.key(0), (2, 1 << 14))
  rounded = x.astype(jnp.bfloat16)
  y = RMSNorm(1e-6, False).apply({'params': {'scale': jnp.ones(x.shape[1])}}, rounded)
  assert y.dtype == jnp.bfloat16
  exact = np.asarray(rounded, np.float64)
  exact = exact / np.sqrt(np.mean(exact**2, -1, keepdims=True))
  np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8)  # one rounding, of the result


def test_gradients_of_a_frequent_token_add_up_in_float32():
  layout = causal(jnp.zeros((4, 512), jnp.int32))
  total = lambda params, dtype: run(params, *layout, config=PLAIN, dtype=dtype)[..., 0].astype(jnp.float32).sum()
  exact, rough = (jax.jit(jax.grad(total), static_argnums=1)(random_params(PLAIN), dtype)['embedding']['embedding'][0] for dtype in (jnp.float32, jnp.bfloat16))
  assert jnp.linalg.norm(rough - exact) / jnp.linalg.norm(exact) < 0.03


def test_a_window_reaches_so_many_depths_a_layer():
  config = dataclasses.replace(PLAIN, num_layers=2, windows=(3, 3))
  params = random_params(config)
  other = TOKENS.at[:, 8].set((TOKENS[:, 8] + 1) % 32)
  moved = run(params, *causal(TOKENS), config=config) != run(params, *causal(other), config=config)
  np.testing.assert_array_equal(moved.any((0, 2)), [8 <= t <= 12 for t in range(16)])


def test_rotary_embeddings_see_distances_alone():
  tokens, positions, subtree_end = causal(TOKENS)
  at = lambda positions: run(random_params(PLAIN), tokens, positions, subtree_end, config=PLAIN)
  here, there = at(positions), at(positions + 57)
  np.testing.assert_allclose(here, there, atol=1e-4)
  assert np.abs(here - at(positions * 2)).max() > 0.01


def test_llama3_scaling_keeps_short_waves_and_slows_long_ones():
  scaling = dict(rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)  # Llama 3.1
  plain = dataclasses.replace(PLAIN, head_dim=128, rope_theta=5e5)
  before, after = rope_frequencies(plain), rope_frequencies(dataclasses.replace(plain, rope_scaling=scaling))
  waves = 2 * np.pi / before
  np.testing.assert_allclose(after[waves < 8192 / 4], before[waves < 8192 / 4], rtol=1e-6)
  np.testing.assert_allclose(after[waves > 8192], before[waves > 8192] / 8, rtol=1e-6)
  assert (np.diff(after) < 0).all()


@pytest.mark.parametrize('config', [PLAIN, EVERYTHING])
def test_a_mesh_computes_what_one_device_does(config):
  params = random_params(config)
  exact = run(params, *causal(TOKENS), config=config, method='logits')
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  boxed = jax.eval_shape(lambda key: Decoder(config).init(key, *causal(TOKENS), method='logits'), jax.random.key(0))['params']
  with use_mesh(mesh):
    laid_out = jax.device_put(params, shardings(boxed, mesh))
    assert not laid_out['layers']['gate']['kernel'].is_fully_replicated
    logits = run(laid_out, *causal(TOKENS), config=config, method='logits')
  np.testing.assert_allclose(logits, exact, atol=2e-5)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(num_kv_heads=3), 'num_heads = 4 is no multiple of num_kv_heads = 3'),
    (dict(num_kv_heads=0), 'num_kv_heads = 0: it must be at least 1'),
    (dict(vocab_size=-1), 'vocab_size = -1: it must be at least 1'),
    (dict(hidden_size=18, head_dim=0), 'hidden_size = 18 is no multiple of num_heads = 4: set head_dim'),
    (dict(head_dim=5), 'head_dim = 5 is odd'),
    (dict(windows=(4, 4)), 'windows has 2 entries for num_layers = 3'),
    (dict(windows=(4, -1, 4)), r'windows = \(4, -1, 4\): a window is positive, or 0 for none'),
    (dict(activation='relu'), "activation = 'relu': choose one of silu, gelu_tanh"),
    (dict(rope_scaling=dict(rope_type='yarn', factor=2.0)), "rope scaling 'yarn' is not supported: default, linear, llama3 are"),
    (dict(rope_scaling=dict(type='linear')), "rope scaling 'linear' lacks factor"),
  ],
)
def test_a_config_that_cannot_be(change, message):
  with pytest.raises(InputError, match=re.compile(message)):
    dataclasses.replace(PLAIN, **change)


def test_a_remat_that_is_not():
  with pytest.raises(InputError, match="remat = 'some': choose one of none, full, dots"):
    Decoder(PLAIN, remat='some').init(jax.random.key(0), *causal(TOKENS))


def test_configs_are_hashable_and_equal_by_value():
  scaling = dict(rope_type='linear', factor=2.0)
  one, two = (dataclasses.replace(PLAIN, rope_scaling=value) for value in (scaling, tuple(scaling.items())))
  assert one == two and hash(one) == hash(two)
