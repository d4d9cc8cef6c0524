"""FiMi: a reward model is let have its length bias, a small network of length alone fits it, and the model is trained to lose what was fitted.

  python -m experiments.reproduce --config=configs/fimi.py --workdir=DIR

World: gold quality is a grade that words tell noisily, and knows nothing of length; the annotator likes longer answers up to a bend and then slightly
shorter ones. Judged on gold labels. In the arms called `_true` length is truly good, and what FiMi assumes is wrong.

Reference: Bias Fitting to Mitigate Length Bias of Reward Model in RLHF (2025), second version.
"""

import ml_collections

from configs import small_world


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  config = small_world.get_config(arg)
  config.system = 'fimi'
  config.world.update(
    grade=3.0, marks=3, fillers=(0, 1, 2, 3, 4, 5, 6), length_bias=0.4, curve='hump', bend=12, eval_size=600, eval=dict(responses=8)
  )
  config.train.update(steps=300, length=144, slots=2, responses=8)
  config.train.moves = dict(name='rmjax.training.phases:warmup_fit_alternate', warmup=120, fit=40, period=8)
  config.losses.decorrelation = dict(name='rmjax.losses.length_bias:bias_decorrelate', per='batch', weight=1.0, start=160)
  config.losses.fit = dict(name='rmjax.losses.length_bias:bias_fit', per='batch', weight=1.0, mse_weight=0.0)
  adam = dict(name='optax:adamw', learning_rate=1e-3, schedule='constant', warmup=0.0, options=dict(weight_decay=0.0))
  config.parts = dict(fit=dict(network=dict(name='rmjax.heads.length:LengthBiasNet'), optimizer=adam))
  config.evaluation.update(
    measures=('rmjax.evaluation.summary:summary', 'rmjax.evaluation.length_bias:dependence'),
    validation=150,
  )

  # Every arm makes 300 steps, whoever moves at them.
  vanilla = (('losses.decorrelation.weight', 0.0), ('losses.fit.weight', 0.0), ('train.moves', dict(name='')), ('parts', dict()))
  odin = dict(name='rmjax.losses.length_bias:odin_cross_entropy', per='comparison', weight=1.0)
  disentangle = dict(name='rmjax.losses.length_bias:odin_disentangle', per='batch', weight=1.0)
  truly = (('world.length_bias', 0.0), ('world.verbosity', 0.4))
  config.arms = dict(
    fimi=(),
    linear=(('parts.fit.network', dict(name='rmjax.heads.length:LinearLength')),),
    joint=(('train.moves', dict(name='')), ('losses.decorrelation.start', 0)),
    vanilla=vanilla,
    penalty=(*vanilla, ('evaluation.correction', dict(name='rmjax.evaluation.length_bias:length_penalty'))),
    subtraction=(*vanilla, ('evaluation.correction', dict(name='rmjax.evaluation.length_bias:curve_subtraction'))),
    odin=(*vanilla, ('model.head', dict(name='rmjax.heads.length:OdinHead')), ('losses.preference', odin), ('losses.fit', disentangle)),
    fimi_true=truly,
    vanilla_true=vanilla + truly,
  )
  config.claims = (
    ('fimi.gold_accuracy', '>', 'vanilla.gold_accuracy', 'best of 8, LC win rate 72.6 against 68.3'),
    ('fimi.best_of_n_gold', '>', 'vanilla.best_of_n_gold', 'best of 8, LC win rate 72.6 against 68.3'),
    ('abs(fimi.gold_length_gap)', '<', 'abs(vanilla.gold_length_gap)', 'gap 23.8 to 7.9 points'),
    ('fimi.length_probe', '<', 'vanilla.length_probe', 'decorrelated from the fitted curve'),
    ('fimi.gold_accuracy', '>', 'linear.gold_accuracy', 'ResNet 72.6 against linear 71.7'),
    ('fimi.gold_accuracy', '>', 'joint.gold_accuracy', 'stages 72.6 against joint 71.5'),
    ('fimi.gold_accuracy', '>', 'penalty.gold_accuracy', 'length penalty 69.2'),
    ('fimi.gold_accuracy', '>', 'odin.gold_accuracy', 'ODIN 71.4'),
    ('fimi.gold_accuracy', '>', 'subtraction.gold_accuracy', 'not reported'),
    ('fimi_true.gold_accuracy', '<', 'vanilla_true.gold_accuracy', 'not reported: where length is good, to forget it must hurt'),
  )
  return config
