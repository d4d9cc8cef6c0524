"""GPM, OPRM and FiMi against Bradley-Terry on public preferences, by a decoder of 0.4 million parameters from scratch.

  python -m experiments.prepare_real_data --source=$RMJAX_DATA --output=DATA
  python -m experiments.reproduce --config=configs/real_preferences.py:pandalm --workdir=DIR --config.data.train=DATA/pandalm.train.jsonl \
    --config.data.eval=DATA/pandalm.eval.jsonl --config.data.tokenizer=DATA/bpe

The argument is one of `SETS`. A model of this size reads surface features and little else: this tests that the methods do with people's labels what they
do in the worlds, and not how good they are. Held-out records have other prompts. Seeds share the records and differ in initial parameters and order, so
a claim's error is that of training alone, and not of the evaluation's records: read `accuracy_se` too.
"""

import ml_collections

from configs import fimi, gpm, oprm, small_world
from rmjax.errors import InputError

SETS = ('alpaca_eval', 'pandalm', 'fine_grained_qa', 'mlqe_pairs')
STEPS = 100
LENGTH = 384  # most tokens of prompt and response


def get_config(arg: str = 'pandalm') -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: one of `SETS`.

  Raises:
    InputError: it is none of them.
  """
  if arg not in SETS:
    raise InputError(f'configs/real_preferences.py:{arg}: choose one of {", ".join(SETS)} after the colon')
  config = small_world.get_config()
  config.system = f'real_{arg}'
  config.world = dict(name='')
  responses = 4 if arg == 'fine_grained_qa' else 2
  config.data.max_length = LENGTH
  # The longest record fits: all its responses without a token in common.
  config.train.update(steps=STEPS, rows=4, length=responses * LENGTH, slots=4, responses=responses)
  config.seeds = (0, 1, 2)
  config.evaluation.measures = ('rmjax.evaluation.summary:summary', 'rmjax.evaluation.length_bias:dependence')

  # Losses of all arms, of which Bradley-Terry has its own alone.
  general, ordinal, fitting = gpm.get_config(), oprm.get_config(), fimi.get_config()
  warmup, fit = 2 * STEPS // 5, STEPS // 10
  config.losses.decorrelation = {**fitting.losses.decorrelation, 'weight': 0.0, 'start': warmup + fit}
  config.losses.fit = {**fitting.losses.fit, 'weight': 0.0}
  config.losses.quality = ordinal.losses.quality  # of weight 0

  rating = lambda landscape: (
    ('model.head', ordinal.model.head.to_dict()),
    ('losses.preference', {**ordinal.losses.preference, 'landscape': landscape}),
  )
  config.arms = dict(
    bradley_terry=(),
    gpm=(('model.head', general.model.head.to_dict()),),
    oprm=rating('none'),
    fimi=(
      ('losses.decorrelation.weight', fitting.losses.decorrelation.weight),
      ('losses.fit.weight', fitting.losses.fit.weight),
      ('train.moves', {**fitting.train.moves, 'warmup': warmup, 'fit': fit}),
      ('parts', fitting.parts.to_dict()),
    ),
  )
  config.claims = (
    ('gpm.accuracy', '>', 'bradley_terry.accuracy', 'RewardBench +1.3 to +7.4'),
    ('oprm.accuracy', '>=', 'bradley_terry.accuracy', '+2.9 to +7.4 over prior reward models'),
    ('abs(fimi.length_spearman)', '<', 'abs(bradley_terry.length_spearman)', 'gap 23.8 to 7.9 points'),
    ('fimi.accuracy_rejected_longer', '>', 'bradley_terry.accuracy_rejected_longer', 'gap 23.8 to 7.9 points'),
  )
  if arg == 'mlqe_pairs':  # each translation has a quality level
    config.data.levels = 3
    control = dict(ordinal.arms['bradley_terry_quality'])
    config.arms = dict(
      **config.arms,
      rgft=rating('flood'),
      bradley_terry_quality=(('model.head', control['model.head']), ('losses.quality.weight', control['losses.quality.weight'])),
    )
    config.claims = (
      *config.claims,
      ('rgft.accuracy', '>=', 'bradley_terry.accuracy', '+2.9 to +7.4 over prior reward models'),
      ('rgft.accuracy', '>', 'bradley_terry_quality.accuracy', 'the labels alone would do as well (control)'),
      ('rgft.rating_spearman', '>', 'oprm.rating_spearman', 'ratings become absolute'),
    )
  return config
