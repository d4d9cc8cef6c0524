"""Skywork-Reward-V2: preference data curated by few human labels, asked where the model errs, and by agreement of models; what they reject is turned around.

  python -m experiments.reproduce --config=configs/skywork_v2.py --workdir=DIR

World: a pool of pairs on ten topics. Quality is a weighing of three traits, another one on the last three topics, where most labels are turned around
(35% of all are, two thirds of them there); everybody who labels, language models too, likes a fourth trait, style, that gold does not know.
Every arm but `seed` has the same number of human labels, and all train on as many pairs. What each arm does is in `experiments.curation_study`.

On data of your own `python -m experiments.curate` filters, and this config trains on what it wrote.

Reference: Skywork-Reward-V2: Scaling Preference Data Curation via Human-AI Synergy (2025). The figures beside the claims are gains in points of the average
of seven benchmarks; the curation's code is not public, and what a claim of ours stands for is marked.
"""

import ml_collections

from configs import small_world

NOISY, OTHERS = (0.8,) * 3, (0.16,) * 7


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  config = small_world.get_config(arg)
  config.system = 'skywork_v2'
  config.runner = 'experiments.curation_study:study'
  config.world = dict(
    name='rmjax.worlds.traits:Traits',
    train_size=6000,
    eval_size=400,
    eval=dict(responses=4),
    topics=10,
    traits=4,
    responses=2,
    marks=2,
    blur=1.0,
    weights=((1.0, 1.0, 1.0, 0.0),),
    scope=((1.0, 1.0, 0.0, 1.0),) * 7 + ((0.5, 0.0, 1.5, 1.0),) * 3,
    bias=(0.0, 0.0, 0.0, 0.6),
    flips=OTHERS + NOISY,
    temperature=0.1,
  )
  config.train.update(steps=250, length=128, slots=4, responses=4)
  config.study = dict(
    method='full',  # see METHODS of experiments.curation_study
    seed_labels=200,
    budget=500,  # human labels in all
    rounds=2,
    k_max=8,
    annotators=3,
    samples=3,
    shared_bias=0.6,  # of the annotators, for trait `style`
    style=3,
    error=0.4,  # standard deviation, in units of gold, of what each gets wrong of its own
    temperature=0.1,  # of a sample
    confidence=0.5,  # from which two models that reject a label turn it around
    coin=False,  # whether the pool's labels are coins
  )
  config.smoke = (('study.seed_labels', 20), ('study.budget', 40))

  arm = lambda method, **changes: (('study.method', method), *((f'study.{name}', value) for name, value in changes.items()))
  config.arms = dict(
    seed=arm('seed'),
    random=arm('random'),  # as many human labels, drawn at random
    raw=arm('raw'),  # and the pool as it is
    annotators=arm('annotators'),  # and the pool labelled anew by language models
    retrieval=arm('retrieval'),  # human labels where the model errs
    full=arm('full'),
    recycled=arm('recycled'),
    self_confirmed=arm('self_confirmed'),  # the best model was trained on what it filters
    coin_full=arm('full', coin=True),  # the pool's labels say nothing
    coin_recycled=arm('recycled', coin=True),
  )
  accuracy = lambda left, relation, right, paper: (f'{left}.gold_accuracy', relation, right if ' ' in right else f'{right}.gold_accuracy', paper)
  config.claims = (
    accuracy('raw', '<=', 'random.gold_accuracy + 0.01', 'raw extra data: +0'),
    *(accuracy('full', '>', other, paper) for other, paper in (
      ('seed', '+3.2 over the seed model'),
      ('random', 'full +3.2, human alone +0.4'),
      ('raw', 'full +3.2, raw +0'),
      ('annotators', 'full +3.2, language models alone +0.1'),
      ('retrieval', 'full +3.2, human with attributes +1.1'),
    )),
    accuracy('retrieval', '>', 'random', '+1.1 against +0.4; if not, asking where the model errs is worth nothing'),
    accuracy('recycled', '>', 'full', 'the 40M variant of 8B: 88.6 against 85.8'),
    accuracy('coin_recycled', '<=', 'coin_full', 'ours: to turn coins around must not help'),
    ('full.precision_kept', '>', 'self_confirmed.precision_kept', 'ours: a model confirms what it was trained on'),
    ('full.near_half_kept', '<', 'full.near_half_pool', 'ours: a filter by agreement keeps easy pairs'),
  )  # fmt: skip
  return config
