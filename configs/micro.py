"""MiCRo: a mixture of Bradley-Terry models from comparisons whose annotators are unknown, then routed to a context by a few labelled pairs.

  python -m experiments.reproduce --config=configs/micro.py --workdir=DIR

World: three groups of annotators weigh three traits against one another; the prompt's topic shifts who judges it, and nobody is named. In the second
stage a context is a prompt that names the group. All comparisons of a record are one annotator's, which the paper's loss does not use; the arm
`joint` does, and in `one_pair` there is nothing of that kind to use. Control: all groups weigh alike. The backbone is trained along with the heads in the
first stage, since there is no pretrained one for this world [ours; the paper's is frozen], and is frozen in the second.

Reference: MiCRo: Mixture Modeling and Context-aware Routing for Personalized Preference Learning (2025).
"""

import ml_collections

from configs import small_world


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  config = small_world.get_config(arg)
  config.system = 'micro'
  config.world = dict(
    name='rmjax.worlds.traits:Traits',
    train_size=20_000,
    eval_size=400,
    eval=dict(),
    topics=3,
    traits=3,
    responses=4,
    pairs=0,
    marks=2,
    blur=0.5,
    weights=((2.0, -1.0, 0.0), (0.0, 2.0, -1.0), (-1.0, 0.0, 2.0)),
    mix=((0.7, 0.15, 0.15), (0.15, 0.7, 0.15), (0.15, 0.15, 0.7)),
    temperature=0.25,
    named=False,
  )
  config.model.decoder = dict(hidden_size=48, intermediate_size=128, num_layers=2, num_heads=2, num_kv_heads=2)
  config.model.head = dict(name='rmjax.heads.mixture:MixtureHead', components=3, hidden=128, gate='prompt', init_scale=1.0)
  config.losses.preference = dict(name='rmjax.losses.mixture:mixture_preference', per='comparison', weight=1.0, joint=False)
  config.losses.entropy = dict(name='rmjax.losses.mixture:negative_entropy', per='tree', weight=0.5)
  config.train.update(steps=300, length=112)
  config.evaluation.measures = ('rmjax.evaluation.summary:summary', 'rmjax.evaluation.mixture:mixture_figures')
  config.runner = 'experiments.context_router:study'
  config.router = dict(budgets=(0, 5, 20, 50, 100), temperature=1e-3, epochs=10, batch=32, learning_rate=1e-2, hyre=16)

  alone = (('router.budgets', ()),)
  single = (('model.head.components', 1), *alone)
  alike = (('world.weights', ((1.0, 1.0, 1.0),) * 3),)
  config.arms = dict(
    micro=(),
    single=single,
    static=(('model.head.gate', 'static'), *alone),
    uniform=(('model.head.gate', 'uniform'), *alone),
    joint=(('losses.preference.joint', True), ('losses.preference.per', 'tree')),  # an example is a record, whose weight the entropy's is beside
    one_pair=(('world.pairs', 1), *alone),
    five=(('model.head.components', 5), ('router.budgets', (50,))),
    two=(('model.head.components', 2), ('router.budgets', (50,))),
    micro_alike=(*alone, *alike),
    single_alike=(*single, *alike),
  )
  config.claims = (
    ('micro.excess_nll', '<', 'single.excess_nll', 'theorem 3.2: below the floor of one Bradley-Terry model'),
    ('micro.excess_nll', '<', 'static.excess_nll', 'ours: falsified if a static gate equals one of the prompt'),
    ('micro.excess_nll', '<', 'uniform.excess_nll', 'not reported'),
    ('micro.best_head_accuracy', '>', 'single.best_head_accuracy', 'best head (an oracle selects it) 0.921, single 0.659 on RPR'),
    ('micro.routed_50', '>', 'single.named_accuracy', 'routed 0.8218, single 0.6594 on RPR'),
    ('micro.routed_50', '>', 'static.named_accuracy', 'routed 0.8218, static mixture 0.7836 on RPR'),
    ('micro.routed_50', '>', 'uniform.named_accuracy', 'not reported'),
    ('micro.routed_50', '>', 'micro.routed_0', 'RPR 0.705 at 0 labels, 0.841 at 50 an attribute'),
    ('micro.routed_20', '>', 'micro.routed_0', 'not reported'),
    ('micro.routed_100', '>=', 'micro.routed_50', 'not reported'),
    ('micro.routed_50', '>', 'micro.oracle_accuracy - 0.05', 'ours: falsified if routing needs more than 200 labels'),
    ('micro.hyre', '>', 'micro.routed_50', 'with HyRe 0.8974, routed 0.8218 on RPR'),
    ('joint.matched_accuracy', '>', 'micro.matched_accuracy', 'ours: repeated structure identifies groups, if the loss uses it'),
    ('one_pair.matched_accuracy', '<', 'joint.matched_accuracy', 'ours: without repeated structure groups are not identified as well'),
    ('joint.routed_50', '>', 'joint.routed_0', 'RPR 0.705 at 0 labels, 0.841 at 50 an attribute'),
    ('joint.routed_50', '>', 'single.named_accuracy', 'routed 0.8218, single 0.6594 on RPR'),
    ('joint.hyre', '>', 'joint.routed_100', 'with HyRe 0.8974, routed 0.8218 on RPR'),
    ('two.routed_50', '<', 'micro.routed_50', 'too few components hurt'),
    ('five.excess_nll', '<=', 'micro.excess_nll + 0.01', 'too many are benign in stage 1'),
    ('five.routed_50', '<', 'micro.routed_50', 'and harder to route'),
    ('micro_alike.gold_accuracy', '>=', 'single_alike.gold_accuracy - 0.01', 'ours, control: nothing is lost where all are alike'),
    ('micro_alike.excess_nll', '<=', 'single_alike.excess_nll + 0.01', 'ours, control: nothing is lost where all are alike'),
  )
  return config
