"""MRMBench: do linear probes of a reward model's representation tell what it prefers by, and what it is good for?

  python -m experiments.reproduce --config=configs/mrmbench.py --workdir=DIR

World: four traits, whose sum is gold. Twelve models learn from annotators who count the first trait alone, two of them, or all four, from few or
many records, some with labels turned around. Controls: the backbone before training, the bag of tokens, the most frequent class. A probe may
well read what the reward ignores: then claims on use fail, and that is what the controls are for. Probes of a trained model on data of your own:
`python -m experiments.probe`. The card's multi-objective regression and PPO are not among the models.

Reference: MRMBench, Multi-dimensional Reward Model Benchmark (2025).
"""

import ml_collections

from configs import small_world


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  config = small_world.get_config(arg)
  config.system = 'mrmbench'
  config.runner = 'experiments.graded_models:probes'
  config.world = dict(
    name='rmjax.worlds.traits:Traits',
    train_size=1000,
    eval_size=400,
    eval=dict(responses=8, pairs=1),
    topics=1,
    traits=4,
    responses=4,
    weights=((1.0, 1.0, 1.0, 1.0),),
    flips=(0.0,),
    marks=2,
    blur=2.0,
    fillers=(0,),
    temperature=0.2,
  )
  config.train.update(steps=200, rows=4, length=160)
  one, two, four = (1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0)
  config.study = dict(
    # (records, share of flipped labels, topics seen, weights of the traits)
    grades=tuple((size, flips, 1, weights) for weights in (one, two, four) for size, flips in ((50, 0.0), (300, 0.35), (300, 0.0), (1000, 0.0))),
    probed=400,
    clusters=4,
    far=0.2,
    foreign=dict(fillers=(3, 4), marks=1, blur=6.0),
  )
  config.smoke = (
    ('world.eval_size', 24), ('study.probed', 24), ('study.grades', ((8, 0.0, 1, one), (16, 0.3, 1, two), (16, 0.0, 1, four), (32, 0.0, 1, four)))
  )  # fmt: skip
  config.evaluation.measures = ()
  config.arms = dict(graded=())
  config.claims = (
    ('graded.r_probe', '>', 0.5, 'r > .8 with the quality of PPO policies'),
    ('graded.p_probe', '<', 0.05, 'p < .05'),
    ('graded.r_used', '>', 0.3, 'a probe reads what the reward uses (ours; may fail for what it reads besides)'),
    ('graded.probe', '>', 'graded.probe_random', '79.6 against 75.2 without training as a reward model'),
    ('graded.probe', '>', 'graded.majority + 0.1', 'above the most frequent class (control)'),
    ('graded.probe', '>', 'graded.probe_bag', 'and above what the words alone say (control)'),
    ('graded.kept_gain', '>', 'graded.random_gain', 'win rate 62.5 filtered, 54.3 dropped at random'),
  )
  return config
