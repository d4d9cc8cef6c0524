"""Direct preference optimization: the policy is the reward model; and the losses that followed it.

  python -m experiments.train_reward --config=configs/dpo.py[:ipo] --workdir=DIR \
    --config.model.path=HF_DIR --config.data.train=FILE --config.data.eval=FILE

On the embedded world, from a policy that configs/sft.py has trained (DIR of another run will do for model.path as well as a Hugging Face directory):

  python -m experiments.train_reward --config=configs/dpo.py:world --workdir=DIR --config.model.path=runs/sft

The argument is a loss (dpo if none), 'world', or both, joined by a comma. `experiments.export` writes the policy for transformers.

Reference: Rafailov et al., Direct Preference Optimization (2023); learning rate, warm-up, clipping and batch as in its code.
"""

from typing import Any

import ml_collections

from configs import bradley_terry, quickstart
from rmjax.errors import InputError

_PREFERENCE = 'rmjax.losses.preference:preference_cross_entropy'
_LOSSES = 'rmjax.losses.implicit:'


def _term(name: str, per: str = 'comparison', weight: float = 1.0, **options: Any) -> dict[str, Any]:
  return dict(name=name if ':' in name else _LOSSES + name, per=per, weight=weight, **options)


_LIKELIHOOD = _term('chosen_negative_log_likelihood', average=True)

# Variant -> changes of the head, terms of the loss.
VARIANTS = dict(
  dpo=({}, dict(preference=_term(_PREFERENCE))),
  ipo=({}, dict(preference=_term('ipo'))),
  hinge=({}, dict(preference=_term('hinge'))),
  cdpo=({}, dict(preference=_term('conservative', smoothing=0.1))),
  robust=({}, dict(preference=_term('robust', smoothing=0.1))),
  normalized=(dict(average=True, beta=1.0), dict(preference=_term(_PREFERENCE))),
  wpo=({}, dict(preference=_term('weighted'))),
  rpo=({}, dict(preference=_term(_PREFERENCE), likelihood=_LIKELIHOOD)),
  listwise=({}, dict(preference=_term('rmjax.losses.listwise:plackett_luce', per='tree'))),
  kto=({}, dict(preference=_term('kto', per='rating', desirable=1.0, undesirable=1.0))),
  simpo=(dict(average=True, beta=2.0, reference='none'), dict(preference=_term(_PREFERENCE, margin=1.0))),
  cpo=(dict(reference='none'), dict(preference=_term(_PREFERENCE), likelihood=_LIKELIHOOD)),
  orpo=(dict(average=True, beta=1.0, reference='none'), dict(preference=_term('odds_ratio', weight=0.1), likelihood=_LIKELIHOOD)),
  preferred_ft=(dict(reference='none'), dict(likelihood=_LIKELIHOOD)),
)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config.

  Args:
    arg: a key of `VARIANTS`, 'world', or both with a comma between.

  Raises:
    InputError: it is something else.
  """
  words = [word for word in arg.split(',') if word]
  names = [word for word in words if word != 'world'] or ['dpo']
  if len(names) > 1 or names[0] not in VARIANTS:
    raise InputError(f"configs/dpo.py:{arg}: choose one of {', '.join(VARIANTS)}, and 'world' for the embedded world")
  head, losses = VARIANTS[names[0]]
  on_world = 'world' in words
  config = quickstart.get_config() if on_world else bradley_terry.get_config()
  config.system = 'dpo'
  config.model.head = dict(name='rmjax.heads.implicit:ImplicitRewardHead', beta=0.1, average=False, reference='frozen') | head
  config.losses = losses
  config.data.unpaired = names[0] == 'kto'  # beside each record's responses one of another prompt, from which KTO's baseline is estimated
  if not on_world:
    config.data.too_long = 'refuse'  # a response that is cut has another log-ratio
    config.train.rows, config.train.slots, config.train.accumulate = 32, 4, 4
    config.optimizer.update(learning_rate=1e-6, schedule='constant', warmup=0.1, clip=10.0)
  else:
    config.train.update(steps=300, save_every=0)
    config.optimizer.update(learning_rate=1e-4, schedule='constant', warmup=0.1)
  config.train.responses += config.data.unpaired
  _add_claims(config)
  return config


def _add_claims(config: ml_collections.ConfigDict) -> None:
  """Arms of `experiments.reproduce`, which need no data: reward against KL in the world of sequences, 12 words in answers of 8."""
  config.runner = 'experiments.dpo_frontier:study'
  config.frontier = dict(
    method='dpo',
    strengths=(0.4, 0.8, 1.6, 3.2, 6.4),  # beta, or the coefficient of the KL penalty
    rate=3e-4,
    steps=256,  # four passes over the pairs, of an offline method or a reward model
    iterations=200,  # of policy optimization
    reward_rate=1e-3,
    world=dict(topics=3, words=4, length=8, spread=0, focus=0.5, correlation=0.0),
    decoder=dict(hidden_size=32, intermediate_size=88, num_layers=2, num_heads=2, num_kv_heads=2),
    scale=4.0,  # r* is this times the world's gold
    pretrain=300,
    pairs=4096,
    rows=64,
    samples=512,  # of each policy, to every prompt
    divergences=(0.2, 0.5, 1.0, 2.0, 4.0),
  )
  config.smoke = (('frontier.steps', 2), ('frontier.iterations', 2), ('frontier.pretrain', 2), ('frontier.pairs', 64), ('frontier.samples', 8))
  config.seeds = (10, 11, 12, 13, 14)  # rates, steps and strengths were chosen on seeds 0 and 1
  method = lambda name, **changes: (('frontier.method', name), *((f'frontier.{key}', value) for key, value in changes.items()))
  config.arms = dict(
    dpo=method('dpo'),
    ipo=method('ipo', strengths=(0.03, 0.06, 0.12, 0.25, 0.5)),
    preferred_ft=method('preferred_ft', strengths=(1.0,)),
    learned=method('learned', strengths=(0.1, 0.3, 0.8, 1.6, 3.2), rate=1e-3),
    gold=method('gold', strengths=(0.1, 0.3, 0.8, 1.6, 3.2), rate=1e-3),
    optimum=method('optimum'),
  )
  config.claims = tuple(
    claim
    for d in (20, 50, 100, 200)
    for claim in (
      (f'dpo.gain_{d}', '>=', f'learned.gain_{d}', 'frontier above PPO with the learned reward'),
      (f'dpo.gain_{d}', '>=', f'gold.gain_{d}', 'frontier above PPO with the true reward'),
    )
  ) + (('dpo.best_gain', '>', 'preferred_ft.best_gain', 'frontier above Preferred-FT'),)
