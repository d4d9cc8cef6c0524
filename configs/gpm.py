"""GPM: preferences as a skew-symmetric form of embeddings, against Bradley-Terry, where preferences run in circles and where they do not.

  python -m experiments.reproduce --config=configs/gpm.py --workdir=DIR

World: each response is of one of three kinds, of which each beats the next (rock, paper, scissors), or has a grade, or both, and its words tell
noisily; labels are drawn from the annotator's probabilities. Held-out records have other prompts and other responses. Accuracy is against what
most annotators prefer.

Reference: Zhang et al., Beyond Bradley-Terry Models: A General Preference Model for Language Model Alignment (2024).
"""

import ml_collections

from configs import small_world


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  config = small_world.get_config(arg)
  config.system = 'gpm'
  config.model.head = dict(
    name='rmjax.heads.preference:PreferenceEmbeddingHead', dim=8, gate='softmax', normalize=True, temperature=0.1, learn_temperature=False
  )
  config.world.update(marks=5, cycle=3.0)

  scalar = (('model.head', dict(name='rmjax.heads.scalar:ScalarHead', init_scale=1.0)),)
  transitive = (('world.cycle', 0.0), ('world.grade', 4.0))
  mixed = (('world.cycle', 2.0), ('world.grade', 2.0), ('world.marks', 3), ('train.length', 144))
  config.arms = dict(
    gpm=(),
    bradley_terry=scalar,
    gpm_transitive=transitive,
    bradley_terry_transitive=scalar + transitive,
    gpm_mixed=mixed,
    bradley_terry_mixed=scalar + mixed,
    gpm_dim2=(('model.head.dim', 2),),
    gpm_no_gate=(('model.head.gate', 'none'),),
  )
  config.claims = (
    ('gpm.majority_accuracy', '>', 0.95, '100 % on cyclic data'),
    ('bradley_terry.majority_accuracy', '<', 0.7, '50-63 % on cyclic data'),
    ('gpm_transitive.majority_accuracy', '>=', 'bradley_terry_transitive.majority_accuracy - 0.01', 'no tax: RewardBench +1.3 to +7.4'),
    ('gpm_transitive.nll', '<=', 'bradley_terry_transitive.nll + 0.01', 'no tax (not reported)'),
    ('gpm_mixed.majority_accuracy', '>', 'bradley_terry_mixed.majority_accuracy', 'cycles mixed with quality (not reported)'),
    ('gpm_dim2.majority_accuracy', '>', 0.95, 'one plane is enough for one cycle'),
  )
  return config
