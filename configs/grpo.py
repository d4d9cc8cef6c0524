"""GRPO and its kin: a policy optimized against any rewards, group-relative or with a critic.

  python -m experiments.optimize_policy --config=configs/grpo.py[:variant] --workdir=DIR \
    --config.model.path=HF_DIR --config.data.train=PROMPTS --config.rewards.mine.name=my_rewards:brevity

`variant` is one of VARIANTS. Base of the other policy configs, which change some of its leaves.

Reference: Shao et al., DeepSeekMath (2024), section 4.1; the variants as named below.
"""

import ml_collections

from configs import bradley_terry

VARIANTS = {
  'grpo': dict(),
  # Liu et al., Understanding R1-Zero-Like Training (2025)
  'dr_grpo': dict(scale='none', aggregation='constant'),
  # Yu et al., DAPO (2025): clip higher, token mean, no KL, groups that all agree replaced, soft punishment of overlong responses
  'dapo': dict(clip_high=0.28, aggregation='token_mean', oversample=2, overlong=16),
  # Ahmadian et al., Back to Basics (2024)
  'rloo': dict(baseline='leave_one_out', scale='none', ratio='sequence_sum', kl='reward', kl_estimator='k1'),
  # Zheng et al., Group Sequence Policy Optimization (2025)
  'gspo': dict(ratio='sequence', clip_low=3e-4, clip_high=4e-4),
  # MiniMax-M1 (2025)
  'cispo': dict(surrogate='cispo', clip_high=5.0, aggregation='token_mean'),
  # Hu et al., REINFORCE++ (2025)
  'reinforce_pp': dict(advantages='return', baseline='none', kl='reward', aggregation='token_mean'),
  'reinforce_pp_baseline': dict(advantages='return', baseline='mean', kl='reward', aggregation='token_mean'),
  # Schulman et al., PPO (2017), with the KL in the reward of Ziegler et al. (2019)
  'ppo': dict(advantages='gae', kl='reward', aggregation='token_mean', epochs=4, minibatches=2),
  # Zhang et al., GPM (2024), eq. 5.3: self-play by regression of log-ratios
  'gpo': dict(surrogate='regression', baseline='none', scale='none', regression_scale=10.0, epochs=2),
}


def get_config(arg: str = 'grpo') -> ml_collections.ConfigDict:
  """Returns the config of a variant."""
  if (arg or 'grpo') not in VARIANTS:
    raise ValueError(f"configs/grpo.py:{arg}: choose one of {', '.join(VARIANTS)}")
  base = bradley_terry.get_config()
  config = ml_collections.ConfigDict()
  config.system = 'grpo_ppo'
  config.program = 'optimize_policy'
  config.seed = 0

  # A --workdir of `train_reward` with configs/sft.py will do as a path too.
  config.model = {name: base.model[name] for name in ('path', 'decoder', 'dtype', 'remat', 'lora')}
  config.reference = 'frozen'  # what the KL is measured from: a copy of the first policy (or the policy without its adapters); 'none' saves its forward
  config.critic = dict(
    path='',  # as model.path; '' starts from the policy's
    optimizer=dict(base.optimizer.to_dict(), learning_rate=1e-5),
  )
  config.data = dict(
    train='',  # files with a column `prompt`; other columns go to the reward functions. '' takes `world`
    eval='',  # '' is `train`
    columns='',
    tokenizer='',
    max_length=256,  # tokens of a prompt
    text_prompts='plain',
    too_long='truncate',
    bad_rows='strict',
    shards=1,  # see bradley_terry.py
  )
  config.world = dict(name='')
  config.sampling = dict(
    responses=8, max_new_tokens=256, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, stop=(),
    slots=0,  # so many responses at a time, each place refilled as one ends; 0 for all at once. For lengths that differ much
    cache_dtype='',  # 'bfloat16' or 'int8' to keep keys and values in less memory; with algorithm.recompute
  )  # fmt: skip
  config.rewards = dict()  # name -> dict(weight, name | checkpoint, ...), see experiments/policy_rewards.py
  config.rewards_timeout = 60.0  # seconds that functions of text have for a batch
  config.kl_coefficient = 0.05
  config.algorithm = dict(
    advantages='group', baseline='mean', scale='group', combine='sum_then_normalize', discount=1.0, decay=0.95, whiten=True,
    surrogate='clipped', regression_scale=1.0, ratio='token', clip_low=0.2, clip_high=0.2, dual_clip=0.0, sampler_cap=0.0,
    aggregation='sequence_mean_token_mean',
    kl='loss', kl_estimator='k3', kl_target=0.0, kl_horizon=10_000.0, value_weight=0.5, value_clip=0.2, entropy_weight=0.0,
    epochs=1, minibatches=1, oversample=1, recompute=False, missing_end_penalty=0.0, mask_truncated=False, overlong=0,
  )  # fmt: skip
  config.algorithm.update(VARIANTS[arg or 'grpo'])
  if arg == 'dapo':
    config.algorithm.kl = 'none'
  config.constraints = dict(
    names=(), senses=(), thresholds=(), form='squashed', weighting='episode', cap=0.0, normalize=True, value_weights=(0.2, 0.5),
    optimizer=dict(learning_rate=0.1, momentum=0.1, clip=0.5),
  )  # fmt: skip
  config.train = dict(
    steps=200, prompts=8, accumulate=1, chunk=256, log_every=1, eval_every=50, save_every=50, best='', keep=1,
    samples=4,  # responses written to samples.jsonl at each line of figures
  )  # fmt: skip
  config.optimizer = dict(base.optimizer.to_dict(), learning_rate=1e-6, schedule='constant', warmup=0.0)
  config.seeds = (0, 1, 2, 3, 4)
  config.arms = dict(base=())
  config.claims = ()
  config.mesh = base.mesh
  config.wandb = ml_collections.config_dict.placeholder(str)
  return config
