"""What the benchmarks share: the model's shape, runs that take turns, each in a process of its own, and the lines that are printed.

Nothing but the standard library is imported here, since peers run in interpreters that have neither JAX nor absl.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import json
from pathlib import Path
import resource
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

LLAMA = dict(vocab_size=8192, hidden_size=384, intermediate_size=1536)  # 25M parameters
LAYERS, HEADS = 8, 6
MATMUL_SIZE, MATMULS = 2048, 8
MATMUL_FLOP = 2 * MATMUL_SIZE**3 * MATMULS  # of a run of `matmul`
SERVE = 'serve'  # first argument of a process that runs when it is asked to

Lengths = Sequence[tuple[int, Sequence[int]]]  # of each prompt and of its responses, in tokens


class Measured(NamedTuple):
  """One run: seconds, those of CPU time, and the process's largest memory so far in MB."""

  seconds: float
  cpu_seconds: float
  peak_mb: float


class Clock:
  """Measures from its making on."""

  def __init__(self):
    self.wall, self.cpu = time.perf_counter(), time.process_time()

  def read(self) -> Measured:
    """What has gone by."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Measured(time.perf_counter() - self.wall, time.process_time() - self.cpu, peak)


def measure(run: Callable[[], object]) -> Measured:
  """One run, which waits for its result."""
  clock = Clock()
  run()
  return clock.read()


def elsewhere(python: str, module: str, *arguments: str) -> Iterator[Measured]:
  """Runs of `python -m module serve *arguments`, another process, which runs only when it is asked to.

  Its largest memory begins at that of the process which starts it, so that one should be small.
  """
  command = [python, '-m', module, SERVE, *arguments]
  root = Path(__file__).parents[1]
  with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
    try:
      while True:
        process.stdin.write('\n')
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
          raise RuntimeError(f'{" ".join(command)} stopped: its error is above')
        yield Measured(*json.loads(line))
    finally:
      process.stdin.close()


def serve(runs: Iterator[Measured]) -> None:
  """The other end of `elsewhere`. What a library prints goes to the standard error, so that the answers stand alone."""
  answers, sys.stdout = sys.stdout, sys.stderr
  for _ in sys.stdin:
    print(json.dumps(next(runs)), file=answers, flush=True)


def take_turns(runs: Mapping[str, Iterator[Measured]], rounds: int) -> dict[str, list[Measured]]:
  """So many runs of each, in turns, so that what else the machine does falls on all."""
  measured = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      measured[name].append(next(run))
  return measured


def matmul() -> Iterator[Measured]:
  """Runs of a few large float32 products in JAX, by which others' speed is judged; the first is not measured."""
  import jax
  import jax.numpy as jnp

  a, b = jax.random.normal(jax.random.key(0), (2, MATMUL_SIZE, MATMUL_SIZE))
  product = jax.jit(jnp.matmul)
  run = lambda: [product(a, b).block_until_ready() for _ in range(MATMULS)]
  run()
  while True:
    yield measure(run)


def forward_flop(lengths: Lengths, logits: bool) -> float:
  """Floating-point operations of a forward pass over trees, padding left out.

  With T tokens in all trees, of which C are of responses, a layer of n parameters in matrices, D hidden and V vocabulary: 2 n T for each layer's
  products, 4 D sum(depth) for its attention (queries with keys and weights with values; a token at depth k sees k tokens, itself included), and
  2 D V C for the logits, if they are computed. A training step is three of these.
  """
  hidden = LLAMA['hidden_size']
  layer = 4 * hidden**2 + 3 * hidden * LLAMA['intermediate_size']
  up_to = lambda k: k * (k + 1) // 2
  depths = sum(up_to(prompt) + sum(up_to(prompt + response) - up_to(prompt) for response in responses) for prompt, responses in lengths)
  of_layers = LAYERS * (2 * layer * sum(prompt + sum(responses) for prompt, responses in lengths) + 4 * hidden * depths)
  return float(of_layers + logits * 2 * hidden * LLAMA['vocab_size'] * sum(sum(responses) for _, responses in lengths))


def part_of_peak(flop: Sequence[float], runs: Sequence[Measured], products: Sequence[Measured]) -> dict[str, float]:
  """How much of the speed of large matrix products, in the same rounds, runs of so many operations reach; medians.

  Returns:
    `fraction_of_peak` and `cpu_fraction_of_peak`, by wall and CPU time, and `matmul_gflops`, what the products reached by wall time.
  """
  rounds = list(zip(flop, runs, products, strict=True))
  part = lambda clock: statistics.median(count / getattr(run, clock) * getattr(product, clock) / MATMUL_FLOP for count, run, product in rounds)
  peak = MATMUL_FLOP / statistics.median(product.seconds for product in products) / 1e9
  return dict(fraction_of_peak=part('seconds'), cpu_fraction_of_peak=part('cpu_seconds'), matmul_gflops=peak)


def compare(case: str, tokens: float, measured: Mapping[str, list[Measured]], **further: Mapping[str, float]) -> None:
  """Prints a line for each implementation, and one with rmjax's ratios to every other.

  Rates are of medians of tokens a second and a second of CPU time; `median_ratio` and `median_cpu_ratio` are medians of each round's.
  """
  rates = {}
  for name, values in measured.items():
    wall, cpu, peak = zip(*values, strict=True)
    rates[name] = tokens / statistics.median(wall), tokens / statistics.median(cpu), max(peak)
    line = dict(case=case, implementation=name, tokens_per_s=rates[name][0], tokens_per_cpu_s=rates[name][1], peak_mb=max(peak))
    report(**line, seconds=wall, cpu_seconds=cpu, **further.get(name, {}))
  ours = rates.get('rmjax')
  for name, theirs in rates.items():
    if ours and name != 'rmjax':
      ratios = {key: a / b for key, a, b in zip(('tokens_per_s_ratio', 'tokens_per_cpu_s_ratio', 'peak_ratio'), ours, theirs, strict=True)}
      rounds = list(zip(measured['rmjax'], measured[name], strict=True))
      ratios['median_ratio'] = statistics.median(b.seconds / a.seconds for a, b in rounds)
      ratios['median_cpu_ratio'] = statistics.median(b.cpu_seconds / a.cpu_seconds for a, b in rounds)
      report(case=case, against=name, **ratios)


def report(**line: object) -> None:
  """Prints it."""
  rounded = lambda value: round(value, 3) if isinstance(value, float) else [rounded(x) for x in value] if isinstance(value, tuple) else value
  print(json.dumps({name: rounded(value) for name, value in line.items()}), flush=True)


def torch_llama():
  """Hugging Face's model of the shape, in evaluation mode."""
  import transformers

  config = transformers.LlamaConfig(
    **LLAMA, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=2048, tie_word_embeddings=False,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
  )  # fmt: skip
  return transformers.AutoModelForCausalLM.from_config(config).eval()


def decoder_and_params(remat: str = 'none'):
  """Our model of the shape, whose backward pass computes again what `remat` says, and random parameters."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp

  from rmjax.backbones.decoder import Decoder, DecoderConfig

  decoder = Decoder(DecoderConfig(**LLAMA, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=HEADS, tie_embeddings=False), remat=remat)
  example = jnp.zeros((1, 4), jnp.int32)
  return decoder, nn.unbox(jax.jit(functools.partial(decoder.init, method='logits'))(jax.random.key(0), example, example, example))['params']


if __name__ == '__main__':
  serve(matmul())
