"""LongRM: a reward model for long contexts, trained on labels that were made on the short part that matters and then padded.

  python -m experiments.reproduce --config=configs/longrm.py --workdir=DIR

Stages are runs, each of which goes on from the one before: short contexts, then long ones; or, for a model that generates, `logo` as the last one.

  python -m experiments.train_reward --config=configs/longrm.py:short --workdir=runs/short
  python -m experiments.train_reward --config=configs/longrm.py --workdir=runs/long --config.model.path=runs/short

World: facts about who has what, of which one decides whether a response is faithful; an unfaithful one claims what the context does not know at all.
Contexts of 32 to 512 words, of which 256 and 512 (and, to arms trained on short ones alone, all but 32) are longer than any in training. Every arm has the
same first stage, and then makes as many steps of as many tokens. `noisy_long` has the very records of `short_to_long`, labelled by a judge who reads the
whole context, and errs in 14 % of comparisons at 32 words, 24 % at 64 and 36 % at 128. The world itself goes on to any length.

No arm here makes the alignment stage (LOGO) on generated verdicts: a network this small learns to generate a claim more slowly than to judge one, and the
minutes are spent. `configs/longrm.py:logo` trains by it.

Reference: LongRM (2025), sections 4 and 5, Long-RewardBench.
"""

import ml_collections

from configs import small_world
from rmjax.errors import InputError


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: '', 'short' for short contexts alone, or 'logo' for a model that generates the claim, trained against all unfaithful ones at once.

  Raises:
    InputError: it is something else.
  """
  if arg not in ('', 'short', 'logo'):
    raise InputError(f"configs/longrm.py:{arg}: choose 'short', 'logo' or nothing")
  config = small_world.get_config()
  config.system = 'longrm'
  config.runner = 'experiments.long_contexts:study'
  config.study = dict(
    interpolation=1.0,  # positions are divided by it where the trained model scores
    # What the first stage differs in; all arms have it.
    first=(('world.lengths', (32,)), ('world.reach', 0.0), ('train.steps', 200), ('optimizer.learning_rate', 3e-3)),
  )
  config.world = dict(
    name='rmjax.worlds.long_contexts:LongContexts',
    train_size=50_000,
    eval_size=400,
    eval=dict(lengths=(32, 64, 128, 256, 512), reach=0.0),
    lengths=(32,) if arg == 'short' else (32, 32, 64, 128),  # each record has one of them; short ones stay the most
    responses=6,
    chunk=2,
    values=32,
    wrong='absent',
    reach=0.0,
  )
  config.data.max_length = 640
  config.train.update(steps=300, rows=8, length=208, slots=3, responses=6)
  config.optimizer.update(learning_rate=1e-3)
  config.smoke = (('study.first', (('world.lengths', (32,)), ('world.reach', 0.0), ('train.steps', 2))),)
  if arg == 'logo':
    config.model.head = dict(name='rmjax.heads.implicit:ImplicitRewardHead', beta=2.5, average=True, reference='none')
    config.losses = dict(
      multi=dict(name='rmjax.losses.implicit:simpo_multi', per='tree', weight=1.0, beta=2.5, gamma=0.5),
      likelihood=dict(name='rmjax.losses.implicit:chosen_negative_log_likelihood', per='comparison', weight=0.05),
    )

  short = (('world.lengths', (32,)),)
  config.arms = dict(
    short=short,
    interpolation=(*short, ('study.interpolation', 8.0)),  # 256 words are as far as 32 were
    noisy_long=(('world.reach', 100.0),),
    short_to_long=(),
  )
  config.claims = (
    ('short.accuracy_256', '<', 'short.accuracy_32', 'reward models collapse beyond their lengths'),
    ('short_to_long.accuracy_128', '>', 'noisy_long.accuracy_128', 'at 128K pairwise 25.2 to 87.0'),
    ('short_to_long.accuracy_256', '>', 'noisy_long.accuracy_256', 'at 128K pairwise 25.2 to 87.0, here beyond training'),
    ('short_to_long.accuracy_128', '>', 'interpolation.accuracy_128', 'interpolation alone is not enough'),
    ('short_to_long.accuracy_256', '>', 'interpolation.accuracy_256', 'interpolation alone is not enough, beyond training'),
    ('short_to_long.accuracy_128', '>', 'short.accuracy_128', 'long data is needed'),
    ('short_to_long.accuracy_512', '>', 'short.accuracy_512', 'and serves at four times its length (ours)'),
    ('short_to_long.accuracy_32', '>=', 'short.accuracy_32 - 0.01', 'RewardBench 84.4 to 84.3: nothing is lost on short'),
    ('interpolation.accuracy_32', '<', 'short.accuracy_32', 'interpolation hurts short'),
  )
  return config
