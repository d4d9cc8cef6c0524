"""Logits of every family as transformers computes them; tests/goldens/make_decoder_goldens.py says how the goldens were made."""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.backbones import pretrained
from rmjax.backbones.decoder import Decoder

GOLDENS = Path(__file__).parents[1] / 'goldens' / 'decoders'
FAMILIES = ['llama', 'llama3', 'llama_linear', 'mistral', 'qwen2', 'qwen3', 'gemma2', 'gemma3', 'gemma3_linear', 'qwen3_sliding']


def load(family):
  decoder = Decoder(pretrained.read_config(GOLDENS / family))
  golden = np.load(GOLDENS / family / 'golden.npz')
  ids = golden['ids']
  layout = (ids, np.broadcast_to(np.arange(ids.shape[1]), ids.shape), np.full(ids.shape, ids.shape[1]))
  abstract = nn.unbox(jax.eval_shape(lambda key: decoder.init(key, *layout, method=decoder.logits), jax.random.key(0)))['params']
  return decoder, pretrained.load_decoder(GOLDENS / family, abstract), layout, golden['logits']


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_are_those_of_transformers(family):
  decoder, params, layout, golden = load(family)
  logits = jax.jit(lambda params: decoder.apply({'params': params}, *layout, method=decoder.logits))(params)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, golden, atol=1e-4 * np.abs(golden).max(), rtol=0)


@pytest.mark.parametrize('family', FAMILIES)
def test_export_writes_what_was_read(family, tmp_path):
  decoder, params, _, _ = load(family)
  pretrained.save(tmp_path, decoder.config, params, max_shard_bytes=8000)
  assert len(list(tmp_path.glob('model-*.safetensors'))) > 1
  assert pretrained.read_config(tmp_path) == decoder.config
  again = pretrained.load_decoder(tmp_path, jax.eval_shape(lambda: params))
  jax.tree.map(np.testing.assert_array_equal, again, params)
