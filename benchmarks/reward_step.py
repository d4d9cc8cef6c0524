"""A training step of a Bradley-Terry reward model beside TRL's RewardTrainer: tokens a second, part of the machine's peak, memory.

  python -m benchmarks.reward_step [--cases=0:2,4:8] [--rounds=5] [--length=1024] [--trl_python=PYTHON] [--cores=1]

JSON lines a case: one an implementation, one of rmjax's ratios to the other, and one of how much their losses differ over all steps. A Llama of 22M
parameters in float32, made by transformers and read by both; AdamW, gradients clipped. A case is RATIO:N: prompts have RATIO times as many tokens
as their N responses in the mean (0: no shared prompts), and of each two responses one is preferred. Responses with their prompts have lognormal
lengths (median 180, 64 to 512); 8 comparisons, or those of one prompt if they are more. TRL's step is its trainer's own loss, collator and optimiser
on padded batches of 8 comparisons, without gradient checkpointing; rmjax's is `rmjax.training` on packed trees, `remat=dots`. What is counted as a
token and as work is said in benchmarks/preference_steps.py. Each is a process of its own, in turns, and its largest memory includes compilation.
PYTHON is an interpreter that has torch, transformers and trl; by default this one, if it has them.
"""

import tempfile

from absl import app, flags

from benchmarks.preference_steps import CASES, compare, prepare, realistic, Work

_CASES = flags.DEFINE_list('cases', CASES, 'Tokens of a prompt over those of a response, and responses.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Steps of each that are measured.')
_LENGTH = flags.DEFINE_integer('length', 0, "Of rmjax's rows; 0 for one row that holds the batch.")
_CORES = flags.DEFINE_integer('cores', 0, 'How many to use; 0 for all.')
_TRL = flags.DEFINE_string('trl_python', '', 'An interpreter with torch, transformers and trl.')


def main(_: list[str]) -> None:
  """Runs what the flags say."""
  with tempfile.TemporaryDirectory() as directory:
    pythons = prepare(directory, _TRL.value, _CORES.value)
    for case in _CASES.value:
      ratio, responses = case.split(':')
      work = Work('reward', directory, realistic(float(ratio), int(responses)), _LENGTH.value)
      compare(case, work, pythons, _ROUNDS.value)


if __name__ == '__main__':
  app.run(main)
