"""Log-probs and entropies of tokens: those of each path alone, at any temperature and chunk, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import trees
from rmjax.backbones.decoder import Decoder, DecoderConfig
from rmjax.errors import InputError
from rmjax.policy.log_probs import token_log_probs

SIZES = dict(vocab_size=11, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, logit_softcap=3.0)
BATCH = trees.pack(
  [[trees.branch([1, 2, 3], [[4, 5, 6], [7]]), trees.branch([8], [[9, 10], [1, 1, 2]])], [trees.chain([3, 3], [[2, 4], [5]])]], length=16, slots=2, responses=2
)


@pytest.fixture(scope='module', name='policy', params=[True, False])
def _policy(request):
  decoder = Decoder(DecoderConfig(**SIZES, tie_embeddings=request.param))
  variables = decoder.init(jax.random.key(0), BATCH.tokens, BATCH.positions, BATCH.subtree_end, method='logits')
  params = jax.tree.map(lambda x: x.value, variables['params'], is_leaf=lambda x: hasattr(x, 'value'))
  return decoder, params


def test_they_are_those_of_each_path_alone(policy):
  decoder, params = policy
  log_probs, entropy = token_log_probs(decoder, params, BATCH, temperature=0.7)
  assert log_probs.dtype == entropy.dtype == jnp.float32
  np.testing.assert_array_equal(log_probs[BATCH.response_ids < 0], 0.0)
  np.testing.assert_array_equal(entropy[BATCH.response_ids < 0], 0.0)
  for r, column in zip(*np.nonzero(BATCH.response_ids >= 0), strict=True):
    path = [column]
    while BATCH.parents[r, path[0]] >= 0:
      path.insert(0, BATCH.parents[r, path[0]])
    alone = BATCH.tokens[r, path][None]
    logits = decoder.apply({'params': params}, alone, np.arange(len(path))[None], np.full_like(alone, len(path)), method='logits')
    p = jax.nn.softmax(logits[0, -2] / 0.7)
    np.testing.assert_allclose(log_probs[r, column], np.log(p[alone[0, -1]]), atol=1e-5)
    np.testing.assert_allclose(entropy[r, column], -(p * np.log(p)).sum(), atol=1e-5)
    assert entropy[r, column] <= np.log(11)


@pytest.mark.parametrize('chunk', [1, 5, 16, 99])
def test_chunks_change_nothing(policy, chunk):
  decoder, params = policy

  def loss(params, temperature, chunk):
    log_probs, entropy = token_log_probs(decoder, params, BATCH, temperature=temperature, chunk=chunk)
    return jnp.sum(log_probs + 0.3 * entropy**2)

  run = jax.jit(jax.value_and_grad(loss), static_argnums=2)
  whole, cut = (run(params, 1.3, size) for size in (0, chunk))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), whole, cut)


def test_half_precision_gives_float32(policy):
  decoder, params = policy
  half = Decoder(decoder.config, dtype=jnp.bfloat16)
  log_probs, entropy = token_log_probs(half, params, BATCH)
  assert log_probs.dtype == entropy.dtype == jnp.float32
  np.testing.assert_allclose(log_probs, token_log_probs(decoder, params, BATCH)[0], atol=0.1)


def test_a_negative_chunk_is_named(policy):
  with pytest.raises(InputError, match='chunk = -1: it must be positive, or 0'):
    token_log_probs(*policy, BATCH, chunk=-1)
