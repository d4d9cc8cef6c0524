"""What it costs to score a group: one pass over the prompt and all responses, or a pass for each response."""

from collections.abc import Sequence
import time

import jax
import ml_collections
import numpy as np

from experiments.setup import setup
from rmjax import trees
from rmjax.training.mesh import one_device_mesh
from rmjax.training.saved import init_params


def study(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """Counts and times one group of random tokens under the config's model.

  Args:
    config: of an arm; `cost` has the tokens of a `prompt` and of a `response`, the number of `responses`, and the `repeats` of which the fastest counts.
    seeds: of the tokens; operations do not depend on them.

  Returns:
    operations_separate, operations_chain, operations_branch: floating-point operations of the compiled program by XLA's own count. It counts
      the body of a loop once, and layers are a loop: compare them, do not add them up, and keep rows so short that attention is
      dense and no loop. operations_ratio and branch_ratio are separate over chain and over branch. seconds_...: of a pass on this machine,
      whatever else it does.
  """
  run, c = setup(config, mesh=one_device_mesh()), config.cost
  params = init_params(run.model, '', run.mesh, jax.random.key(0))
  apply = jax.jit(lambda batch: run.model.head.reward(run.model.apply({'params': params}, batch)))
  return [_measure(apply, seed, run.tokenizer.vocab_size, c) for seed in seeds]


def _measure(apply, seed: int, vocabulary: int, c: ml_collections.ConfigDict) -> dict[str, float]:
  rng = np.random.default_rng(seed)
  prompt, *responses = (rng.integers(0, vocabulary, size).tolist() for size in (c.prompt, *[c.response] * c.responses))
  whole = dict(length=c.prompt + c.responses * c.response, slots=1, responses=c.responses)
  batches = dict(
    chain=trees.pack([[trees.chain(prompt, responses)]], **whole),
    branch=trees.pack([[trees.branch(prompt, responses)]], **whole),
    separate=trees.pack([[trees.branch(prompt, [response])] for response in responses], length=c.prompt + c.response, slots=1, responses=1),
  )
  figures = {}
  for name, batch in batches.items():
    compiled = apply.lower(batch).compile()
    figures[f'operations_{name}'] = float(compiled.cost_analysis()['flops'])
    figures[f'seconds_{name}'] = min(_seconds(compiled, batch) for _ in range(c.repeats))
  figures['operations_ratio'] = figures['operations_separate'] / figures['operations_chain']
  figures['branch_ratio'] = figures['operations_separate'] / figures['operations_branch']
  return figures


def _seconds(compiled, batch: trees.Trees) -> float:
  started = time.perf_counter()
  jax.block_until_ready(compiled(batch))
  return time.perf_counter() - started
