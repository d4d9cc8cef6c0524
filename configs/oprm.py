"""OPRM with Region Flooding Tuning: a distribution over nine ratings, trained on comparisons and a few coarse quality labels.

  python -m experiments.reproduce --config=configs/oprm.py --workdir=DIR

World: responses have a grade that their words tell noisily and open politely or not; on the prompts of one task annotators fall into two camps, one of
which turns gold around (contested). A fifth of the records has quality labels (bad, normal, good: thirds of gold). The control that the paper
lacks is a Bradley-Terry model with a classifier of the same labels beside it.

Reference: Learning Ordinal Probabilistic Reward from Preferences (2026). The formula of RgFT is reconstructed: `rmjax.losses.ordinal`.
"""

import ml_collections

from configs import small_world


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: 'digits' reads the ratings as the tokens 1 to 9 that follow 'Score:' in a language model (give --config.model.path and data), as the
      paper does; '' has a dense head.
  """
  config = small_world.get_config(arg)
  config.system = 'oprm'
  config.model.head = dict(name='rmjax.heads.ordinal:OrdinalHead', levels=9, init_scale=1.0)
  config.losses.preference = dict(name='rmjax.losses.ordinal:ordinal_preference', per='comparison', weight=1.0, landscape='flood', regions=3)
  config.losses.quality = dict(name='rmjax.losses.ordinal:quality_cross_entropy', per='labelled', weight=0.0)
  config.world.update(tasks=('count', 'copy'), contested=('copy',), grade=4.0, courtesy=1.0, marks=3, levels=3, labelled=0.2)
  config.data.levels = 3
  config.train.update(steps=300, length=128)
  config.evaluation.measures = ('rmjax.evaluation.summary:summary', 'rmjax.evaluation.absolute:absolute_quality')

  likelihood = dict(name='rmjax.losses.preference:preference_cross_entropy', per='comparison', weight=1.0)
  config.arms = dict(
    rgft_flood=(),
    rgft_region=(('losses.preference.landscape', 'region'),),
    rgft_tent=(('losses.preference.landscape', 'tent'),),
    oprm=(('losses.preference.landscape', 'none'),),
    bradley_terry=(('model.head', dict(name='rmjax.heads.scalar:ScalarHead', init_scale=1.0)), ('losses.preference', likelihood)),
    bradley_terry_quality=(
      ('model.head', dict(name='rmjax.heads.quality:ScalarAndQualityHead', levels=3)),
      ('losses.preference', likelihood),
      ('losses.quality.weight', 1.0),
    ),
  )
  config.claims = (
    ('oprm.majority_accuracy', '>=', 'bradley_terry.majority_accuracy', '+2.9 to +7.4 over prior reward models'),
    ('rgft_flood.majority_accuracy', '>=', 'bradley_terry.majority_accuracy', '+2.9 to +7.4 over prior reward models'),
    ('rgft_flood.region_mass', '>', 'oprm.region_mass + 0.1', 'ratings become absolute'),
    ('rgft_flood.absolute_spearman', '>', 'oprm.absolute_spearman', 'ratings become absolute'),
    ('rgft_flood.absolute_spearman', '>', 'bradley_terry_quality.absolute_spearman', 'the labels alone would do as well (control)'),
    ('rgft_flood.quality_accuracy', '>', 'bradley_terry_quality.quality_accuracy', 'the labels alone would do as well (control)'),
    ('oprm.variance_auroc', '>', 0.6, 'variance as confidence'),
    ('rgft_flood.variance_auroc', '>', 0.6, 'variance as confidence'),
  )
  if arg == 'digits':
    config.model.head = dict(name='rmjax.heads.ordinal:OrdinalTokenHead', tokens=tuple('123456789'))
    config.data.update(suffix='\nScore:', max_length=1024, levels=0)
    config.world = dict(name='')
    config.train.update(length=2048, best='eval_accuracy')
    config.optimizer.learning_rate = 3e-6
  return config
