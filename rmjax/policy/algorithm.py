"""What a policy-optimization method is: a frozen choice of estimator, surrogate, aggregation and KL."""

import dataclasses
import math

from rmjax.errors import InputError
from rmjax.policy.constrained import check

CHOICES = dict(
  advantages=('group', 'gae', 'return'),
  baseline=('mean', 'leave_one_out', 'length', 'none'),
  scale=('group', 'batch', 'none'),
  combine=('sum_then_normalize', 'normalize_then_sum'),
  surrogate=('clipped', 'cispo', 'regression'),
  ratio=('token', 'sequence', 'sequence_sum'),
  aggregation=('token_mean', 'sequence_mean_token_mean', 'sequence_mean_token_sum', 'constant'),
  kl=('none', 'loss', 'reward'),
  kl_estimator=('k1', 'k2', 'k3', 'k3_straight_through'),
)


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """Everything categorical of a method. What changes while it trains (KL coefficient, multipliers, thresholds) is an array of the state.

  Attributes:
    advantages: 'group' compares a response with the others of its prompt (GRPO, RLOO), 'gae' with a critic (PPO), 'return' is the whitened
      return to go (REINFORCE++).
    baseline: what is taken off a group's rewards; with 'return' as well ('none' or 'mean').
    scale: what they are divided by, 'none' for Dr.GRPO.
    combine: several rewards are added and then normalised, or each is normalised and then added (GDPO).
    discount: gamma.
    decay: lambda of GAE.
    whiten: whether advantages of 'gae' are whitened over the rollouts' tokens; those of 'return' always are.
    surrogate: 'clipped' ratio, 'cispo', or 'regression' of a response's log-ratio on its reward (GPO, SPPO).
    regression_scale: what rewards are multiplied by to be the target of that regression, 1 / beta.
    ratio: of a token, or of a whole sequence: its mean (GSPO) or sum (RLOO).
    clip_low: ratios below 1 - clip_low are clipped.
    clip_high: ratios above 1 + clip_high are clipped; the largest ratio of 'cispo'.
    dual_clip: c of the dual clip, 0 for none.
    sampler_cap: token losses are weighted by p_old / p_sampler up to this, where truncated sampling or another precision makes the two differ; 0 for no
      weights.
    aggregation: of token losses.
    kl: where the divergence from the reference goes: in the loss (GRPO), in the reward (PPO), or nowhere.
    kl_estimator: see `rmjax.policy.kl`.
    kl_target: nats a response that an adaptive coefficient steers for; 0 keeps the coefficient.
    kl_horizon: responses in which it adapts.
    value_weight: of the critic's loss.
    value_clip: how far values may move from the old ones within an iteration; 0 for as far as they like.
    entropy_weight: of an entropy bonus.
    epochs: passes over each iteration's rollouts.
    minibatches: updates of a pass.
    oversample: times as many prompts are sampled as are trained on; see `iteration.make_update`.
    recompute: log-probs of the old policy come from a training forward instead of the sampler (for bfloat16, where they differ).
    missing_end_penalty: taken off the reward of a response without a stop token.
    mask_truncated: whether such responses are left out of the loss (DAPO's overlong filtering).
    overlong: tokens before the longest length in which DAPO's soft penalty sets in; 0 for none.
  """

  advantages: str = 'group'
  baseline: str = 'mean'
  scale: str = 'group'
  combine: str = 'sum_then_normalize'
  discount: float = 1.0
  decay: float = 0.95
  whiten: bool = True
  surrogate: str = 'clipped'
  regression_scale: float = 1.0
  ratio: str = 'token'
  clip_low: float = 0.2
  clip_high: float = 0.2
  dual_clip: float = 0.0
  sampler_cap: float = 0.0
  aggregation: str = 'token_mean'
  kl: str = 'none'
  kl_estimator: str = 'k3'
  kl_target: float = 0.0
  kl_horizon: float = 10_000.0
  value_weight: float = 0.5
  value_clip: float = 0.2
  entropy_weight: float = 0.0
  epochs: int = 1
  minibatches: int = 1
  oversample: int = 1
  recompute: bool = False
  missing_end_penalty: float = 0.0
  mask_truncated: bool = False
  overlong: int = 0

  def __post_init__(self):
    for name, choices in CHOICES.items():
      if getattr(self, name) not in choices:
        raise InputError(f"algorithm.{name} = '{getattr(self, name)}': choose one of {', '.join(choices)}")
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type in (int, float) and not (math.isfinite(value) and value >= 0):
        raise InputError(f'algorithm.{field.name} = {value}: it must be a number from 0 up')
    for name in ('epochs', 'minibatches', 'oversample'):
      if getattr(self, name) < 1:
        raise InputError(f'algorithm.{name} = {getattr(self, name)}: it must be at least 1')
    if self.advantages == 'return' and self.baseline not in ('none', 'mean'):
      raise InputError(f"algorithm.baseline = '{self.baseline}': with algorithm.advantages = 'return' it is 'none' or 'mean'")
    if self.surrogate == 'regression' and self.sampler_cap:
      raise InputError("algorithm.sampler_cap weights the tokens of a surrogate, and 'regression' has none: set it to 0")
    if self.surrogate == 'regression' and self.advantages != 'group':
      raise InputError("algorithm.surrogate = 'regression' fits one number a response: set algorithm.advantages = 'group'")

  @property
  def needs_critic(self) -> bool:
    """Whether a critic is trained."""
    return self.advantages == 'gae'


@dataclasses.dataclass(frozen=True)
class Constraints:
  """Which signals have thresholds, and what becomes of them. Thresholds and multipliers themselves are arrays of the state.

  Attributes:
    names: of signals, or 'kl', whose reward at each token is minus the log-ratio to the reference; () for none.
    senses: '>=', '<=' or '==' of each.
    form: of the multipliers, see `rmjax.policy.constrained`; or 'satisfaction', which has none and makes the distance from the thresholds the
      reward (PPO-SAT).
    weighting: how episodes count in a mean return, 'episode' or 'token'.
    cap: largest multiplier before squashing; 0 for that of the form.
    normalize: whether each column of advantages is brought to mean 0 and standard deviation 1 before they are mixed, as in the released code.
    value_weights: of the critic's losses of the objective and of each constraint.
  """

  names: tuple[str, ...] = ()
  senses: tuple[str, ...] = ()
  form: str = 'squashed'
  weighting: str = 'episode'
  cap: float = 0.0
  normalize: bool = True
  value_weights: tuple[float, float] = (0.2, 0.5)

  def __post_init__(self):
    if len(self.senses) != len(self.names):
      raise InputError(f'constraints: {len(self.names)} names and {len(self.senses)} senses: give one sense for each')
    if self.names and self.form != 'satisfaction':
      check(self.senses, self.form)
    if 'kl' in self.names and self.form == 'satisfaction':
      raise InputError("constraints: form 'satisfaction' is of rewards, not of 'kl'")

  @property
  def multipliers(self) -> bool:
    """Whether there are multipliers."""
    return bool(self.names) and self.form != 'satisfaction'


UNCONSTRAINED = Constraints()
