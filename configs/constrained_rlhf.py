"""Constrained RLHF: rewards held at the points up to which they are worth following, against fixed weights, with every reward a proxy.

  python -m experiments.reproduce --config=configs/constrained_rlhf.py --workdir=DIR

World: answers of about twelve words with two features, of which two proxies reward ever more and gold a certain amount; see `rmjax.worlds.sequences`.
Step A optimizes proxies without constraint and shows where gold peaks, for three correlations of the features. Step B fits the proxy points to what was
seen in step A and compares methods that run for as long. How each method is made is in `experiments.constrained`; what it costs in gold queries
is its figure `queries`.

Reference: Moskovitz et al., Confronting Reward Model Overoptimization with Constrained RLHF (2024).
"""

import ml_collections

from configs import grpo

SEQUENCES = 'rmjax.worlds.sequences:'
# A sigmoid is a quarter as steep as tanh.
SIGMOID = (('constraints.cap', 2.0), ('constraints.optimizer.learning_rate', 4.0))
RHO = dict(negative=-0.6, zero=0.0, positive=0.6)


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  del arg
  config = grpo.get_config('ppo')
  config.system = 'constrained_rlhf'
  config.program = 'reproduce'
  config.runner = 'experiments.constrained:study'

  words = dict(topics=8, words=8, length=12, planting=0, correlation=0.0)
  best = dict(best_a=0.5, best_b=0.7, coupling=0.5)
  config.world = dict(name=f'{SEQUENCES}Sequences', train_size=20_000, eval_size=64, spread=2, focus=0.5, saturation=1.5, **words, **best)
  config.rewards = dict(
    a=dict(weight=1.0, name=f'{SEQUENCES}proxy_a', saturation=1.5, **words),
    b=dict(weight=1.0, name=f'{SEQUENCES}proxy_b', **words),
    gold=dict(weight=0.0, name=f'{SEQUENCES}gold', **words, **best),
  )
  config.data.max_length = 8
  config.model.update(dtype='float32', remat='none', decoder=dict(hidden_size=32, intermediate_size=88, num_layers=2, num_heads=2, num_kv_heads=2))
  config.sampling.update(responses=8, max_new_tokens=16)
  config.algorithm.update(kl='none', epochs=2, minibatches=2)
  config.kl_coefficient = 0.0
  config.optimizer.update(learning_rate=5e-5, schedule='linear', final=0.1)
  config.critic.optimizer.update(learning_rate=1e-3, schedule='constant', warmup=0.0)
  # Few updates, so multipliers are fast; and held where their weights still move: further out they turn too late, and the policy swings far beyond.
  config.constraints.update(cap=1.5)
  config.constraints.optimizer.update(learning_rate=1.0)
  config.train.update(steps=200, prompts=8)

  config.study = dict(
    pretraining=300,  # steps on the world's text, which give every method its first policy and reference
    method='fixed',  # 'explore', 'fixed', 'best_weights', 'best_kl', 'early_stopped', 'search'
    thresholds='none',  # 'fitted' to what step A has seen, 'oracle', or 'none'
    every=5,  # iterations between evaluations
    rows=16,  # prompts of an evaluation, held out
    exploration=80,  # iterations of step A
    explored=((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)),  # weights of a and b in its runs
    choices=(),  # weights of a and b that a method tries
    coefficients=(),  # KL coefficients that it tries
    period=20,  # iterations that the search has for each question
    tail=0.2,  # part of the run after the search, and part over which the last returns are averaged
  )
  config.smoke = (('study.pretraining', 20), ('study.exploration', 6), ('train.steps', 6), ('study.every', 2), ('study.period', 2), ('study.rows', 8))

  config.seeds = (10, 11, 12, 13, 14)  # rates, bounds and schedules were chosen on others
  correlation = lambda rho: tuple((f'{name}.correlation', rho) for name in ('world', 'rewards.a', 'rewards.b', 'rewards.gold'))
  explore = (('study.method', 'explore'),)
  weighted = lambda a, b: (('rewards.a.weight', a), ('rewards.b.weight', b))
  kl = (('algorithm.kl', 'reward'), ('kl_coefficient', 0.05))
  five = ((2.0, 0.0), (1.5, 0.5), (1.0, 1.0), (0.5, 1.5), (0.0, 2.0))

  def constrained(sense, thresholds='fitted'):
    objective = (('algorithm.kl', 'reward'), ('kl_coefficient', 1.0), *weighted(0.0, 0.0))  # minus the KL divergence alone; its scale is normalised away
    limits = (('constraints.names', ('a', 'b')), ('constraints.senses', (sense, sense)), ('constraints.thresholds', (0.0, 0.0)))
    return (*objective, *limits, *(SIGMOID if sense != '==' else ()), ('study.thresholds', thresholds))

  xi = constrained('==')
  config.arms = {
    **{f'explore_{name}': explore + correlation(rho) for name, rho in RHO.items()},
    'ppo': (*kl, ('study.method', 'best_weights'), ('study.choices', five)),
    'ppo_best_kl': (*kl, ('study.method', 'best_kl'), ('study.coefficients', (0.02, 0.05, 0.1, 0.2, 0.5))),
    'ppo_no_kl': (),
    'ppo_sat': (
      *kl, *weighted(0.0, 0.0), ('study.thresholds', 'fitted'), ('constraints.names', ('a', 'b')), ('constraints.senses', ('==', '==')),
      ('constraints.thresholds', (0.0, 0.0)), ('constraints.form', 'satisfaction'),
    ),
    'mu_ppo': constrained('>='),
    'xi_ppo': xi,
    'all_ppo': (
      ('study.thresholds', 'fitted'), ('constraints.names', ('a', 'b', 'kl')), ('constraints.senses', ('<=', '<=', '>=')),
      ('constraints.thresholds', (0.0, 0.0, 0.0)), *SIGMOID,
    ),
    'nm_ppo': (*xi, ('study.method', 'search'), ('train.steps', 2 * config.train.steps)),
    'xi_oracle': constrained('==', 'oracle'),
    'early_stopped': (*kl, ('study.method', 'early_stopped'), ('study.choices', five)),
  }  # fmt: skip
  config.claims = (
    *((f'explore_{name}.sum_gold_drop', '>', 0.1, 'gold rises, then falls') for name in RHO),
    ('explore_zero.a_peak_a', '>', 'explore_negative.a_peak_a', 'proxy points move with the correlation'),
    ('explore_positive.a_peak_a', '>', 'explore_zero.a_peak_a', 'proxy points move with the correlation'),
    ('explore_positive.b_peak_b', '>', 'explore_negative.b_peak_b', 'proxy points move with the correlation'),
    ('explore_zero.regret', '<', 0.1, 'the fitted point is worth nearly what the true one is (ours)'),
    ('xi_ppo.missed', '<=', 0.05, 'constraints are met'),
    ('mu_ppo.violated', '<=', 0.05, 'constraints are met'),
    ('xi_ppo.gold', '>', 'ppo.gold', 'xi-PPO best'),
    ('mu_ppo.gold', '>', 'ppo.gold', 'mu-PPO above PPO'),
    ('xi_ppo.gold', '>', 'ppo_no_kl.gold', 'PPO overoptimizes'),
    ('xi_ppo.gold', '>', 'ppo_sat.gold', 'xi-PPO above PPO-SAT'),
    ('xi_ppo.gold', '>=', 'mu_ppo.gold', 'xi-PPO best'),
    ('xi_ppo.area', '>', 'ppo.area', 'area under the gold curve (not reported)'),
    ('nm_ppo.gold', '>=', 'xi_oracle.gold', 'comparable in one run of twice the steps'),
    ('xi_ppo.gold', '>', 'early_stopped.gold', 'at equal gold queries (ours; the paper does not compare)'),
    ('xi_ppo.gold', '>', 'ppo_best_kl.gold', 'no KL coefficient does as well (ours)'),
  )
  return config
