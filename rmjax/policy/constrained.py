"""Constrained policy optimization: multipliers as a part of the parameters, one mixed advantage, under the one training step.

maximise the objective's return subject to J_i >= theta_i, J_i <= theta_i or J_i == theta_i. By Lagrange: an advantage that mixes the objective's
with every constraint's by weights g(mu_i), and multipliers mu that descend sum_i g(mu_i) * (J_i - theta_i) while the policy ascends. '<=' is '>='
of the negated signal and threshold.

| method | objective | senses | form |
|---|---|---|---|
| mu-PPO | KL reward | all '>=' | 'squashed' |
| xi-PPO | KL reward | all '==' | 'squashed' |
| All-PPO [recalled, not in the released code; its mixture is ours] | sum of the rewards | '<=' each reward, '>=' the KL reward | 'squashed' |
| reward under a limit on cost, as in safe RLHF | reward | '<=' the cost | 'log' |

PPO is a fixed weighted sum of rewards, PPO-SAT the reward of `satisfaction_reward`: neither has multipliers. Without a critic (constrained GRPO)
each column is a signal relative to its own group, and all else is the same: normalised before mixing, for a mixture that is normalised
after has its weights undone by the group's own scale.

How to run it under `rmjax.training.step.make_step`: a part `multipliers` of the parameters, from `init_multipliers`, with
`multiplier_optimizer` as its optimiser; a loss term for each constraint, from `multiplier_loss`; thresholds are a part without an optimiser.
`moves` gives the multipliers a delay. Gradient descent and ascent at once promises averaged iterates only: the last one may circle. Normalised columns
make it worse where a policy can become certain: however few tokens still differ, they are worth a standard deviation, so that nothing slows it on its
way there, and then nothing is left to learn from. Columns as they are (`Constraints.normalize`) settled where those did not (docs/policy_optimization.md).

Dimensions: B any leading ones, R rows, T length, C constraints, K = 1 + C columns.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, PRNGKeyArray
import optax

from rmjax.errors import InputError
from rmjax.trees import Array

SENSES = ('>=', '<=', '==')
FORMS = ('squashed', 'unsquashed', 'log')
KINDS = ('sigmoid', 'tanh', 'none', 'exp')
WEIGHTINGS = ('episode', 'token')
# Of mu. Squashed: weights within 0.7 % of their bounds. Log: lambda from 0.02 to 5, safe RLHF's largest [recalled].
CAPS = {'squashed': (-5.0, 5.0), 'unsquashed': (0.0, 10.0), 'log': (-4.0, 1.6094379)}
TOUCH = 1e-4  # how near to a bound a multiplier counts as capped: rounding keeps it from the bound itself


def check(senses: Sequence[str], form: str) -> None:
  """Raises an error where a problem cannot be stated so.

  Raises:
    InputError: an unknown sense or form, no constraint, or an equality with a multiplier that cannot be negative.
  """
  if form not in FORMS:
    raise InputError(f"constraints: form '{form}': choose one of {', '.join(FORMS)}")
  if not senses or set(senses) - set(SENSES):
    raise InputError(f'constraints: senses {tuple(senses)}: give one of {", ".join(SENSES)} for each constraint')
  if form == 'log' and '==' in senses:
    raise InputError("constraints: an equality needs multipliers of either sign, and form 'log' has none below 0: choose 'squashed' or 'unsquashed'")


def squash(mu: Float[Array, '*C'], kind: str) -> Float[Array, '*C']:
  """g(mu): 'sigmoid' in (0, 1), 'tanh' in (-1, 1), 'none' as it is, 'exp' above 0.

  Raises:
    InputError: another kind.

  Reference: Moskovitz et al. (2023), its code for the first two; 'exp' keeps the logarithm of a multiplier (safe RLHF; Dai et al. 2023).
  """
  if kind not in KINDS:
    raise InputError(f"constraints: squash '{kind}': choose one of {', '.join(KINDS)}")
  return {'sigmoid': jax.nn.sigmoid, 'tanh': jnp.tanh, 'none': lambda x: x, 'exp': jnp.exp}[kind](mu)


def weights(mu: Float[Array, 'C'], senses: Sequence[str], form: str) -> Float[Array, 'C']:
  """w_i = g(mu_i): 'squashed' is a sigmoid, and tanh for an equality; 'unsquashed' is mu itself; 'log' is exp(mu).

  Those of inequalities are not negative: that of 'unsquashed' because `multiplier_optimizer` keeps mu from 0 up.
  """
  check(senses, form)
  if form == 'squashed':
    return jnp.where(_equalities(senses), squash(mu, 'tanh'), squash(mu, 'sigmoid'))
  return squash(mu, 'exp' if form == 'log' else 'none')


def init_multipliers(key: PRNGKeyArray, senses: Sequence[str], form: str) -> Float[Array, 'C']:
  """Multipliers before the first step.

  Returns:
    'squashed': one draw of N(0, 0.01^2) for all constraints, so weights start at 0.5, and those of equalities at 0 (the pure objective);
    'unsquashed': 0.5; 'log': 0, which is lambda = 1 [recalled].

  Raises:
    InputError: see `check`.

  Reference: Moskovitz et al. (2023), code; Dai et al., Safe RLHF (2023) for the last.
  """
  check(senses, form)
  start = 0.01 * jax.random.normal(key) if form == 'squashed' else {'unsquashed': 0.5, 'log': 0.0}[form]
  return jnp.full((len(senses),), start, jnp.float32)


def bounds(senses: Sequence[str], form: str, cap: float | None = None) -> tuple[Float[Array, 'C'], Float[Array, 'C']]:
  """Smallest and largest mu; a multiplier that is at one has a threshold out of reach, or nothing to do.

  Args:
    senses: of the constraints.
    form: of the multipliers.
    cap: the largest; None for that of `CAPS`. Equalities have -cap as their smallest.
  """
  check(senses, form)
  low, high = CAPS[form]
  high = high if cap is None else cap
  lowest = jnp.where(_equalities(senses), -high, -high if form == 'squashed' else low)
  return lowest.astype(jnp.float32), jnp.full((len(senses),), high, jnp.float32)


def multiplier_optimizer(
  senses: Sequence[str], form: str, *, learning_rate: optax.ScalarOrSchedule = 0.1, momentum: float = 0.1, clip: float = 0.5, cap: float | None = None
) -> optax.GradientTransformation:
  """Gradient descent for the part `multipliers`: clipped by the norm over all constraints, with a little momentum, kept within `bounds`.

  Not Adam, which moves a lone scalar by the learning rate however small the violation.

  Args:
    senses: of the constraints.
    form: of the multipliers.
    learning_rate: well above the policy's.
    momentum: low, for descent and ascent at once swing the more the more momentum they have.
    clip: largest norm of the gradient over all constraints.
    cap: see `bounds`.

  Reference: Moskovitz et al. (2023), configs of its code (0.1, 0.1, 0.5; the code's default learning rate is 0.01). The cap is ours.
  """
  low, high = bounds(senses, form, cap)

  def keep(updates: Any, state: optax.EmptyState, params: Any) -> tuple[Any, optax.EmptyState]:
    return jax.tree.map(lambda u, p: jnp.clip(p + u, low, high) - p, updates, params), state

  kept = optax.GradientTransformation(lambda params: optax.EmptyState(), keep)
  return optax.chain(optax.clip_by_global_norm(clip), optax.sgd(learning_rate, momentum=momentum), kept)


def normalize_signals(advantages: Float[Array, 'R T C'], mask: Float[Array, 'R T']) -> Float[Array, 'R T C']:
  """Each column to mean 0 and standard deviation 1 over the tokens that count: (A - mean) / (std + 1e-8).

  A weight then tells how many standard deviations of one signal are worth one of another, whatever the scale of its reward. Call it on a whole
  minibatch, before it is cut into micro-batches; what `mix` does after is linear, so cutting changes nothing.

  Args:
    advantages: of each signal apart.
    mask: 1 where a token counts.

  Returns:
    0 where the mask is 0, and all over a column that is constant, which has nothing to say.

  Reference: Moskovitz et al. (2023), code.
  """
  valid = (mask > 0)[..., None]
  count = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)
  over = lambda values: jnp.sum(jnp.where(valid, values, 0.0), (0, 1), keepdims=True) / count
  centred = advantages - over(advantages)
  std = jnp.sqrt(over(centred**2))
  # Rounding in the mean leaves a constant column a spread of some 1e-8, which 1e-8 would blow up to 1.
  lowest = jnp.min(jnp.where(valid, advantages, jnp.inf), (0, 1), keepdims=True)
  highest = jnp.max(jnp.where(valid, advantages, -jnp.inf), (0, 1), keepdims=True)
  return jnp.where(valid & (highest > lowest), centred / (std + 1e-8), 0.0)


def mix(advantages: Float[Array, '*B K'], mu: Float[Array, 'C'], senses: Sequence[str], form: str) -> Float[Array, '*B']:
  """One advantage of many, A_0 the objective's; A_i with its sign turned for '<='. No gradient passes to mu.

  'squashed': (C - sum_i w_i) A_0 + sum_i w_i A_i, weights that sum to C: for one inequality a convex combination. A negative weight of an
  equality makes a reward be minimised and raises that of the objective, up to 2 C, which changes the size of a step.
  'unsquashed': A_0 + sum_i mu_i A_i.
  'log': (A_0 + sum_i lambda_i A_i) / (1 + sum_i lambda_i), so that a large lambda makes no larger step.

  Args:
    advantages: column 0 the objective's, 1 to C the constraints'; normalised, or as they are.
    mu: multipliers.
    senses: of the constraints.
    form: of the multipliers.

  Reference: Moskovitz et al. (2023), code; its unsquashed branch drops the first multiplier, which is a slip. Safe RLHF for the last.
  """
  check(senses, form)
  w = jax.lax.stop_gradient(weights(mu, senses, form))
  objective, constrained = advantages[..., 0], jnp.sum(w * _signs(senses) * advantages[..., 1:], -1)
  if form == 'squashed':
    return (len(senses) - jnp.sum(w)) * objective + constrained
  if form == 'log':
    return (objective + constrained) / (1 + jnp.sum(w))
  return objective + constrained


def total_returns(signals: Float[Array, '*B C'], lengths: Float[Array, '*B'], weighting: str = 'episode') -> tuple[Float[Array, 'C'], Float[Array, 'C']]:
  """Sums and counts of J_i, the mean undiscounted return of each signal over the minibatch's episodes.

  Args:
    signals: return of each response by each signal; NaN where it does not apply, which does not count.
    lengths: tokens that count of each response; 0 where it is absent or left out.
    weighting: 'episode' counts every response once; 'token' as often as it has tokens, which is what a mean of the reward to go over
      tokens comes to where a reward is at the last token, and favours long responses: for parity with the released code.

  Raises:
    InputError: another weighting.

  Reference: Moskovitz et al. (2023), code (`ep_constraint_reward_togo`), for 'token'.
  """
  if weighting not in WEIGHTINGS:
    raise InputError(f"constraints: weighting '{weighting}': choose one of {', '.join(WEIGHTINGS)}")
  each = lengths if weighting == 'token' else (lengths > 0).astype(jnp.float32)
  counts = jnp.where(jnp.isnan(signals), 0.0, each[..., None])
  axes = tuple(range(lengths.ndim))
  return jnp.sum(counts * jnp.nan_to_num(signals), axes), jnp.sum(counts, axes)


def multiplier_loss(
  mu: Float[Array, 'C'], returns: Float[Array, 'C'], counts: Float[Array, 'C'], thresholds: Float[Array, 'C'], senses: Sequence[str], form: str
) -> Float[Array, 'C']:
  """g(mu_i) * (J_i - theta_i) of each constraint, times the count of J_i; no gradient but mu's.

  Minimised, mu_i falls while its constraint has slack, rises while it is violated, and stays where J_i = theta_i. That of an equality crosses 0 and
  turns the reward down to its threshold.

  Args:
    mu: multipliers.
    returns: sums of the returns, see `total_returns`.
    counts: their counts.
    thresholds: theta.
    senses: of the constraints; the sign is turned for '<='.
    form: of the multipliers.

  Returns:
    A sum for each constraint, to be divided by its count: a term (losses[i], counts[i]) each in the objective of
    `rmjax.training.step`, which makes it exact under micro-batches.

  Reference: Moskovitz et al. (2023), code.
  """
  gap = jax.lax.stop_gradient(_signs(senses) * (returns - counts * thresholds))
  return weights(mu, senses, form) * gap


def multiplier_metrics(
  mu: Float[Array, 'C'],
  returns: Float[Array, 'C'],
  counts: Float[Array, 'C'],
  thresholds: Float[Array, 'C'],
  *,
  names: Sequence[str],
  senses: Sequence[str],
  form: str,
  cap: float | None = None,
) -> tuple[dict[str, Array], dict[str, Array]]:
  """(sums, counts) of what one watches a constraint by: `constraints/<name>/<figure>`.

  `multiplier` (mu), `weight`, `return` (J), `gap` (J - theta), `violation` (what the mean return lacks, signed; for an equality its distance),
  and `capped`: 1 while mu is at its upper bound, or at either one of an equality. A `capped` that stays 1 says that the threshold is out of
  reach; the multiplier is held, and the run goes on.
  """
  low, high = bounds(senses, form, cap)
  equal = _equalities(senses)
  capped = (mu >= high - TOUCH) | equal & (mu <= low + TOUCH)
  one = jnp.ones(())
  w, gap = weights(mu, senses, form), returns - counts * thresholds
  short = jnp.where(equal, jnp.abs(gap), -_signs(senses) * gap)
  sums, totals = {}, {}
  for i, name in enumerate(names):
    figures = dict(
      multiplier=(mu[i], one),
      weight=(w[i], one),
      capped=(capped[i].astype(jnp.float32), one),
      gap=(gap[i], counts[i]),
      violation=(short[i], counts[i]),
    )
    figures['return'] = returns[i], counts[i]
    for figure, (total, count) in figures.items():
      sums[f'constraints/{name}/{figure}'], totals[f'constraints/{name}/{figure}'] = total, count
  return sums, totals


def satisfaction_reward(signals: Float[Array, '*B C'], thresholds: Float[Array, 'C']) -> Float[Array, '*B']:
  """PPO-SAT: -sum_i (r_i - theta_i)^2, a fixed reward that is best where every signal of a response is at its threshold.

  Reference: Moskovitz et al. (2023), code (`IntentAccuracyTargets`).
  """
  return -jnp.sum((signals - thresholds) ** 2, -1)


def _signs(senses: Sequence[str]) -> Float[Array, 'C']:
  return jnp.array([-1.0 if sense == '<=' else 1.0 for sense in senses])


def _equalities(senses: Sequence[str]) -> Bool[Array, 'C']:
  return jnp.array([sense == '==' for sense in senses])
