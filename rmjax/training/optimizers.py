"""An optax optimiser from a config: schedule, clipping, weight decay where it belongs, frozen parameters."""

import functools
import re
from typing import Any

import jax
import optax

from rmjax import named
from rmjax.errors import InputError


def from_config(params: Any, options: dict[str, Any], *, steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimiser that a config's `optimizer` describes, and its schedule: arguments of `make_schedule` and `make_optimizer` in one dict."""
  names = ('learning_rate', 'schedule', 'warmup', 'final')
  schedule = make_schedule(steps=steps, **{name: options[name] for name in names if name in options})
  return make_optimizer(params, schedule, **{name: value for name, value in options.items() if name not in names}), schedule


def make_schedule(*, learning_rate: float, steps: int, schedule: str = 'cosine', warmup: float = 0.03, final: float = 0.0) -> optax.Schedule:
  """Linear warm-up, then constant, linear or cosine decay.

  Args:
    learning_rate: the peak.
    steps: updates of the whole run.
    schedule: 'constant', 'linear' or 'cosine'.
    warmup: part of the steps, 0 to 1.
    final: learning rate at the end, as a part of the peak.

  Raises:
    InputError: another schedule.
  """
  warmup_steps = round(warmup * steps)
  decay_steps = max(steps - warmup_steps, 1)
  if schedule == 'constant':
    decay = optax.constant_schedule(learning_rate)
  elif schedule == 'linear':
    decay = optax.linear_schedule(learning_rate, final * learning_rate, decay_steps)
  elif schedule == 'cosine':
    decay = optax.cosine_decay_schedule(learning_rate, decay_steps, alpha=final)
  else:
    raise InputError(f"optimizer.schedule = '{schedule}': choose 'constant', 'linear' or 'cosine'")
  if not warmup_steps:
    return decay
  # Step 0 already moves: the ramp ends at the peak after `warmup_steps` updates.
  ramp = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, warmup_steps - 1)
  return optax.join_schedules([ramp, decay], [warmup_steps])


def make_optimizer(
  params: Any,
  schedule: optax.Schedule,
  *,
  name: str = 'optax:adamw',
  options: dict[str, Any] | None = None,
  clip: float = 1.0,
  decay: str = r'(kernel|embedding)$',
  freeze: str = '',
) -> optax.GradientTransformation:
  """Builds the optimiser of one part of the parameters.

  Args:
    params: the parameters or their shapes; paths are matched as 'backbone/layers/attention/query/kernel'.
    schedule: step -> learning rate.
    name: import path of an optax optimiser that takes `weight_decay` and `mask` (adamw, lion, ...).
    options: its further arguments.
    clip: largest global gradient norm; 0 for none.
    decay: regular expression of the paths that weight decay applies to.
    freeze: regular expression of the paths that stay as they are, and cost no optimiser state; '' for none.

  Raises:
    InputError: `freeze` leaves nothing to train, or matches nothing.
  """
  factory = named.resolve('optimizer', name, 'optax:adamw')
  optimizer = factory(schedule, mask=functools.partial(matches, pattern=decay), **(options or {}))
  if clip:
    optimizer = optax.chain(optax.clip_by_global_norm(clip), optimizer)
  if not freeze:
    return optimizer
  frozen = matches(params, freeze)
  if len(set(jax.tree.leaves(frozen))) == 1:
    what = 'nothing to train' if jax.tree.leaves(frozen)[0] else 'nothing frozen'
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    raise InputError(f"optimizer.freeze = '{freeze}' leaves {what}; parameters are {', '.join(names)}")
  labels = jax.tree.map(lambda is_frozen: 'frozen' if is_frozen else 'trained', frozen)
  return optax.partition({'trained': optimizer, 'frozen': optax.set_to_zero()}, labels)


def stop_frozen(params: Any, freeze: str) -> Any:
  """The parameters, with no gradient computed for those that `freeze` matches; '' matches none."""
  if not freeze:
    return params
  return jax.tree.map(lambda x, frozen: jax.lax.stop_gradient(x) if frozen else x, params, matches(params, freeze))


def matches(params: Any, pattern: str) -> Any:
  """Whether the regular expression is found in each leaf's path."""
  return jax.tree_util.tree_map_with_path(lambda path, _: bool(re.search(pattern, path_name(path))), params)


def path_name(path: tuple[Any, ...]) -> str:
  """'a/b/c' of a key path in nested dicts."""
  return '/'.join(str(getattr(key, 'key', key)) for key in path)
