"""A small random decoder and prompts for it, which tests of generation share."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rmjax.backbones.decoder import Decoder, DecoderConfig
from rmjax.decoding.generate import pack_prompts

PLAIN = DecoderConfig(vocab_size=48, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, max_positions=64)
RNG = np.random.default_rng(0)
PROMPTS, LENGTHS = pack_prompts([RNG.integers(0, 48, n).tolist() for n in (1, 9, 5, 10)], length=10)
STOPS = (2, 5, 7, 9)
KEY = jax.random.key(1)
KEYS = jax.random.split(KEY, (4, 3))


def abstract(decoder, *, boxed=False):
  example = jnp.zeros((1, 4), jnp.int32)
  shapes = jax.eval_shape(lambda key: decoder.init(key, example, example, example, method=decoder.logits), jax.random.key(0))['params']
  return shapes if boxed else nn.unbox(shapes)


@functools.cache
def plain(seed=0):
  """A random decoder whose distributions are neither flat nor sharp."""
  decoder, rng = Decoder(PLAIN), np.random.default_rng(seed)
  draw = lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32) / leaf.shape[-1] ** 0.25)
  return decoder, jax.tree.map(draw, abstract(decoder))


def responses_of(batch, row):
  ids, tokens = np.asarray(batch.response_ids[row]), np.asarray(batch.tokens[row])
  return [tokens[ids == n].tolist() for n in range(batch.response_ends.shape[-1])]


def no_repeats(logits, progress):
  """Forbids what the response or its prompt has said."""
  seen = lambda tokens, valid: (jax.nn.one_hot(tokens, 48) * valid[..., None]).any(-2)
  in_response = seen(progress.tokens, jnp.arange(progress.tokens.shape[-1]) < progress.step)
  in_prompt = seen(progress.prompts, jnp.arange(progress.prompts.shape[-1]) < progress.lengths[:, None])
  return jnp.where(in_response | in_prompt[:, None], -jnp.inf, logits)
