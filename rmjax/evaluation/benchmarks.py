"""The benchmarks by name."""

from collections.abc import Mapping

from rmjax.errors import InputError
from rmjax.evaluation.items import Benchmark
from rmjax.evaluation.multilingual import m_rewardbench
from rmjax.evaluation.processbench import processbench
from rmjax.evaluation.rankings import alpaca_eval, best_of_n, rankings
from rmjax.evaluation.rewardbench import judgebench, length_buckets, llmbar, rewardbench
from rmjax.evaluation.rewardbench2 import rewardbench2
from rmjax.evaluation.rm_bench import rm_bench

BENCHMARKS: Mapping[str, Benchmark] = dict(
  rewardbench=rewardbench,
  rewardbench2=rewardbench2,
  m_rewardbench=m_rewardbench,
  rm_bench=rm_bench,
  judgebench=judgebench,
  llmbar=llmbar,
  processbench=processbench,
  rankings=rankings,
  best_of_n=best_of_n,
  length_buckets=length_buckets,
  alpaca_eval=alpaca_eval,
)


def find_benchmark(name: str) -> Benchmark:
  """The benchmark of a name.

  Raises:
    InputError: there is none.
  """
  if name not in BENCHMARKS:
    raise InputError(f'--benchmark={name}: choose one of {", ".join(BENCHMARKS)}')
  return BENCHMARKS[name]
