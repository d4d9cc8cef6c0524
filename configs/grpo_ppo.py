"""Which policy-gradient estimators are unbiased: the study of the estimators behind GRPO, Dr.GRPO and RLOO in a world where all is exact.

  python -m experiments.reproduce --config=configs/grpo_ppo.py --workdir=DIR

World: 8 prompts, from nearly unsolved to nearly solved; 4 tokens; 3 of them a response, all 64 equally long, or at most 3 where one of the four ends
it (`varied`). A reward is 0 or 1; or, with partial credit, 0, 0.1 or 1 (`graded`). An estimator's expectation over all groups of 4 (or 16) is
compared with the exact gradient of the expected reward, and so is its mean over 20,000 sampled groups of each prompt; see `experiments.estimators`.

In a group of 4 the standard deviation of rewards that are 0 or 1 is 0.50 or 0.58, or 0. So dividing by it can bias GRPO but little here: it is in
larger groups, and where there is partial credit, that the division weighs prompts and rewards anew.

Reference: Shao et al., DeepSeekMath (2024); Liu et al., Dr.GRPO (2025); Ahmadian et al., RLOO (2024). The claims are what these say of their
estimators, recalled; none reports such a measurement.
"""

import ml_collections


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  del arg
  config = ml_collections.ConfigDict()
  config.system = 'grpo_ppo'
  config.program = 'reproduce'
  config.runner = 'experiments.estimators:study'  # (config, seeds) -> figures of each seed
  config.study = dict(
    problem=dict(vocab=4, length=3, end=-1, prompts=8, levels=(0.0, 1.0)),
    estimator=dict(
      baseline='mean',
      scale='none',
      aggregation='sequence_mean_token_sum',  # the gradient of an expected return is a sum over tokens
      multiply=1.0,
    ),
    samples=dict(group=4, groups=20_000, batches=200),
  )
  config.smoke = (('study.samples', dict(group=4, groups=8, batches=4)),)

  estimator = lambda **changes: tuple((f'study.estimator.{name}', value) for name, value in changes.items())
  rloo = estimator(baseline='leave_one_out')
  varied, graded = (('study.problem.end', 3),), (('study.problem.levels', (0.0, 0.1, 1.0)),)
  larger = (('study.samples.group', 16), ('study.samples.groups', 5000))
  config.seeds = (0, 1, 2, 3, 4)
  config.arms = dict(
    rloo=rloo,
    dr_grpo=estimator(aggregation='constant', multiply=4 / 3 * 3),  # G / (G - 1), and the constant length
    dr_grpo_as_published=estimator(aggregation='constant', multiply=3.0),
    grpo=estimator(scale='group'),
    grpo_of_16=estimator(scale='group') + larger,
    rloo_of_16=rloo + larger,
    grpo_graded=estimator(scale='group') + graded,
    rloo_graded=rloo + graded,
    batch_scaled=estimator(scale='batch'),
    no_baseline=estimator(baseline='none'),
    rloo_varied=rloo + varied,
    dr_grpo_varied=estimator(aggregation='constant', multiply=4 / 3 * 3) + varied,
    sequence_mean_varied=estimator(baseline='leave_one_out', aggregation='sequence_mean_token_mean') + varied,
    token_mean_varied=estimator(baseline='leave_one_out', aggregation='token_mean') + varied,
  )
  unbiased = ('rloo', 'dr_grpo', 'rloo_of_16', 'rloo_graded', 'rloo_varied', 'dr_grpo_varied')
  biased = ('grpo', 'grpo_of_16', 'grpo_graded', 'sequence_mean_varied')
  config.claims = (
    *((f'{arm}.exact_error', '<', 1e-4, 'unbiased') for arm in unbiased),
    *((f'abs({arm}.{z})', '<', 3.0, 'unbiased: within 3 standard errors') for arm in unbiased for z in ('z', 'z_norm')),
    *((f'{arm}.exact_angle', '>', 1e-3, 'biased in direction') for arm in biased),
    *((f'{arm}.z', '>', 3.0, 'biased in direction: by more than 3 standard errors') for arm in biased),
    *((f'{arm}.exact_edge', '>', 1.0, 'nearly solved and unsolved prompts weigh more') for arm in biased[:3]),
    ('abs(dr_grpo_as_published.exact_norm_ratio - 0.75)', '<', 1e-4, 'short by (G - 1) / G'),
    ('dr_grpo_as_published.exact_angle', '<', 1e-3, 'in the right direction'),
    ('batch_scaled.cosine', '>', 'grpo.cosine', 'one scale for all prompts does not tell them apart'),
    ('abs(token_mean_varied.z)', '<', 3.0, 'the mean over tokens has no length bias'),
    ('rloo.noise', '<', 'no_baseline.noise', 'a baseline takes noise away'),
  )
  return config
