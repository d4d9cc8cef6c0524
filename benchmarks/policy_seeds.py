"""Seeds of constrained PPO side by side in one compiled iteration, against one seed: wall time of an iteration.

  python -m benchmarks.policy_seeds [--seeds=8] [--rounds=7]

Prints one JSON line: medians of interleaved iterations of the world of sequences (configs/constrained_rlhf.py, arm xi_ppo), and their ratio.
"""

import json
import statistics
import time

from absl import app, flags
import jax

from configs import constrained_rlhf
from experiments import policy_claims
from experiments.reproduce import arm_config

_SEEDS = flags.DEFINE_integer('seeds', 8, 'Seeds side by side.', lower_bound=2)
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'Timed iterations of each.', lower_bound=1)


def main(_: list[str]) -> None:
  """Prints the line."""
  config = constrained_rlhf.get_config()
  config = arm_config(config, (*config.arms.xi_ppo, ('constraints.thresholds', (0.4, 0.8))))
  lanes = {count: policy_claims.start(config, range(count)) for count in (1, _SEEDS.value)}
  seconds = {count: [] for count in lanes}
  for round_ in range(_ROUNDS.value + 1):
    for count in lanes:
      start = time.perf_counter()
      lanes[count], _ = policy_claims.advance(lanes[count], 1)
      if round_:  # the first compiles
        seconds[count].append(time.perf_counter() - start)
  one, many = (statistics.median(seconds[count]) for count in lanes)
  ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
  print(json.dumps(dict(bench='policy_seeds', seeds=_SEEDS.value, one=one, together=many, ratio=ratio, backend=jax.default_backend())))


if __name__ == '__main__':
  app.run(main)
