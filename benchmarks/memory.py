"""Peak memory of training steps by the length of the texts, beside TRL.

  python -m benchmarks.memory [--systems=reward,dpo,dpo_cached] [--lengths=512,1024,2048,4096] [--remat=dots,full] [--trl_python=PYTHON] [--cores=1]

Two steps of each in a fresh process, whose largest resident memory it is, compilation and the computation of a cached reference included. A batch has
8,192 tokens, but two texts at least: pairs without a shared prompt and of one length, so that neither packing nor sharing saves anything here. A row of
rmjax holds the batch. With `full`, both compute a layer's activations anew in the backward pass (TRL: gradient checkpointing, which is its default); with
`dots`, rmjax keeps matrix products and attention, and TRL everything.
One JSON line a case and implementation, and one of their ratio (`peak_ratio`; below 1, rmjax takes less). GRPO's peak is in benchmarks/grpo_step.py.
"""

import tempfile

from absl import app, flags

from benchmarks.preference_steps import compare, prepare, Work

TOKENS = 8192

_SYSTEMS = flags.DEFINE_list('systems', ['reward', 'dpo', 'dpo_cached'], 'What is trained.')
_LENGTHS = flags.DEFINE_list('lengths', ['512', '1024', '2048', '4096'], 'Of a response with its prompt.')
_REMAT = flags.DEFINE_list('remat', ['dots', 'full'], 'What the backward pass of rmjax computes anew.')
_CORES = flags.DEFINE_integer('cores', 0, 'How many to use; 0 for all.')
_TRL = flags.DEFINE_string('trl_python', '', 'An interpreter with torch, transformers and trl.')


def main(_: list[str]) -> None:
  """Runs what the flags say."""
  with tempfile.TemporaryDirectory() as directory:
    pythons = prepare(directory, _TRL.value, _CORES.value)
    for system in _SYSTEMS.value:
      for remat in _REMAT.value:
        for length in map(int, _LENGTHS.value):
          pair = (1, [length - 1, length - 1])
          work = Work(system, directory, [pair] * max(TOKENS // (2 * length), 1), remat=remat)
          compare(f'{system} {length} remat {remat}', work, pythons, rounds=1)


if __name__ == '__main__':
  app.run(main)
