"""Plackett-Luce over N responses, against Bradley-Terry on all their pairs; the example of docs/new_method.md.

python -m experiments.reproduce --config=configs/plackett_luce.py --workdir=DIR
"""

import ml_collections

from configs import small_world


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  config = small_world.get_config(arg)
  config.system = 'plackett_luce'
  config.losses.preference = dict(name='rmjax.losses.listwise:plackett_luce', per='tree', weight=1.0)
  config.world.update(grade=4.0, courtesy=1.0, marks=3)
  pairs = dict(name='rmjax.losses.preference:preference_cross_entropy', per='comparison', weight=1.0)
  config.arms = dict(plackett_luce=(), bradley_terry=(('losses.preference', pairs),))
  config.claims = (('plackett_luce.gold_accuracy', '>=', 'bradley_terry.gold_accuracy - 0.01', 'ours: a ranking says as much as its pairs'),)
  return config
