"""What a config of policy optimization describes, built: prompts, networks, rewards, sampling and update, for any program that trains policies."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections

from experiments.policy_rewards import build_rewards, on_device, Rewards
from experiments.setup import open_world
from rmjax.backbones.decoder import Decoder, DecoderConfig
from rmjax.backbones.lora import add_lora, FROZEN, merge_lora
from rmjax.data.pipeline import Encode, Source
from rmjax.data.prompts import encode_prompt, Prompts
from rmjax.data.tokenizer import Tokenizer
from rmjax.decoding.continuous import generate_queue
from rmjax.decoding.generate import generate
from rmjax.decoding.sampling import Sampling
from rmjax.decoding.stops import stop_table, token_bytes
from rmjax.errors import InputError
from rmjax.heads.value import ValueHead
from rmjax.policy import constrained, iteration
from rmjax.policy.algorithm import Algorithm, Constraints
from rmjax.policy.iteration import Metrics, Signals, Update
from rmjax.policy.log_probs import token_log_probs
from rmjax.policy.models import Critic, LanguageModel
from rmjax.policy.objective import policy_objective
from rmjax.training import optimizers
from rmjax.training.mesh import check_fits, make_mesh
from rmjax.training.saved import abstract_params, choose_decoder, init_params, tokenizer_directory
from rmjax.training.step import init_state, make_step, TrainState
from rmjax.trees import Trees


class PolicySetup(NamedTuple):
  """All of a run but its loop.

  Attributes:
    train_source: prompts to train on.
    eval_source: prompts to evaluate on.
    tokenizer: the policy's.
    encode: record -> the tree of its prompt.
    shape: R, T, S, N of a batch of prompts.
    mesh: where everything goes.
    decoder: architecture of the policy.
    constraints: what has thresholds.
    rewards: the reward functions.
    schedule: step -> learning rate of the policy.
    layout: part -> shapes, dtypes and shardings of its parameters; parts that are not named are small, and whole on every device.
    init: key -> state before the first iteration; an array of keys gives a stack of states.
    sample: (params, prompts, key) -> rollout.
    score: (params, rollout) -> signals of the reward functions that run on the device.
    measure: (params, rollout, signals) -> metrics of a rollout that nothing is trained on.
    update: (state, rollout, signals) -> (state, metrics).
  """

  train_source: Source
  eval_source: Source
  tokenizer: Tokenizer
  encode: Encode
  shape: dict[str, int]
  mesh: Mesh
  decoder: DecoderConfig
  constraints: Constraints
  rewards: Rewards
  schedule: Callable[[int], Any]
  layout: dict[str, Any]
  init: Callable[[jax.Array], TrainState]
  sample: Callable[[Any, Trees, jax.Array], Trees]
  score: Callable[[Any, Trees], Signals]
  measure: Callable[[Any, Trees, Signals], Metrics]
  update: Update

  def iterate(self, state: TrainState, prompts: Trees) -> tuple[TrainState, Metrics, Trees, Signals]:
    """A whole iteration, pure, where every reward runs on the device: (state, metrics, rollout, signals)."""
    rollout = self.sample(state.params, prompts, iteration.sampling_key(state))
    signals = self.score(state.params, rollout)
    return *self.update(state, rollout, signals), rollout, signals


def setup(config: ml_collections.ConfigDict, *, mesh: Mesh | None = None, rewards: Rewards | None = None) -> PolicySetup:
  """Builds what the config describes; nothing is trained or written.

  Args:
    config: of a program that trains policies.
    mesh: instead of the config's.
    rewards: instead of the config's.

  Raises:
    InputError: something in the config, the data or a checkpoint cannot be used; the message names it.
  """
  algorithm = Algorithm(**config.algorithm)
  options = config.constraints.to_dict()
  thresholds, multipliers = options.pop('thresholds'), options.pop('optimizer')
  constraints = Constraints(**options)
  train_source, eval_source, tokenizer = open_prompts(config)
  encode = functools.partial(
    encode_prompt, tokenizer, max_length=config.data.max_length, text_prompts=config.data.text_prompts, too_long=config.data.too_long
  )  # fmt: skip
  mesh = mesh or make_mesh(**config.mesh)
  settings, new = config.model.to_dict(), config.sampling.max_new_tokens
  decoder = choose_decoder(settings['path'], settings['decoder'], tokenizer=tokenizer, max_length=config.data.max_length + new)
  _check_batches(config, algorithm, mesh, decoder)
  rewards = rewards or build_rewards(config.rewards.to_dict(), tokenizer, mesh)
  _check_constraints(constraints, thresholds, algorithm, rewards, config)

  # Networks
  plain = Decoder(decoder, dtype=jnp.dtype(settings['dtype']), remat=settings['remat'])
  lora = settings['lora']
  policy = LanguageModel(add_lora(plain, **lora) if lora['rank'] else plain)
  critic = Critic(plain, ValueHead(1 + len(constraints.names) * constraints.multipliers)) if algorithm.needs_critic else None
  temperature = config.sampling.temperature or 1.0

  def log_probs_of(params: Any, batch: Trees) -> tuple[jax.Array, jax.Array]:
    return token_log_probs(policy.backbone, params['backbone'], batch, temperature=temperature, chunk=config.train.chunk)

  def reference_of(params: Any, batch: Trees) -> jax.Array:
    """Log-probs of the frozen copy, or of the policy without its adapters."""
    params = merge_lora(params['policy']['backbone'], alpha=0.0) if lora['rank'] else params['reference']['backbone']
    return token_log_probs(plain, params, batch, temperature=temperature, chunk=config.train.chunk)[0]

  values_of = critic and (lambda params, batch: critic.apply({'params': params}, batch))

  # The update
  updates = config.train.steps * algorithm.epochs * algorithm.minibatches
  policy_options = config.optimizer.to_dict()
  if lora['rank']:
    policy_options['freeze'] = '|'.join(filter(None, (FROZEN, policy_options['freeze'])))
  layout = {'policy': abstract_params(policy, mesh)}
  policy_optimizer, schedule = optimizers.from_config(layout['policy'], policy_options, steps=updates)
  by_part = {'policy': policy_optimizer}
  if config.reference == 'frozen' and not lora['rank']:
    layout['reference'] = layout['policy']
  if critic:
    layout['value'] = abstract_params(critic, mesh)
    by_part['value'] = optimizers.from_config(layout['value'], config.critic.optimizer.to_dict(), steps=updates)[0]
  if constraints.multipliers:
    by_part['multipliers'] = constrained.multiplier_optimizer(constraints.senses, constraints.form, cap=constraints.cap or None, **multipliers)
  objective = policy_objective(algorithm, log_probs_of, values_of, constraints=constraints, length=new)
  prepare = iteration.make_prepare(
    algorithm, log_probs_of, values_of, reference_of=reference_of if config.reference == 'frozen' else None, constraints=constraints, length=new
  )  # fmt: skip
  step = make_step(objective, by_part, accumulate=config.train.accumulate)

  def init(key: jax.Array) -> TrainState:
    over_keys = jax.vmap if key.ndim else lambda f: f
    fold = lambda number: over_keys(lambda key: jax.random.fold_in(key, number))(key)
    stack = lambda x: jnp.broadcast_to(x, (*key.shape, *x.shape))
    params = {'policy': init_params(policy, settings['path'], mesh, key)}
    if 'reference' in layout:
      params['reference'] = jax.tree.map(jnp.copy, params['policy'])  # a buffer of its own, since the policy's are given away
    if critic:
      params['value'] = init_params(critic, config.critic.path or settings['path'], mesh, fold(1))
    scalars = dict(kl_coefficient=config.kl_coefficient, weights=list(rewards.weights.values()))
    if thresholds:
      scalars['thresholds'] = list(thresholds)
    params['scalars'] = {name: stack(jnp.array(value, jnp.float32)) for name, value in scalars.items()}
    if constraints.multipliers:
      params['multipliers'] = over_keys(lambda key: constrained.init_multipliers(key, constraints.senses, constraints.form))(fold(2))
    if rewards.params:
      params['rewards'] = jax.tree.map(stack, rewards.params)
    return over_keys(lambda params, key: init_state(params, by_part, key))(params, key)

  # Sampling
  stops = {'stop_tokens': tuple(token for token in (tokenizer.eos_id,) if token >= 0)}
  if config.sampling.stop:
    stops['stop_table'] = stop_table(token_bytes(tokenizer.backend, decoder.vocab_size), tuple(config.sampling.stop))
  drawn = Sampling(**{name: config.sampling[name] for name in ('temperature', 'top_k', 'top_p', 'min_p')})

  draw = functools.partial(generate_queue, slots=config.sampling.slots) if config.sampling.slots else generate
  if config.sampling.cache_dtype:
    if not algorithm.recompute:
      raise InputError('sampling.cache_dtype changes the log-probabilities that are sampled by: set algorithm.recompute, so that the update computes its own')
    draw = functools.partial(draw, cache_dtype=config.sampling.cache_dtype)

  def sample(params: Any, prompts: Trees, key: jax.Array) -> Trees:
    weights = params['policy']['backbone']
    weights = merge_lora(weights, alpha=lora['alpha']) if lora['rank'] else weights
    found = draw(
      plain, weights, prompts.tokens, prompts.prompt_ends[:, 0] + 1, key, responses=config.sampling.responses, max_new_tokens=new, sampling=drawn, **stops
    )  # fmt: skip
    return dataclasses.replace(found, labels={**found.labels, 'index': prompts.labels['index']})

  score = lambda params, rollout: on_device(rewards)(params.get('rewards', {}), rollout)
  return PolicySetup(
    train_source=train_source,
    eval_source=eval_source,
    tokenizer=tokenizer,
    encode=encode,
    shape=dict(rows=config.train.prompts * algorithm.oversample, length=config.data.max_length, slots=1, responses=1),
    mesh=mesh,
    decoder=decoder,
    constraints=constraints,
    rewards=rewards,
    layout=layout,
    schedule=lambda number: schedule(number * algorithm.epochs * algorithm.minibatches),
    init=init,
    sample=sample,
    score=score,
    measure=lambda params, rollout, signals: prepare(params, rollout, signals)[1],
    update=iteration.make_update(algorithm, prepare, step, prompts=config.train.prompts, constraints=constraints),
  )


def open_prompts(config: ml_collections.ConfigDict) -> tuple[Source, Source, Tokenizer]:
  """Prompts to train on, prompts to evaluate on, and the tokenizer: from files, or from the config's world where it names none.

  Raises:
    InputError: neither is given, or one cannot be read.
  """
  if config.data.train:
    columns = dict(pair.split('=', 1) for pair in config.data.columns.split(',') if '=' in pair)
    sources = [Prompts(files, columns=columns, bad_rows=config.data.bad_rows) for files in (config.data.train, config.data.eval or config.data.train)]
    path = config.data.tokenizer or (config.model.path and tokenizer_directory(config.model.path))
    if not path:
      raise InputError('config.data.tokenizer is empty: give a directory with a tokenizer.json, or a config.model.path that has one')
    return *sources, Tokenizer.load(path)
  if not config.world.name:
    raise InputError('config.data.train is empty: give --config.data.train=FILE with a column `prompt` (JSON Lines, Parquet or tfds:NAME)')
  sources = open_world(config)
  return *sources, Tokenizer.load(config.data.tokenizer or sources[0].tokenizer_path)


def _check_batches(config: ml_collections.ConfigDict, algorithm: Algorithm, mesh: Mesh, decoder: DecoderConfig) -> None:
  rows, parts = config.train.prompts, algorithm.minibatches
  if rows % parts:
    raise InputError(f'train.prompts = {rows} cannot be split into algorithm.minibatches = {parts}: change one of them')
  length = config.data.max_length + config.sampling.responses * config.sampling.max_new_tokens
  check_fits(
    mesh, rows=rows // parts, accumulate=config.train.accumulate, length=length, decoder=decoder, name='train.prompts / algorithm.minibatches'
  )  # fmt: skip


def _check_constraints(constraints: Constraints, thresholds: tuple, algorithm: Algorithm, rewards: Rewards, config: ml_collections.ConfigDict) -> None:
  if len(thresholds) != len(constraints.names):
    raise InputError(f'constraints: {len(constraints.names)} names and {len(thresholds)} thresholds: give one threshold for each')
  if unknown := [name for name in constraints.names if name != 'kl' and name not in rewards.weights]:
    raise InputError(f"constraints.names: there is no reward '{unknown[0]}'; there are {', '.join(rewards.weights)}")
  if constraints.multipliers and algorithm.advantages == 'return':
    raise InputError("constraints need an advantage of each signal: set algorithm.advantages to 'gae' or 'group'")
  if config.reference not in ('frozen', 'none'):
    raise InputError(f"reference = '{config.reference}': choose 'frozen' or 'none'")
  if config.reference == 'none' and (algorithm.kl != 'none' or 'kl' in constraints.names):
    raise InputError("reference = 'none' and a KL divergence is wanted: set it to 'frozen', or algorithm.kl to 'none'")
