"""MM-RLHF in text: a reward model that writes a critique of a response and scores what it has read and written; and direct preference optimization
whose strength is each pair's own.

  python -m experiments.reproduce --config=configs/mm_rlhf.py --workdir=DIR

World: gold is how pairs of traits go together, which critiques say step by step (`rmjax.worlds.critiques`). Arms differ in what the head reads, and score
at test without the data's critiques ('own' or 'none') except where the figure says 'gold' or 'exchanged'. MM-DPO is studied where gold, KL and the reward
model's noise are known exactly, `experiments.dynamic_beta`: on all pairs of rankings, at the same KL, against constant beta swept.

It trains on your own data by `experiments.train_reward`: rows of `prompt`, `chosen`, `rejected`, with `chosen_critique`, `rejected_critique` (null where there
is none) and `is_tie`; or of `prompt`, `responses`, `ratings` (all pairs, ties among them) and `critiques`. Then, with a loaded model,

  records = rmjax.rewards.critiques.write_critiques(model, params, records, tokenizer, encode, max_new_tokens=256)

gives records whose critiques are the model's own, to be scored by `score_records`.

MM-DPO is configs/mm_rlhf.py:dpo (the paper's, each pair its beta, by the margin in the label `ref_rewards` that a frozen reward model has given), or
configs/mm_rlhf.py:dpo_released (what its code does: one beta a batch, by implicit margins).

Reference: Zhang et al., MM-RLHF: The Next Step Forward in Multimodal LLM Alignment (2025), section 3; weights, ties and centring as in its code.
"""

import ml_collections

from configs import dpo, small_world
from rmjax.errors import InputError

SCALAR = dict(name='rmjax.heads.scalar:ScalarHead', init_scale=1.0)
CRITIQUE = dict(name='rmjax.heads.critique:CritiqueScorer', conditioned=True, init_scale=1.0)
TIES = dict(name='rmjax.losses.critique:bradley_terry_with_ties', per='comparison', weight=1.0, tie_weight=1.0)
CENTERING = dict(name='rmjax.losses.preference:centering', per='comparison', weight=0.01)
WRITING = dict(name='rmjax.losses.critique:critique_negative_log_likelihood', per='critique', weight=1.0)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: '' for the reward model, 'dpo' or 'dpo_released' for the policy.

  Raises:
    InputError: it is something else.
  """
  if arg not in ('', 'dpo', 'dpo_released'):
    raise InputError(f"configs/mm_rlhf.py:{arg}: choose 'dpo' or 'dpo_released', or nothing for the reward model")
  return _policy(arg) if arg else _reward_model()


def _policy(arg: str) -> ml_collections.ConfigDict:
  config = dpo.get_config()
  config.system, config.runner, config.arms, config.claims = 'mm_rlhf', '', dict(base=()), ()
  config.losses = dict(
    preference=dict(name='rmjax.losses.dynamic:mm_dpo', per='comparison', weight=1.0, w=0.5, k=0.5, scale=1.0)
    if arg == 'dpo'
    else dict(name='rmjax.losses.dynamic:mm_dpo_released', per='batch', weight=1.0, w=0.1, keep=0.8),
    likelihood=dict(name='rmjax.losses.implicit:chosen_negative_log_likelihood', per='comparison', weight=0.25, average=True),
  )
  config.train.update(rows=128, accumulate=1)
  config.optimizer.update(schedule='cosine', warmup=0.1)
  return config


def _reward_model() -> ml_collections.ConfigDict:
  config = small_world.get_config()
  config.system = 'mm_rlhf'
  config.runner = 'experiments.critique_study:study'
  config.world = dict(
    name='rmjax.worlds.critiques:Critiques',
    train_size=500,
    eval_size=400,
    eval=dict(responses=4),
    critiqued=1.0,
    tie=0.5,
    topics=4,
    traits=6,
    responses=2,
    values=2,
    marks=2,
    blur=1.0,
    weights=((0.0,) * 6,),
    interactions=((0, 1, 1.0), (2, 3, 1.0), (4, 5, 1.0)),
    temperature=1.0,
  )
  config.model.head = CRITIQUE
  config.losses = dict(preference=TIES, centering=CENTERING, critique=WRITING)
  config.train.update(steps=300, rows=4, length=200, slots=3, responses=4)
  config.evaluation.measures = ('rmjax.evaluation.summary:summary', 'rmjax.evaluation.grouped:accuracy_plus')
  config.study = dict(critiques=('gold', 'own', 'averaged', 'exchanged'), samples=4, max_new_tokens=14)
  config.dynamic = dict(
    method='dpo',
    strengths=tuple(0.2 * 1.5**k for k in range(10)),  # beta, or beta_ori
    w=0.5,
    k=0.5,  # of margins in standard deviations
    prompts=100,
    test=2000,
    responses=5,  # of a ranking; all its pairs are trained on
    features=24,
    visible=16,  # to the policy
    spread=1.5,  # standard deviation of gold
    noise=1.0,  # of the frozen reward model
    steps=300,
    rows=16,
    rate=0.1,
    divergences=(0.05, 0.1, 0.2, 0.4),
  )
  config.smoke = (('study.samples', 2), ('dynamic.steps', 2))

  policy = lambda method, **changes: (
    ('runner', 'experiments.dynamic_beta:study'), ('dynamic.method', method), *((f'dynamic.{name}', value) for name, value in changes.items())
  )  # fmt: skip
  without = (('study.critiques', ('none',)),)
  scalar = (('model.head', SCALAR), ('losses', dict(preference=TIES, centering=CENTERING)), ('world.critiqued', 0.0), *without)
  config.arms = dict(
    critique=(),
    scalar=scalar,
    auxiliary=(('model.head.conditioned', False), *without),
    half=(('world.critiqued', 0.5), ('world.eval', dict(responses=4, critiqued=1.0)), ('study.critiques', ('gold', 'own'))),
    many=(*scalar, ('world.train_size', 4000)),
    mm_dpo=policy('mm_dpo'),
    mm_dpo_clean=policy('mm_dpo', noise=0.0),
    dpo=policy('dpo'),
    larger=policy('dpo', strengths=tuple(1.5 * beta for beta in config.dynamic.strengths)),
    released=policy('released'),
  )
  config.claims = (
    ('critique.own_gold_accuracy', '>', 'scalar.none_gold_accuracy', 'Acc+ 17 points higher with enhanced critiques'),
    ('critique.own_gold_accuracy_plus', '>', 'scalar.none_gold_accuracy_plus', 'Acc+ 17 points higher with enhanced critiques'),
    ('critique.own_gold_accuracy', '>', 'auxiliary.none_gold_accuracy', 'ours (control): writing without reading it is not enough'),
    ('critique.gold_gold_accuracy', '>=', 'critique.own_gold_accuracy', 'ours: the gap is exposure bias'),
    ('critique.averaged_gold_accuracy', '<=', 'critique.own_gold_accuracy', 'several critiques, averaged, did not help'),
    ('critique.exchanged_gold_accuracy', '<', 0.6, 'ours (control): what is read is the critique'),
    ('critique.own_gold_accuracy', '>', 'many.none_gold_accuracy', 'ours: critiques are worth more than eight times the comparisons'),
    ('half.own_gold_accuracy', '>', 'scalar.none_gold_accuracy', 'ours: samples without a critique are masked'),
  ) + tuple(
    claim
    for d in (5, 10, 20, 40)
    for claim in (
      (f'mm_dpo.gain_{d}', '>', f'dpo.gain_{d}', 'conversation +19.5%; at the same KL constant beta, swept, must be worse'),
      (f'mm_dpo.gain_{d}', '>', f'larger.gain_{d}', 'ours (control): beta_ori (1 + w) for all'),
      (f'mm_dpo_clean.gain_{d}', '>', f'dpo.gain_{d}', 'ours: a reward model without noise'),
      (f'abs(released.gain_{d} - dpo.gain_{d})', '<', 0.02, 'ours: the released rule moves one beta, which a swept one does as well'),
    )
  )
  return config
