"""Generation against Hugging Face's `generate`, and the choices inside: layers unrolled or scanned, and the cache's layout.

  python -m benchmarks.generate [--cases=plain,shared,skewed] [--rounds=5] [--hf_python=PYTHON] [--cores=1]
  python -m benchmarks.generate --choices [--rounds=5]

One JSON line a case and implementation. A Llama of 25M parameters in float32; `plain` is 64 prompts of 64 tokens, `shared` 8 prompts of 256
tokens with 8 responses each, all with 64 new tokens. `skewed` is 16 prompts of 64 tokens with 4 responses each, whose lengths are lognormal, with
median 32, sigma 1 and at most 256: rmjax serves them from a queue with 16 slots (`rmjax`), or holds all 64 until the longest has ended
(`rmjax_at_once`), as Hugging Face does; tokens are those within the lengths. Rounds of all are interleaved, so that what else the machine does falls
on all; the ratios, of medians, are rmjax over the others in tokens a second and a second of CPU time. PYTHON is an interpreter that has torch and
transformers; by default this one, if it has them. On a machine that others use, --cores=1 is the fair comparison: the threads of torch wait for one
another in loops, so that two of them on busy cores take many times as long.
"""

from collections.abc import Iterator
import functools
import importlib.util
import os
import random
import statistics
import sys
from typing import NamedTuple

from benchmarks import peers
from benchmarks.peers import HEADS, LAYERS, LLAMA, measure, Measured, report


class Case(NamedTuple):
  """What is generated."""

  prompts: int
  responses: int  # to each
  length: int  # of a prompt
  new: int  # tokens at most
  slots: int = 0  # of the queue; 0 for none, and all responses of the same length

  def budgets(self) -> list[int]:
    """Tokens of every response."""
    count, draw = self.prompts * self.responses, random.Random(0)
    return [min(self.new, max(1, round(draw.lognormvariate(3.466, 1.0)))) if self.slots else self.new for _ in range(count)]


CASES = {'plain': Case(64, 1, 64, 64), 'shared': Case(8, 8, 256, 64), 'skewed': Case(16, 4, 64, 256, slots=16)}


def hugging_face(case: str) -> Iterator[Measured]:
  """Runs of `generate` in this interpreter; the first is not measured."""
  import torch

  prompts, responses, length, new, _ = CASES[case]
  model = peers.torch_llama()
  ids = torch.randint(3, LLAMA['vocab_size'], (prompts, length))
  budgets = torch.tensor(CASES[case].budgets())

  @torch.no_grad()
  def run():
    found = model.generate(
      input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, temperature=1.0, num_return_sequences=responses,
      max_new_tokens=new, min_new_tokens=new, use_cache=True, stopping_criteria=[lambda ids, *_, **__: ids.shape[1] - length >= budgets],
    )  # fmt: skip
    assert found.shape == (prompts * responses, length + budgets.max())

  run()
  while True:
    yield measure(run)


def ours(case: str, slots: int) -> Iterator[Measured]:
  """Runs of rmjax, from a queue if there are slots; what comes first is seconds of compilation, and no run."""
  import jax
  import numpy as np

  from rmjax.decoding.continuous import generate_queue
  from rmjax.decoding.generate import generate

  count, responses, length, new, _ = CASES[case]
  decoder, params = peers.decoder_and_params()
  prompts = np.random.default_rng(0).integers(3, LLAMA['vocab_size'], (count, length)).astype(np.int32)
  lengths = np.full(count, length, np.int32)
  budgets = np.int32(CASES[case].budgets()).reshape(count, responses)
  call = functools.partial(generate_queue, slots=slots) if slots else generate
  run = jax.jit(lambda params, key: call(decoder, params, prompts, lengths, key, responses=responses, max_new_tokens=new, budgets=budgets))
  lowered = run.lower(params, jax.random.key(0))
  yield measure(lowered.compile)
  for i in range(1 << 30):
    run_once = functools.partial(run, params, jax.random.key(i))
    if not i:
      jax.block_until_ready(run_once())
    yield measure(lambda run_once=run_once: jax.block_until_ready(run_once()))


def compare(case: str, rounds: int, hf_python: str) -> None:
  """Prints what all do on a case."""
  pythons = {'rmjax': sys.executable} | ({'rmjax_at_once': sys.executable} if CASES[case].slots else {})
  runs = {name: peers.elsewhere(python, 'benchmarks.generate', name, case) for name, python in pythons.items()}
  compilation = {name: dict(compile_s=next(run).seconds) for name, run in runs.items()}
  if hf_python:
    runs['hugging_face'] = peers.elsewhere(hf_python, 'benchmarks.generate', 'hugging_face', case)
  peers.compare(case, sum(CASES[case].budgets()), peers.take_turns(runs, rounds), **compilation)
  for run in runs.values():
    run.close()


def choices(rounds: int) -> None:
  """Prints the time of a step of decoding, 64 responses after 32 tokens of 64, as the layers and the cache of responses are arranged.

  No prompts and no sampling: what is compared is how the weights and the cache reach the layers.
  """
  import jax
  import jax.numpy as jnp

  from rmjax.backbones.decoder import Block, NO_WINDOW, rope_angles

  decoder, params = peers.decoder_and_params()
  config, block, (batch, slots, steps) = decoder.config, Block(decoder.config, decoder.dtype), (64, 64, 16)

  def attend(cache, step, layout, q, k, v, *, scale, **_):
    """With heads before length, 'bhtd', or after it, 'bthd'."""
    axis = layout.index('t')
    new = [jnp.expand_dims(x[:, 0], axis) for x in (k, v)]
    keys, values = (jax.lax.dynamic_update_slice_in_dim(old, x, step, axis) for old, x in zip(cache, new, strict=True))
    logits = jnp.einsum(f'bhd,{layout}->bht', q[:, 0], keys) * scale
    weights = jax.nn.softmax(jnp.where(jnp.arange(slots) <= step, logits, -1e30))
    return jnp.einsum(f'bht,{layout}->bhd', weights, values)[:, None], (keys, values)

  def layer(x, weights, cache, step, layout):
    angles = rope_angles(config, jnp.full((batch, 1), step))
    return block.apply({'params': weights}, x, NO_WINDOW, angles, None, None, functools.partial(attend, cache, step, layout))

  def unrolled(x, weights, caches, step, layout):
    found = []
    for layer_weights, cache in zip(weights, caches, strict=True):
      x, cache = layer(x, layer_weights, cache, step, layout)
      found.append(cache)
    return x, found

  def scanned(x, weights, caches, step, layout):
    """The caches go through as inputs and outputs."""
    return jax.lax.scan(lambda x, scan: layer(x, *scan, step, layout), x, (weights, caches))

  def carried(x, weights, caches, step, layout):
    """The caches of all layers are carried, and each layer takes its own out and puts it back."""

    def one(carry, scan):
      (x, caches), (i, layer_weights) = carry, scan
      x, cache = layer(x, layer_weights, jax.tree.map(lambda all_: jax.lax.dynamic_index_in_dim(all_, i, keepdims=False), caches), step, layout)
      return (x, jax.tree.map(lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, i, 0), caches, cache)), None

    (x, caches), _ = jax.lax.scan(one, (x, caches), (jnp.arange(LAYERS), weights))
    return x, caches

  stacked = params['layers']
  apart = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(LAYERS)]
  forms = {'unrolled': (unrolled, apart), 'scanned': (scanned, stacked), 'carried': (carried, stacked)}
  runs = {}
  for layout, shape in {'bhtd': (batch, HEADS, slots, 64), 'bthd': (batch, slots, HEADS, 64)}.items():
    for name, (form, weights) in forms.items():
      caches = [(jnp.zeros(shape),) * 2] * LAYERS if name == 'unrolled' else (jnp.zeros((LAYERS, *shape)),) * 2

      @jax.jit
      def decode(weights, caches, form=form, layout=layout):
        step = lambda i, carry: form(carry[0] * 1e-3, weights, carry[1], 32 + i, layout)
        return jax.lax.fori_loop(0, steps, step, (jnp.ones((batch, 1, LLAMA['hidden_size'])), caches))[0]

      runs[name, layout] = functools.partial(decode, weights, caches)
      jax.block_until_ready(runs[name, layout]())
  measured = {case: [] for case in runs}
  for _ in range(rounds):
    for case, run in runs.items():
      measured[case].append(measure(lambda run=run: jax.block_until_ready(run())))
  for (layers, layout), values in measured.items():
    wall, cpu, _ = (1e3 * statistics.median(column) / steps for column in zip(*values, strict=True))
    report(layers=layers, cache=layout, ms_per_step=wall, cpu_ms_per_step=cpu)


def main(_: list[str]) -> None:
  """Runs what the flags say."""
  if flags.FLAGS.cores:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.FLAGS.cores])  # before JAX counts them; other processes inherit it
  if flags.FLAGS.choices:
    choices(flags.FLAGS.rounds)
    return
  here = all(importlib.util.find_spec(name) for name in ('torch', 'transformers'))
  for case in flags.FLAGS.cases:
    compare(case, flags.FLAGS.rounds, flags.FLAGS.hf_python or (sys.executable if here else ''))


if __name__ == '__main__':
  if sys.argv[1:2] == [peers.SERVE]:
    name, case = sys.argv[2:]
    peers.serve(hugging_face(case) if name == 'hugging_face' else ours(case, CASES[case].slots if name == 'rmjax' else 0))
  else:
    from absl import app, flags

    flags.DEFINE_list('cases', list(CASES), f'Of {", ".join(CASES)}.')
    flags.DEFINE_integer('rounds', 5, 'Times that each is run.')
    flags.DEFINE_integer('cores', 0, 'How many to use; 0 for all.')
    flags.DEFINE_string('hf_python', '', 'An interpreter with torch and transformers.')
    flags.DEFINE_bool('choices', False, 'Compares arrangements of layers and cache in place of implementations.')
    app.run(main)
