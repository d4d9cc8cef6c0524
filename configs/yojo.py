"""YOJO: one pass over a prompt and all its responses, of which each sees the ones before it, against responses that are blind to one another.

  python -m experiments.reproduce --config=configs/yojo.py --workdir=DIR

World: of one trait more is better up to the prompt's centre and worse past it; no text tells the centre, and all responses lie around it, so that only the
others say where it is. In the control, arms `_absolute`, more is always better. Single responses with Bradley-Terry, lists without sight of one
another (which is the paper's model with its attention between responses taken out: the same head, loss and tokens), the chain as it is, and the chain
averaged over four orders, in which each response stands in each place once.

Arm `cost`: operations that the compiled model takes for a group by a prompt of 192 tokens, in one pass and in N; seconds are in the record, no claim is.

Reference: You Only Judge Once: Multi-response Reward Modeling in a Single Forward Pass (2026) and its code. Here a response keeps its end-of-text
token, where the score is read, before the separator [ours].
"""

import ml_collections

from configs import small_world


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  config = small_world.get_config(arg)
  config.system = 'yojo'
  config.world = dict(
    name='rmjax.worlds.traits:Traits',
    train_size=20_000,
    eval_size=200,
    eval=dict(),
    topics=4,
    traits=2,  # the second counts for nothing; without it there are too few texts to hold some out
    responses=4,
    pairs=0,
    marks=2,
    blur=0.25,
    weights=((3.0, 0.0),),
    closeness=6.0,
    spread=0.3,
    temperature=0.1,
  )
  config.model.decoder = dict(hidden_size=48, intermediate_size=128, num_layers=2, num_heads=4, num_kv_heads=4)
  config.data.update(layout='chain', separator='\n,\n', orders=4, max_length=128)
  config.model.head = dict(name='rmjax.heads.mlp:MLPRewardHead', layers=2, width=128, activation='silu', init_std=0.0, scale=False)
  config.losses.preference = dict(name='rmjax.losses.listwise:best_cross_entropy', per='tree', weight=1.0)
  config.train.update(steps=1000, length=136, slots=3)
  config.optimizer.learning_rate = 4e-3
  config.evaluation.measures = ('rmjax.evaluation.summary:summary', 'rmjax.evaluation.orders:order_figures')
  config.runner = ''
  config.cost = dict(prompt=192, response=12, responses=4, repeats=5)  # attention is dense below 256 columns, and XLA's count whole

  branch = (('data.layout', 'branch'),)
  pairs = ('losses.preference', dict(name='rmjax.losses.preference:preference_cross_entropy', per='comparison', weight=1.0))
  average = ('evaluation.correction', dict(name='rmjax.evaluation.orders:order_average'))
  arms = dict(single=(*branch, pairs), isolated=branch, chain=(), averaged=(average,))
  # To compare takes long to learn, and what is good by itself does not.
  absolute = (('world.closeness', 0.0), ('train.steps', 250))
  config.arms = dict(
    **arms,
    **{f'{name}_absolute': (*arms[name], *absolute) for name in ('single', 'chain', 'averaged')},
    cost=(('runner', 'experiments.judge_cost:study'),),
  )
  config.claims = (
    ('chain.gold_accuracy', '>', 'single.gold_accuracy', 'average 71.2 against Skywork-VL 63.0, IXC-2.5 61.4'),
    ('chain.gold_accuracy', '>', 'isolated.gold_accuracy', 'ours: falsified if sight of the others gives nothing'),
    ('chain.best_of_n_gold', '>', 'isolated.best_of_n_gold', 'ours: falsified if sight of the others gives nothing'),
    ('averaged.gold_accuracy', '>', 'chain.gold_accuracy', 'not reported'),
    ('averaged.best_of_n_gold', '>', 'chain.best_of_n_gold', 'not reported'),
    ('chain.order_flips', '<', 'chain.best_found - isolated.best_found', 'ours: falsified if order flips exceed the gain'),
    ('chain.place_accuracy_4', '>', 'chain.place_accuracy_1', 'not reported: the last response sees all others, the first none'),
    ('chain_absolute.gold_accuracy', '>=', 'single_absolute.gold_accuracy - 0.01', 'ours, control: nothing is lost where quality is absolute'),
    ('averaged_absolute.best_of_n_gold', '>=', 'single_absolute.best_of_n_gold - 0.02', 'ours, control: nothing is lost where quality is absolute'),
    ('cost.operations_ratio', '>', 3.0, 'up to N x faster; N = 4, 192 tokens of prompt, 12 of a response'),
    ('cost.branch_ratio', '<=', 'cost.operations_ratio', 'ours: that the prompt is computed once is all of it; responses that are blind cost no more'),
  )
  return config
