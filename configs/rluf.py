"""RLUF: P[Love], the probability of a user's heart, learned from a sparse log; does it foretell what happens online, and what if it is rewarded?

  python -m experiments.reproduce --config=configs/rluf.py --workdir=DIR

World: about 3% of responses get a reaction, by quality, by warmth, and by a goodbye that past policies hardly ever said; users differ, a hundredth of the
accounts react at random, evaluation is on other users. Nine tenths of the responses without a reaction are left out of training, and the loss
corrects the logit for it. What is measured is in `experiments.reactions_study`.

It trains on a log of your own by `experiments.train_reward`: rows of `prompt`, `completion`, `label` (0 or 1), and --config.losses.reaction.keep_rate for
the share of zeros that you kept. Several rewards in policy optimization are `config.rewards` of configs/grpo.py, standardised in each group by
`algorithm.combine='normalize_then_sum'`.

Reference: Reinforcement Learning from User Feedback (2025). Loss, down-sampling and the sum of rewards are reconstructed.
"""

import ml_collections

from configs import small_world


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  config = small_world.get_config(arg)
  config.system = 'rluf'
  config.runner = 'experiments.reactions_study:study'
  config.world = dict(
    name='rmjax.worlds.reactions:Reactions',
    train_size=20_000,
    eval_size=5000,
    eval=dict(),
    policies=((0.3, 0.5, 0.05), (0.4, 0.3, 0.0), (0.5, 0.5, 0.1), (0.6, 0.2, 0.05)),
    quality=2.5,
    warmth=2.5,
    goodbye=2.0,
    offset=6.0,
    adversaries=0.01,
    keep=0.1,
    blind=False,
  )
  config.losses = dict(reaction=dict(name='rmjax.losses.pointwise:binary_cross_entropy', per='rating', weight=1.0, keep_rate=0.1, positive_weight=1.0))
  config.train.update(steps=300, length=128, slots=6, responses=1)
  config.evaluation.measures = ()
  config.study = dict(
    texts=6,  # of each class of responses
    candidates=10,
    # Ranges of mean quality, mean warmth and probability of a goodbye: of candidates like those of the log, and of others.
    inside=((0.3, 0.6), (0.2, 0.5), (0.0, 0.1)),
    outside=((0.0, 1.0), (0.5, 1.0), (0.3, 1.0)),
    reference=(0.45, 0.4, 0.05),
    needless=0.3,  # what gold takes for a goodbye, in units of quality
    weights=(0.0, 0.1, 0.3, 1.0, 3.0),
    iterations=300,
    groups=32,
    group=8,
    rate=0.05,
    beta=1.0,
  )
  config.smoke = (('study.iterations', 2), ('world.eval_size', 400))

  outside = ((0.2, 0.7, 0.5), (0.6, 0.8, 0.3), (0.9, 0.6, 0.9), (0.4, 0.9, 0.7))
  config.arms = dict(
    rluf=(),
    uncorrected=(('losses.reaction.keep_rate', 1.0),),
    whole_log=(('losses.reaction.keep_rate', 1.0), ('world.keep', 1.0)),
    balanced=(('losses.reaction.keep_rate', 1.0), ('world.keep', 1.0), ('losses.reaction.positive_weight', 10.0)),
    refreshed=(('world.policies', config.world.policies + outside),),  # the log has policies like those outside
    bots=(('world.adversaries', 0.1), ('world.eval', dict(adversaries=0.01))),  # in the log that is learned from alone
    blind=(('world.blind', True),),
  )
  config.claims = (
    ('rluf.r_inside', '>', 0.8, 'r = 0.95 over ten policies; if not, offline says nothing of online'),
    ('rluf.auroc', '>', 'rluf.auroc_best - 0.05', 'AUROC 0.85; what can be reached here is the world\'s own'),
    ('abs(rluf.length_pearson)', '<', 0.2, 'correlation with length 0.10'),
    ('rluf.online_2', '>', 'rluf.online_0', 'moderate weight: more reactions'),
    ('rluf.online_4', '>', 'rluf.online_2', 'up to +28%'),
    ('rluf.helpful_4', '<', 'rluf.helpful_0', 'aggressive weight: less helpful'),
    ('rluf.goodbye_4', '>', 'rluf.goodbye_0 + 0.1', 'aggressive weight: "Bye! Sending Love!"'),
    ('rluf.r_outside', '<', 'rluf.r_inside', 'ours: the expected weak point'),
    ('refreshed.r_outside', '>', 'rluf.r_outside', 'ours: a log of such policies mends it'),
    ('abs(rluf.rate_error)', '<', 0.2, 'ours: the mean prediction is the base rate'),
    ('uncorrected.rate_error', '>', 1.0, 'ours: without the correction it is not'),
    ('abs(rluf.auroc - uncorrected.auroc)', '<', 0.02, 'ours: AUROC does not see it'),
    ('rluf.auroc', '>=', 'whole_log.auroc', 'ours: with as many steps, down-sampling loses nothing'),
    ('bots.auroc', '<', 'rluf.auroc', 'ours: accounts that react at random cost what they are many'),
    ('blind.auroc', '<', 0.55, 'ours (control)'),
  )
  return config
