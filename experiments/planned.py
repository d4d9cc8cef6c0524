"""The steps of a config as a pod would compile them: shapes and shardings in place of arrays."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections

from experiments import policy_setup, setup
from experiments.policy_rewards import build_rewards, model_reward, Rewards
from rmjax.backbones.decoder import DecoderConfig
from rmjax.data import pipeline
from rmjax.errors import InputError
from rmjax.models import build
from rmjax.training.mesh import batch_sharding, replicated, use_mesh
from rmjax.training.optimizers import path_name
from rmjax.training.saved import abstract_params
from rmjax.training.step import TrainState


class Program(NamedTuple):
  """One compiled function of a run.

  Attributes:
    name: what it does.
    function: pure.
    args: shapes, dtypes and shardings.
    donated: whether its first argument is given away.
  """

  name: str
  function: Callable[..., Any]
  args: tuple[Any, ...]
  donated: bool = False


class Planned(NamedTuple):
  """All programs of a config.

  Attributes:
    programs: in the order in which a step of the run calls them.
    state: what the run holds between them.
    rows: of a batch.
    length: columns of a row.
    decoder: architecture of what is trained.
  """

  programs: list[Program]
  state: TrainState
  rows: int
  length: int
  decoder: DecoderConfig


def plan(config: ml_collections.ConfigDict, mesh: Mesh) -> Planned:
  """What the config's program would compile on this mesh; nothing is allocated.

  Raises:
    InputError: something in the config does not fit, or the program is another than train_reward and optimize_policy.
  """
  if config.program == 'train_reward':
    return _reward(config, mesh)
  if config.program == 'optimize_policy':
    return _policy(config, mesh)
  raise InputError(f"config.program = '{config.program}': the programs that can be planned are train_reward and optimize_policy")


def _reward(config, mesh):
  run = setup.setup(config, mesh=mesh)
  state = abstract_state(run.init, run.layout, mesh)
  batch = _batch(next(pipeline.eval_batches(run.train_source, run.encode, **run.shape)).trees, mesh)

  def score(params, batch):
    return run.model.head.reward(run.model.apply({'params': params}, batch))

  programs = [Program('train', run.step, (state, batch), donated=True), Program('score', score, (state.params['reward'], batch))]
  return Planned(programs, state, *batch.tokens.shape, run.decoder)


def _policy(config, mesh):
  rewards, layout = _rewards(config, mesh)
  run = policy_setup.setup(config, mesh=mesh, rewards=rewards)
  state = abstract_state(run.init, run.layout, mesh)
  if layout:
    state.params['rewards'] = layout
  prompts = _batch(next(pipeline.eval_batches(run.train_source, run.encode, **run.shape)).trees, mesh)
  with use_mesh(mesh):
    rollout = _batch(jax.eval_shape(run.sample, state.params, prompts, state.key), mesh)
    signals = _batch(jax.eval_shape(run.score, state.params, rollout), mesh)
  of_text = jax.ShapeDtypeStruct(rollout.response_ends.shape, jnp.float32, sharding=batch_sharding(mesh))
  signals = {name: signals.get(name, of_text) for name in run.rewards.weights}
  programs = [Program('sample', run.sample, (state.params, prompts, state.key)), Program('update', run.update, (state, rollout, signals), donated=True)]
  if run.rewards.on_device:
    programs.insert(1, Program('score', run.score, (state.params, rollout)))
  return Planned(programs, state, *rollout.tokens.shape, run.decoder)


def _rewards(config, mesh):
  """The config's reward functions, and the layout of the models among them, of which a plan needs the shapes alone."""
  specs = config.rewards.to_dict()
  if loaded := [name for name, spec in specs.items() if 'checkpoint' in spec]:
    raise InputError(f'rewards.{loaded[0]}.checkpoint: a plan loads nothing; give rewards.{loaded[0]}.decoder, the sizes of its backbone, instead')
  plain = {name: spec for name, spec in specs.items() if 'decoder' not in spec}
  rewards, layout = build_rewards(plain, policy_setup.open_prompts(config)[-1], mesh) if plain else Rewards({}, {}, {}, {}), {}
  for name, spec in specs.items():
    if name in plain:
      continue
    settings = {'dtype': config.model.dtype, 'remat': 'none', 'head': dict(name='rmjax.heads.scalar:ScalarHead'), 'lora': dict(rank=0), **spec}
    rewards.weights[name] = float(settings.pop('weight', 1.0))
    model = build(DecoderConfig(**settings.pop('decoder')), **settings)
    rewards.on_device[name], layout[name] = model_reward([model]), [abstract_params(model, mesh)]
  return rewards, layout


def abstract_state(init: Callable[[jax.Array], TrainState], layout: Mapping[str, Any], mesh: Mesh) -> TrainState:
  """Shapes, dtypes and shardings of a run's state before the first step.

  Args:
    init: the run's.
    layout: the run's; what an optimiser keeps for a parameter lies as that does.
    mesh: where it goes.
  """
  with use_mesh(mesh):
    shapes = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
  params = {part: layout.get(part) or _replicated(x, mesh) for part, x in shapes.params.items()}
  opt_state = {part: _like(x, params[part], mesh) for part, x in shapes.opt_state.items()}
  return TrainState(_replicated(shapes.step, mesh), params, opt_state, _replicated(shapes.key, mesh))


def _like(tree, params, mesh):
  """What an optimiser keeps: a leaf of a parameter's path and shape is laid out as the parameter, others are whole everywhere."""
  known = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}

  def lay_out(path, x):
    names = path_name(path).split('/')
    found = next((known[name] for i in range(len(names)) if (name := '/'.join(names[i:])) in known), None)
    sharding = found.sharding if found is not None and found.shape == x.shape else replicated(mesh)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree_util.tree_map_with_path(lay_out, tree)


def _replicated(tree, mesh):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), tree)


def _batch(tree, mesh):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)), tree)
