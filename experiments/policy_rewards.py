"""What a config's `rewards` describes: functions on the device, functions of text, trained reward models."""

from collections.abc import Callable, Mapping, Sequence
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from experiments import inference
from rmjax import named
from rmjax.data.records import Messages, Record
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.models import RewardModel
from rmjax.rewards.ensembles import ensemble
from rmjax.rewards.functions import RewardFunction
from rmjax.training.saved import load_reward_model
from rmjax.trees import Array, Trees

EXAMPLE = 'my_rewards:brevity'


class Rewards(NamedTuple):
  """Reward functions by name.

  Attributes:
    weights: name -> weight in the sum, in the order of all names; 0 for what is only measured.
    on_device: name -> (its parameters, rollout) -> float[R, S, N], NaN where it does not apply.
    params: name -> parameters of those that have some.
    on_text: name -> function of text, called by `rmjax.rewards.functions.call_all`.
  """

  weights: dict[str, float]
  on_device: dict[str, Callable[[Any, Trees], Array]]
  params: dict[str, Any]
  on_text: dict[str, RewardFunction]


def build_rewards(specs: Mapping[str, Mapping[str, Any]], tokenizer: Tokenizer, mesh: Mesh) -> Rewards:
  """Builds the reward functions of a config.

  Args:
    specs: name -> dict(weight, name, **options), `name` the import path of a function of a rollout, `f(batch, **options)` -> [R, S, N], or of
      text, `f(prompts, completions, **columns)`; or dict(weight, checkpoint, best, head, uncertainty, gives), trained reward models whose
      directories are separated by commas: the mean of their rewards (`gives='win_rate'`: see `win_rate`), less `uncertainty` times their standard
      deviation.
    tokenizer: the policy's. A reward model that has the same one reads the rollouts' tokens on the device; another one reads their text.
    mesh: where parameters go.

  Raises:
    InputError: there is no such function or checkpoint, or no reward has a weight.
  """
  rewards = Rewards({}, {}, {}, {})
  for name, spec in specs.items():
    spec = dict(spec)
    rewards.weights[name] = float(spec.pop('weight', 1.0))
    if 'checkpoint' in spec:
      _add_models(rewards, name, tokenizer, mesh, **spec)
      continue
    if 'name' not in spec:
      raise InputError(f"rewards.{name}: give the `name` of a function, such as '{EXAMPLE}', or the `checkpoint` of a reward model")
    function = named.partial(f'rewards.{name}', EXAMPLE, **spec)
    if next(iter(inspect.signature(function).parameters), '') == 'batch':
      rewards.on_device[name] = lambda params, batch, function=function: function(batch)
    else:
      rewards.on_text[name] = function
  if not any(rewards.weights.values()) and not specs:
    raise InputError('config.rewards is empty: give at least one reward function')
  return rewards


def _add_models(
  rewards: Rewards,
  name: str,
  tokenizer: Tokenizer,
  mesh: Mesh,
  *,
  checkpoint: str,
  best: bool = False,
  head: Mapping[str, Any] | None = None,
  uncertainty: float = 0.0,
  gives: str = 'reward',
) -> None:
  directories = [directory for directory in checkpoint.split(',') if directory]
  if not directories:
    raise InputError(f'rewards.{name}.checkpoint is empty: give the --workdir of a reward model')
  if gives not in ('reward', 'win_rate'):
    raise InputError(f"rewards.{name}.gives = '{gives}': choose 'reward' or 'win_rate'")
  saved = [load_reward_model(directory, best=best, mesh=mesh, head=head) for directory in directories]
  own = tokenizer.backend.to_str()
  as_rolled_out = lambda data: not data['suffix'] and data.get('layout', 'branch') == 'branch'
  if all(model.tokenizer.backend.to_str() == own and as_rolled_out(model.data) for model in saved):
    rewards.params[name] = [model.params for model in saved]
    rewards.on_device[name] = model_reward([model.model for model in saved], uncertainty=uncertainty, gives=gives)
    return
  scorers = [inference.load(directory, best=best, bad_rows='lenient', head=head) for directory in directories]

  def on_text(prompts: Sequence[str | Messages], completions: Sequence[str | Messages]) -> list[float | None]:
    records = _groups(prompts, completions)
    each = []
    for scorer in scorers:
      found = scorer.score(records, scorer.encode)
      rows = [x.rewards if gives == 'reward' else np.asarray(win_rate(x.logits, np.isfinite(x.rewards))) for x in found]
      each.append(np.concatenate(rows))
    return [None if np.isnan(value) else float(value) for value in np.asarray(ensemble(np.stack(each), uncertainty=uncertainty))]

  rewards.on_text[name] = on_text


def model_reward(models: Sequence[RewardModel], *, uncertainty: float = 0.0, gives: str = 'reward') -> Callable[[Any, Trees], Array]:
  """(a list of their parameters, rollout) -> rewards [R, S, N] of an ensemble of models; see `build_rewards`."""

  def on_device(params: Any, batch: Trees) -> Array:
    plain = Trees(**{**vars(batch), 'labels': {}})
    each = []
    for model, p in zip(models, params, strict=True):
      scores = model.apply({'params': p}, plain)
      each.append(model.head.reward(scores) if gives == 'reward' else win_rate(model.head.preference_logits(scores), batch.response_ends >= 0))
    return ensemble(jnp.stack(each), uncertainty=uncertainty)

  return on_device


def win_rate(logits: Array, present: Array) -> Array:
  """Mean over a group's responses of P(i preferred to j) - 1/2, the response itself included (it adds 0): SPPO's target, times beta.

  Args:
    logits: [..., N, N], of the preference of i to j.
    present: bool[..., N].

  Reference: Wu et al., Self-Play Preference Optimization (2024), eq. 4.6.
  """
  both = present[..., :, None] & present[..., None, :]
  gains = jnp.where(both, jax.nn.sigmoid(jnp.where(both, logits, 0.0)) - 0.5, 0.0)
  return gains.sum(-1) / jnp.maximum(present.sum(-1), 1)[..., None]


def _groups(prompts: Sequence[str | Messages], completions: Sequence[str | Messages]) -> list[Record]:
  """A record for each run of the same prompt, since some heads compare a response with the others."""
  groups: list[tuple[str | Messages, list[str]]] = []
  for prompt, completion in zip(prompts, completions, strict=True):
    if not groups or groups[-1][0] != prompt:
      groups.append((prompt, []))
    groups[-1][1].append(completion if isinstance(completion, str) else completion[-1]['content'])
  blank = lambda count: (np.zeros((count, count), np.float32), np.full(count, np.nan, np.float32))
  return [Record(prompt, tuple(texts), *blank(len(texts)), where=f'group {number}') for number, (prompt, texts) in enumerate(groups)]


def on_device(rewards: Rewards) -> Callable[[Any, Trees], dict[str, Array]]:
  """(the part `rewards` of the parameters, rollout) -> signals of the functions that run on the device."""
  return lambda params, batch: {name: jax.lax.stop_gradient(f(params.get(name), batch)) for name, f in rewards.on_device.items()}
