"""RLBFF: a reward that is told what to judge by, trained on principles that annotators named and agree on; against overall preferences.

  python -m experiments.reproduce --config=configs/rlbff.py --workdir=DIR

World: responses have eight attributes, there or not. Three annotators name one to three of them in words of their own and say yes or no, a fifth of the time
wrongly; what all of them say is kept. The Bradley-Terry arm has as many comparisons by the attributes' hidden weights. What is measured is in
`experiments.principles_study`. The control that could make all this needless has a head for each attribute, and knows which one a principle means.

On data of your own: rows of `prompt`, `completion` (the response, then the principle as a question), `label` (1 for yes, 0 for no), by

  python -m experiments.train_reward --config=configs/rlbff.py:text --workdir=DIR --config.model.path=HF_DIR --config.data.train=FILE --config.data.eval=FILE

and then by any principle, which --suffix puts after the responses of a file that has none:

  python -m experiments.score --checkpoint=DIR --input=FILE --output=FILE --suffix=' Is the information accurate? Answer:'

Reference: RLBFF, Binary Flexible Feedback to bridge between Human Feedback and Verifiable Rewards (2025). That the labels of those who agree have to
agree, and the two-way loss, are reconstructed.
"""

import ml_collections

from configs import small_world


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: 'text' is for a language model with words for yes and no, and data of your own; '' is the experiment.
  """
  config = small_world.get_config(arg)
  config.system = 'rlbff'
  config.model.head = dict(name='rmjax.heads.yes_no:YesNoHead', tokens=(' plus', ' minus'))  # words of the world's tokenizer, which has no yes
  config.losses = dict(answer=dict(name='rmjax.losses.pointwise:binary_cross_entropy', per='rating', weight=1.0))
  if arg == 'text':
    config.model.head.tokens = (' Yes', ' No')
    config.data.update(suffix=' Answer:', max_length=1024)
    config.world = dict(name='')
    config.train.update(length=2048, responses=1, best='-eval_loss')
    config.optimizer.learning_rate = 3e-6
    return config
  config.runner = 'experiments.principles_study:study'
  config.world = dict(
    name='rmjax.worlds.principles:Principles',
    train_size=8000,
    eval_size=100,
    eval=dict(),
    responses=4,
    marks=1,
    blur=0.5,
    weights=((4.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5),),
    temperature=0.5,
    annotators=3,
    mentions=(1, 2, 3),
    salient=4,
    asked=(),
    error=0.2,
    appended='own',
  )
  config.model.decoder.update(intermediate_size=96, num_heads=4, num_kv_heads=4, tie_embeddings=False)
  config.data.suffix = ' ?'
  config.train.update(steps=450, rows=8, length=80, slots=4, responses=9)
  config.evaluation.measures = ()
  config.study = dict(records=80, threshold=0.8)
  config.smoke = (('study.records', 10),)

  comparisons = dict(preference=dict(name='rmjax.losses.preference:preference_cross_entropy', per='comparison', weight=1.0))
  numbered = dict(answer=dict(name='rmjax.losses.attributes:attribute_cross_entropy', per='rating', weight=1.0))
  config.arms = dict(
    rlbff=(),
    unfiltered=(('study.threshold', None),),
    consensus_7=(('study.threshold', 0.7),),
    consensus_9=(('study.threshold', 0.9),),
    fixed=(('world.asked', (0,)), ('world.mentions', (1,)), ('world.train_size', 16_000)),  # as many verdicts, all on one principle
    shuffled=(('world.appended', 'other'),),
    bradley_terry=(('world.annotators', 0), ('model.head', dict(name='rmjax.heads.scalar:ScalarHead', init_scale=1.0)), ('losses', comparisons)),
    heads=(
      ('world.appended', 'none'),
      ('model.head', dict(name='rmjax.heads.mixture:MixtureHead', components=8, gate='uniform')),
      ('losses', numbered),
    ),
  )
  config.claims = (
    ('rlbff.principle', '>', 'bradley_terry.principle', 'PrincipleBench 91.6, Bradley-Terry on matched data 89.5'),
    ('rlbff.overall', '>=', 'bradley_terry.overall', 'RM-Bench 83.6, JudgeBench 76.3; Bradley-Terry 78.5, 68.9'),
    ('rlbff.overall_told', '>=', 'bradley_terry.overall_told - 0.01', 'the same, of pairs that differ in what is asked, as benchmarks of correctness do'),
    ('rlbff.overall_sum', '>=', 'bradley_terry.overall', 'ours: all principles at once'),
    ('rlbff.overall', '>=', 'fixed.overall', 'one fixed training principle: RM-Bench 79.9, JudgeBench 71.4'),
    ('rlbff.principle', '>', 'fixed.principle', 'not reported'),
    ('rlbff.principle', '>', 'consensus_7.principle', 'consensus at 0.8: JudgeBench 76.3; at 0.7: 72.3'),
    ('rlbff.principle', '>', 'consensus_9.principle', 'consensus at 0.8: JudgeBench 76.3; at 0.9: 73.7'),
    ('rlbff.principle', '>', 'unfiltered.principle', 'ours: a twelfth of the annotations is worth more than all'),
    ('rlbff.paraphrase', '>', 'rlbff.principle - 0.05', 'ours: principles in words that were never seen together'),
    ('rlbff.principle', '>', 'heads.principle', 'ours: falsified if heads with the same labels match this and the next'),
    ('rlbff.paraphrase', '>', 'heads.paraphrase', 'ours: falsified if heads with the same labels match this and the last'),
    ('abs(rlbff.correct_other - 0.5)', '<', 0.05, 'ours, control: asked of something else, it is at the base rate'),
    ('abs(shuffled.correct - 0.5)', '<', 0.05, 'ours, control: trained with principles of something else, it is too'),
    ('rlbff.ece', '<', 0.1, 'ours: rewards are absolute'),
    ('rlbff.ece', '<', 'bradley_terry.ece', 'ours: those of Bradley-Terry are not'),
    ('rlbff.auroc', '>', 'rlbff.principle - 0.02', 'ours: responses to different prompts compare as those to one'),
  )
  return config
