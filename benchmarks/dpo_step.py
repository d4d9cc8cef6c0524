"""A step of direct preference optimization beside TRL's DPOTrainer, and Tunix's: tokens a second, part of the machine's peak, memory.

  python -m benchmarks.dpo_step [--cases=0:2,4:8] [--references=live,cached] [--rounds=5] [--length=1024] [--trl_python=PYTHON] [--tunix_python=PYTHON]

As benchmarks/reward_step.py, which says what a case is, with a policy of 25M parameters and a reference that differs from it: `live` is computed in each
step, `cached` was computed before (TRL: `precompute_ref_log_probs`; Tunix has no such thing). The interpreter of Tunix needs google-tunix; without
one it is left out. Its steps are those of its trainer, a reference's forward pass and an update, on prompts and responses padded to their longest.
"""

import tempfile

from absl import app, flags

from benchmarks.preference_steps import CASES, compare, prepare, realistic, Work

SYSTEMS = {'live': 'dpo', 'cached': 'dpo_cached'}

_CASES = flags.DEFINE_list('cases', CASES, 'Tokens of a prompt over those of a response, and responses.')
_REFERENCES = flags.DEFINE_list('references', list(SYSTEMS), f'Of {", ".join(SYSTEMS)}.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Steps of each that are measured.')
_LENGTH = flags.DEFINE_integer('length', 0, "Of rmjax's rows; 0 for one row that holds the batch.")
_CORES = flags.DEFINE_integer('cores', 0, 'How many to use; 0 for all.')
_TRL = flags.DEFINE_string('trl_python', '', 'An interpreter with torch, transformers and trl.')
_TUNIX = flags.DEFINE_string('tunix_python', '', 'An interpreter with google-tunix.')


def main(_: list[str]) -> None:
  """Runs what the flags say."""
  with tempfile.TemporaryDirectory() as directory:
    pythons = prepare(directory, _TRL.value, _CORES.value)
    for reference in _REFERENCES.value:
      tunix = {'tunix': _TUNIX.value} if _TUNIX.value and reference == 'live' else {}
      for case in _CASES.value:
        ratio, responses = case.split(':')
        work = Work(SYSTEMS[reference], directory, realistic(float(ratio), int(responses)), _LENGTH.value)
        compare(f'{case} {reference}', work, pythons | tunix, _ROUNDS.value)


if __name__ == '__main__':
  app.run(main)
