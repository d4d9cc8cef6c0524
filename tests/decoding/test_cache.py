"""Attention to a cache against attention to everything at once; what a cache of fewer bits loses, and what it takes."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoder import abstract, KEYS, LENGTHS, PLAIN, plain, PROMPTS, responses_of

from rmjax import trees
from rmjax.backbones import pretrained
from rmjax.backbones.decoder import Decoder
from rmjax.decoding import steps
from rmjax.decoding.cache import Cache, cached_attention, empty, store
from rmjax.decoding.generate import generate, pack_prompts
from rmjax.decoding.sampling import Sampling

P, N, K, H, D, L, W = 3, 2, 2, 4, 16, 9, 6
LONG = np.int32([9, 4, 1])
DTYPES = [None, 'bfloat16', 'int8']


def test_int8_keeps_every_number_to_half_a_step_of_its_token_and_head():
  x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3, 8, D)) * np.exp(np.random.default_rng(1).normal(0, 3, (5, 3, 8, 1))), jnp.float32)
  x = x.at[0, 0, 0].set(0.0)
  stored = store(x, jnp.dtype('int8'))
  assert stored.values.dtype == jnp.int8 and stored.scale.dtype == jnp.float32 and stored.scale.shape == x.shape[:-1]
  np.testing.assert_allclose(stored.scale, np.abs(x).max(-1) / 127, rtol=1e-6)
  error = np.abs(stored.values * stored.scale[..., None] - x)
  assert (error <= 0.5001 * np.asarray(stored.scale)[..., None]).all()
  np.testing.assert_array_equal(np.abs(stored.values).max(-1).ravel()[1:], 127)
  np.testing.assert_array_equal(stored.values[0, 0, 0], 0)


def attend(dtype, *, first=0, window=None, delays=(0, 0, 0)):
  """Attention of W tokens of every response, from column `first` of the ring on; those to prompt p begin `delays[p]` steps late. [W P N H D]"""
  rng = np.random.default_rng(2)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  dtype = jnp.dtype(dtype or 'float32')
  keys, values = (store(normal(P, K, L, D), dtype) for _ in range(2))
  room = empty(P * N, K, W, D, dtype)
  cache, found = Cache(keys, values, room, room), np.zeros((W, P, N, H, D), np.float32)
  q, k, v = normal(W, P, N, H, D), normal(W, P, N, K, D), normal(W, P, N, K, D)
  delays = np.array(delays)
  run = jax.jit(functools.partial(cached_attention, scale=D**-0.5, window=window))
  for clock in range(W + max(delays)):
    step = clock - delays
    now = jnp.asarray(np.clip(step, 0, W - 1), jnp.int32)
    one = now[0] if not delays.any() else now
    y, cache = run(*(x[now, np.arange(P)] for x in (q, k, v)), cache, LONG, one, jnp.int32((first + clock) % W))
    for p in np.flatnonzero((step >= 0) & (step < W)):
      found[step[p], p] = y[p]
  return found, (q, k, v), (keys, values)


def at_once(window):
  """The same in one softmax, without a cache, in numpy."""
  found, (q, k, v), (keys, values) = attend(None, window=window)
  expected = np.zeros_like(found)
  for p in range(P):
    for n in range(N):
      join = lambda prompt, new, p=p, n=n: np.concatenate([prompt.values[p, :, : LONG[p]], np.swapaxes(new[:, p, n], 0, 1)], 1).repeat(H // K, 0)
      all_keys, all_values = join(keys, k), join(values, v)
      for step in range(W):
        here = LONG[p] + step
        seen = slice(max(0, here + 1 - window) if window else 0, here + 1)
        logits = np.einsum('hd,hld->hl', q[step, p, n], all_keys[:, seen]) * D**-0.5
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        expected[step, p, n] = np.einsum('hl,hld->hd', weights / weights.sum(-1, keepdims=True), all_values[:, seen])
  return found, expected


@pytest.mark.parametrize('window', [None, 3])
def test_attention_to_a_cache_is_attention_to_everything_at_once(window):
  found, expected = at_once(window)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  # Wherever in the ring responses begin, and whenever.
  np.testing.assert_allclose(attend(None, first=4, window=window)[0], expected, atol=1e-5)
  np.testing.assert_allclose(attend(None, first=5, window=window, delays=(0, 3, 7))[0], expected, atol=1e-5)


@pytest.mark.parametrize(('dtype', 'least', 'most'), [('bfloat16', 1e-4, 4e-3), ('int8', 1e-3, 1.5e-2)])
def test_fewer_bits_cost_about_a_hundredth_of_attention(dtype, least, most):
  exact, found = attend(None)[0], attend(dtype)[0]
  assert least < np.linalg.norm(found - exact) / np.linalg.norm(exact) < most
  late = attend(dtype, first=3, delays=(0, 1, 5))[0]  # a token is stored the same wherever it is
  np.testing.assert_allclose(late, found, atol=1e-5)


@pytest.mark.parametrize(('dtype', 'per_head'), [(None, 4 * 4), ('bfloat16', 2 * 4), ('int8', 1 * 4 + 4)])
def test_bytes_of_a_cache(dtype, per_head):
  """Per token and head: so many numbers, 4, and the scale."""

  def caches(params, responses):
    network = steps.make_network(Decoder(PLAIN), params, dtype)
    request = steps.make_request(PLAIN, PROMPTS, LENGTHS, KEYS, responses=3, max_new_tokens=12, budgets=None, allowed=None)
    return steps.make_caches(network, steps.prefill(network, request)[1], responses, 12)

  for responses in (12, 5):  # all, or as many as there are slots
    found = jax.eval_shape(functools.partial(caches, responses=responses), plain()[1])
    layers, kinds, key_heads, tokens = 2, 2, 2, 4 * 10 + responses * 11
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(found)) == layers * kinds * key_heads * tokens * per_head


@functools.cache
def compiled(decoder, dtype, new):
  call = lambda params, prompts, lengths, keys, temperature: generate(
    decoder, params, prompts, lengths, keys, responses=keys.shape[1], max_new_tokens=new, sampling=Sampling(temperature), cache_dtype=dtype
  )  # fmt: skip
  return jax.jit(call, compiler_options={'xla_backend_optimization_level': 0})


@pytest.mark.parametrize(('dtype', 'most'), [('bfloat16', 0.05), ('int8', 0.1)])
def test_log_probs_are_near_those_of_the_training_forward(dtype, most):
  decoder, params = plain()
  batch = compiled(decoder, dtype, 12)(params, PROMPTS, LENGTHS, KEYS, 1.0)
  logits = decoder.apply({'params': params}, batch.tokens, batch.positions, batch.subtree_end, method=decoder.logits)
  error = np.abs(batch.labels['log_probs'] - trees.path_log_probs(logits, batch)) * batch.labels['mask']
  assert 1e-4 < error.max() < most
  first = np.asarray(batch.labels['mask']).astype(bool) & (np.asarray(batch.parents) == LENGTHS[:, None] - 1)
  assert first.sum() == 12 and error[first].max() < 1e-5  # the prompt itself is computed as ever


@pytest.mark.parametrize('dtype', ['bfloat16', 'int8'])
def test_greedy_text_of_a_real_llama_stays(real_data, dtype):
  path = real_data / 'checkpoints' / 'stories260K'
  decoder = Decoder(pretrained.read_config(path / 'hf'))
  params = pretrained.load_decoder(path / 'hf', abstract(decoder))
  items = json.loads((path / 'golden.json').read_text())['items']
  prompts, lengths = pack_prompts([item['ids'] for item in items], length=20)
  batch = compiled(decoder, dtype, 64)(params, prompts, lengths, KEYS[: len(items), :1], 0.0)
  same = [np.cumprod(np.equal(responses_of(batch, row)[0], item['greedy_ids_64'])).mean() for row, item in enumerate(items)]
  assert np.mean(same) > 0.5  # of the tokens, until the first that is another
