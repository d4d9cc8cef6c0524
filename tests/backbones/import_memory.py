"""Imports a Hugging Face directory and prints how much memory that took at its peak; a process of its own, run by test_pretrained.py."""

from pathlib import Path
import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmjax.backbones import pretrained
from rmjax.backbones.decoder import Decoder


def peak() -> int:
  """Most bytes that this process has held (getrusage would count those of its parent before exec)."""
  return int(re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024


def main() -> None:
  """Prints the peak of an import beyond what Python and JAX had taken before."""
  directory = sys.argv[1]
  decoder, tokens = Decoder(pretrained.read_config(directory)), jnp.zeros((1, 4), jnp.int32)
  abstract = nn.unbox(jax.eval_shape(lambda key: decoder.init(key, tokens, tokens, tokens, method=decoder.logits), jax.random.key(0)))['params']
  jax.jit(lambda x: x + 1)(tokens).block_until_ready()
  before = peak()
  params = pretrained.load_decoder(directory, abstract)
  jax.block_until_ready(params)
  print(peak() - before)


if __name__ == '__main__':
  main()
