"""GPO: self-play on a learned general preference, against the best of a Bradley-Terry reward, judged by how exploitable the policies are.

  python -m experiments.reproduce --config=configs/gpo.py --workdir=DIR

World and reward models are those of gpm.py: kinds of which each beats the next, grades, or both. Policies are tables over the nine responses to each of
64 held-out prompts. Figures are `exploitability` in the annotator's logits, see `experiments.self_play`.

Reference: Zhang et al., Beyond Bradley-Terry Models: A General Preference Model for Language Model Alignment (2024), section 5. The paper has no such
measurement; the claims are what its theory promises.
"""

import ml_collections

from configs import gpm


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  config = gpm.get_config(arg)
  config.system = 'gpo'
  config.program = 'reproduce'
  config.runner = 'experiments.self_play:study'
  config.world.update(eval_size=64, eval=dict(responses=9))
  config.play = dict(rate=0.03, iterations=1000, samples=16)
  config.smoke = (('play.iterations', 20),)

  names = ('gpm', 'bradley_terry', 'gpm_transitive', 'bradley_terry_transitive', 'gpm_mixed', 'bradley_terry_mixed')
  arms = config.arms.to_dict()
  config.arms = {name: arms[name] for name in names}
  config.claims = (
    ('gpm.gpo', '<', 'bradley_terry.reinforce', 'the average policy is less exploitable (theory)'),
    ('gpm.gpo', '<', 'bradley_terry.regularized', 'nor is any KL penalty enough (ours)'),
    ('gpm.gpo', '<', 'gpm.uniform', 'and it is not the start (ours)'),
    ('gpm.gpo', '<', 'gpm.gpo_last', 'only the average is guaranteed: the last policy goes round (theory)'),
    ('gpm_mixed.gpo', '<', 'bradley_terry_mixed.reinforce', 'cycles mixed with quality (theory)'),
    ('gpm_mixed.gpo', '<', 'bradley_terry_mixed.regularized', 'cycles mixed with quality (ours)'),
    ('gpm_mixed.gold_mwu', '<', 'bradley_terry_mixed.regularized', 'the same with the true preferences: what a better reward model would give (ours)'),
    ('gpm_transitive.gpo', '<=', 'bradley_terry_transitive.reinforce + 0.05', 'no tax where there is no cycle (ours)'),
  )
  return config
