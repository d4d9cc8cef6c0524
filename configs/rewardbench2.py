"""RewardBench 2: does accuracy at one of four foretell what best-of-n gains, over twelve reward models of graded quality?

  python -m experiments.reproduce --config=configs/rewardbench2.py --workdir=DIR

World: six topics, in each of which gold counts a trait of its own (skills). Models learn from 30 to 1,000 records, some with a third of the labels turned
around, some of half the topics; all are trained as long. Either accuracy is of the same completions. The benchmark itself runs on its files by
`python -m experiments.evaluate --benchmark=rewardbench2`. The card's further claims, on PPO and on models of another lineage, are not tested here.

Reference: Malik et al., RewardBench 2: Advancing Reward Model Evaluation (2025).
"""

import ml_collections

from configs import small_world

TOPICS = 6


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  config = small_world.get_config(arg)
  config.system = 'rewardbench2'
  config.runner = 'experiments.graded_models:best_of_four'
  config.world = dict(
    name='rmjax.worlds.traits:Traits',
    train_size=1000,
    eval_size=400,
    eval=dict(responses=16, pairs=1),
    topics=TOPICS,
    traits=TOPICS,
    responses=4,
    weights=((1.0,) * TOPICS,),
    scope=tuple(tuple(float(j == t) for j in range(TOPICS)) for t in range(TOPICS)),
    flips=(0.0,) * TOPICS,
    marks=1,
    temperature=0.2,
  )
  config.train.update(steps=200, rows=4, length=160)
  config.study = dict(
    # (records, share of flipped labels, topics seen)
    grades=tuple((size, flips, topics) for size in (30, 100, 300, 1000) for flips, topics in ((0.0, TOPICS), (0.35, TOPICS), (0.0, TOPICS // 2))),
  )
  config.smoke = (('world.eval_size', 24), ('study.grades', ((8, 0.0, 6), (16, 0.3, 6), (16, 0.0, 3), (32, 0.0, 6))))
  config.evaluation.measures = ()
  config.arms = dict(graded=())
  config.claims = (
    ('graded.r_four', '>', 0.7, 'r = .87 over 113 reward models'),
    ('graded.r_four', '>=', 'graded.r_two', 'not less than of pairs of the same completions (ours)'),
    ('graded.r_four', '>', 'graded.r_size', 'and more than of the number of records alone (control)'),
    ('graded.r_four', '>', 'graded.r_domain', 'all domains say more than one (average over domains)'),
    ('graded.gap', '>', 0.1, 'about 20 points below RewardBench 1'),
  )
  return config
