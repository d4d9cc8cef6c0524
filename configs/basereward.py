"""BaseReward: which head, regularizer and ensemble a plain reward model should have, where gold is an interaction of what the words tell.

  python -m experiments.reproduce --config=configs/basereward.py --workdir=DIR

World: responses have three traits; gold adds them up and multiplies two of them. Fillers make lengths differ and say nothing. Each head is trained on
a backbone that learns with it, where depth should matter less, and on one that is frozen: drawn at random and never trained, since nothing that was
pretrained reads this world [ours; the paper's is a vision-language model]. All arms make the same number of steps on the same data.

Reference: BaseReward: A Strong Baseline for Multimodal Reward Model (2025). The form of both regularizers is reconstructed.
"""

import ml_collections

from configs import small_world


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  config = small_world.get_config(arg)
  config.system = 'basereward'
  config.world = dict(
    name='rmjax.worlds.traits:Traits',
    train_size=20_000,
    eval_size=400,
    eval=dict(),
    topics=4,
    traits=3,
    responses=4,
    marks=2,
    blur=1.0,
    fillers=(0, 1, 2),
    weights=((0.4, 0.4, 0.8),),
    interactions=((0, 1, 1.0),),
    temperature=0.25,
  )
  config.model.decoder = dict(hidden_size=48, intermediate_size=128, num_layers=2, num_heads=2, num_kv_heads=2)
  config.model.head = dict(name='rmjax.heads.mlp:MLPRewardHead', layers=2, width=0, activation='silu', init_std=0.0, scale=False)
  config.train.update(steps=200, length=112)
  config.evaluation.measures = ('rmjax.evaluation.summary:summary', 'rmjax.evaluation.grouped:accuracy_plus')

  linear = ('model.head', dict(name='rmjax.heads.scalar:ScalarHead', init_scale=1.0))
  normalized = dict(name='rmjax.losses.preference:length_normalized_cross_entropy', per='comparison', weight=1.0)
  frozen = (('optimizer.freeze', '^backbone/'), ('optimizer.learning_rate', 1e-2))  # a head alone bears larger steps
  heads = dict(
    linear=(linear,),
    silu2=(),
    relu2=(('model.head.activation', 'relu'),),
    tanh2=(('model.head.activation', 'tanh'),),
    silu3=(('model.head.layers', 3),),
    silu5=(('model.head.layers', 5),),
  )
  config.arms = dict(
    **heads,
    **{f'{name}_frozen': (*head, *frozen) for name, head in heads.items()},
    center_001=(('losses.centering.weight', 0.001),),
    center_01=(('losses.centering.weight', 0.01),),
    center_1=(('losses.centering.weight', 0.1),),
    length_norm=(  # judged by what it was trained to order, reward / log(length)
      ('losses.preference', normalized),
      ('evaluation.correction', dict(name='rmjax.evaluation.length_bias:length_normalization')),
    ),
    length_norm_raw=(('losses.preference', normalized),),  # judged by the reward
    ensemble=(('runner', 'experiments.ensembles:study'),),
  )
  config.smoke = (('ensemble.calibration', 10),)
  config.runner = ''  # of the arm `ensemble`
  config.ensemble = dict(members=4, uncertainty=1.0, calibration=60)  # members differ in their initial parameters alone; so many records calibrate

  config.claims = (
    ('silu2_frozen.gold_accuracy', '>', 'linear_frozen.gold_accuracy', 'linear worst, 2-layer SiLU best (VL-RewardBench 67.9)'),
    ('silu2.gold_accuracy', '>', 'linear.gold_accuracy', 'linear worst, 2-layer SiLU best (VL-RewardBench 67.9)'),
    ('silu2_frozen.gold_accuracy', '>=', 'relu2_frozen.gold_accuracy', '2-layer SiLU best'),
    ('silu2_frozen.gold_accuracy', '>=', 'tanh2_frozen.gold_accuracy', '2-layer SiLU best'),
    ('silu2.gold_accuracy', '>=', 'relu2.gold_accuracy', '2-layer SiLU best'),
    ('silu2.gold_accuracy', '>=', 'tanh2.gold_accuracy', '2-layer SiLU best'),
    ('silu3_frozen.gold_accuracy', '<=', 'silu2_frozen.gold_accuracy', '3 to 5 layers: no gain'),
    ('silu5_frozen.gold_accuracy', '<=', 'silu2_frozen.gold_accuracy', '3 to 5 layers: no gain'),
    ('silu3.gold_accuracy', '<=', 'silu2.gold_accuracy', '3 to 5 layers: no gain'),
    ('silu5.gold_accuracy', '<=', 'silu2.gold_accuracy', '3 to 5 layers: no gain'),
    (
      'silu2_frozen.gold_accuracy - linear_frozen.gold_accuracy',
      '>',
      'silu2.gold_accuracy - linear.gold_accuracy',
      'not reported: depth should matter less where the backbone learns',
    ),
    ('center_001.gold_accuracy', '<=', 'silu2.gold_accuracy', 'zero-mean penalty: a monotone drop'),
    ('center_01.gold_accuracy', '<=', 'silu2.gold_accuracy', 'zero-mean penalty: a monotone drop'),
    ('center_1.gold_accuracy', '<', 'silu2.gold_accuracy', 'zero-mean penalty: a monotone drop'),
    ('length_norm.gold_accuracy', '<', 'silu2.gold_accuracy', 'length normalization: a drop'),
    ('length_norm_raw.gold_accuracy', '<', 'silu2.gold_accuracy', 'length normalization: a drop'),
    ('ensemble.mean2_gold_accuracy', '>', 'ensemble.best_of_2_gold_accuracy', 'mean of two 92.94 against 91.76'),
    ('ensemble.mean2_best_of_n_gold', '>', 'ensemble.best_of_2_best_of_n_gold', 'not reported'),
    ('ensemble.mean2_accuracy_plus', '>=', 'ensemble.best_of_2_accuracy_plus', 'Acc+ 80.43 and 80.43'),
    ('ensemble.mean4_gold_accuracy', '>=', 'ensemble.mean2_gold_accuracy', 'not reported'),
    ('ensemble.penalised4_best_of_n_gold', '>', 'ensemble.mean4_best_of_n_gold', 'not reported: variance-penalised'),
  )
  return config
