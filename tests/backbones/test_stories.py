"""A real pretrained Llama: its logits, log-probabilities and greedy text, as a float64 reference gave them."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import trees
from rmjax.backbones import pretrained
from rmjax.backbones.decoder import Decoder

LENGTH = 128


@pytest.fixture(scope='module', name='stories')
def _stories(real_data):
  path = real_data / 'checkpoints' / 'stories260K'
  decoder = Decoder(pretrained.read_config(path / 'hf'))
  example = jnp.zeros((1, LENGTH), jnp.int32)
  abstract = nn.unbox(jax.eval_shape(decoder.init, jax.random.key(0), example, example, example)['params'])
  params = pretrained.load_decoder(path / 'hf', abstract)
  forward = jax.jit(lambda layout: decoder.apply({'params': params}, layout.tokens, layout.positions, layout.subtree_end, method=decoder.logits))
  return forward, json.loads((path / 'golden.json').read_text())['items'], np.load(path / 'golden_logits.npz')


def layout(ids):
  return trees.pack([[trees.Tree((trees.Segment(ids),), {})]], length=LENGTH, slots=1, responses=1)


def test_logits_and_log_probs(stories):
  forward, items, logits = stories
  for i, item in enumerate(items):
    batch = layout(item['ids'])
    ours = forward(batch)
    golden = logits[sorted(logits.files)[i]]
    np.testing.assert_allclose(ours[0, : len(golden)], golden, atol=1e-4 * np.abs(golden).max())
    log_p = trees.path_log_probs(ours, batch)[0, 1 : len(item['ids'])]
    np.testing.assert_allclose(log_p, item['token_logprobs'], atol=2e-4)


def test_greedy_text(stories):
  forward, items, _ = stories
  for item in items:
    ids = list(item['ids'])
    for _ in range(64):
      ids.append(int(forward(layout(ids))[0, len(ids) - 1].argmax()))
    assert ids[len(item['ids']) :] == item['greedy_ids_64']
