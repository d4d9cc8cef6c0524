"""What a config describes, built: data, model, objective, optimisers and step, for any program that trains reward models."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections

from rmjax import named
from rmjax.backbones.decoder import Decoder, DecoderConfig
from rmjax.backbones.lora import FROZEN
from rmjax.data.mixture import Mixture
from rmjax.data.ordering import Orders, ShuffledResponses
from rmjax.data.pipeline import Encode, Source
from rmjax.data.quality import compatible
from rmjax.data.records import Record
from rmjax.data.sources import open_source, split_spec
from rmjax.data.tokenizer import Tokenizer
from rmjax.data.unpaired import Unpaired
from rmjax.errors import InputError
from rmjax.evaluation.reference import add_reference
from rmjax.models import build, RewardModel
from rmjax.training import optimizers
from rmjax.training.mesh import check_fits, make_mesh
from rmjax.training.reward import init_network, reward_objective
from rmjax.training.saved import abstract_params, choose_decoder, init_params, load_backbone, resolve_head, tokenizer_directory
from rmjax.training.step import init_state, make_step, Objective, TrainState


class Setup(NamedTuple):
  """All of a run but its loop.

  Attributes:
    train_source: records to train on.
    eval_source: records to evaluate on.
    tokenizer: of both.
    encode: record -> tree that fits a row, or why it is refused.
    encode_all: the same for scoring: any size, and every comparison kept.
    shape: R, T, S, N of a global batch.
    mesh: where everything goes.
    decoder: architecture of the backbone.
    model: backbone and head.
    objective: of all parts.
    schedule: step -> learning rate of the part `reward`.
    layout: part -> shapes, dtypes and shardings of its parameters; parts that are not named are small, and whole on every device.
    init: key -> state before the first step; an array of keys gives a stack of states.
    step: (state, batch) -> (state, metrics), to be jitted.
  """

  train_source: Source
  eval_source: Source
  tokenizer: Tokenizer
  encode: Encode
  encode_all: Encode
  shape: dict[str, int]
  mesh: Mesh
  decoder: DecoderConfig
  model: RewardModel
  objective: Objective
  schedule: Callable[[int], Any]
  layout: dict[str, Any]
  init: Callable[[jax.Array], TrainState]
  step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]


def setup(config: ml_collections.ConfigDict, *, mesh: Mesh | None = None) -> Setup:
  """Builds what the config describes; nothing is trained or written.

  Args:
    config: of a program that trains reward models.
    mesh: instead of the config's.

  Raises:
    InputError: something in the config, the data or the checkpoint to start from cannot be used; the message names it.
  """
  train_source, eval_source, tokenizer = open_data(config)
  text = {name: config.data[name] for name in ('max_length', 'too_long', 'text_prompts', 'suffix', 'layout', 'separator')}
  encode_all = functools.partial(tokenizer.encode_record, **text, bad_rows=config.data.bad_rows)
  encode = functools.partial(encode_all, max_size=config.train.length)
  if config.data.get('unpaired', False):
    train_source, eval_source = Unpaired(train_source), Unpaired(eval_source)
  if config.data.layout == 'chain':
    train_source = ShuffledResponses(train_source)
  if config.data.orders != 1:
    eval_source = Orders(eval_source, config.data.orders)
  if config.data.levels:
    encode = functools.partial(_encode_compatible, encode, levels=config.data.levels)
  mesh = mesh or make_mesh(**config.mesh)
  settings = config.model.to_dict()
  path = settings.pop('path')
  decoder = choose_decoder(path, settings.pop('decoder'), tokenizer=tokenizer, max_length=config.data.max_length)
  check_fits(mesh, rows=config.train.rows, accumulate=config.train.accumulate, length=config.train.length, decoder=decoder)
  model = build(decoder, **{**settings, 'head': resolve_head(settings['head'], tokenizer, config.data.suffix)})

  shape = dict(rows=config.train.rows, length=config.train.length, slots=config.train.slots, responses=config.train.responses)
  if 'ref_log_probs' in getattr(model.head, 'reads_labels', ()):
    if not path:
      raise InputError("config.model.head.reference = 'cached' and config.model.path is empty: a reference is a trained model; give its directory")
    plain = Decoder(decoder, dtype=jnp.dtype(config.model.dtype))
    reference = load_backbone(path, abstract_params(RewardModel(plain, model.head), mesh)['backbone'])
    train_source, eval_source = (add_reference(source, plain, reference, encode, mesh=mesh, **shape) for source in (train_source, eval_source))
    encode_all = encode  # a response that is cut elsewhere has another log-probability

  options = config.optimizer.to_dict()
  if config.model.lora.rank:  # adapters and head train alone
    options['freeze'] = '|'.join(filter(None, (FROZEN, options['freeze'])))
  if model.reference is not None:
    options['freeze'] = '|'.join(filter(None, ('^reference/', options['freeze'])))
  losses, parts = config.losses.to_dict(), config.parts.to_dict()
  if config.train.accumulate > 1 and (whole := [term for term, loss in losses.items() if loss['weight'] and loss['per'] == 'batch']):
    raise InputError(f'losses.{whole[0]} is of a whole batch and train.accumulate = {config.train.accumulate} cuts it up: set it to 1')
  networks = {part: named.build(f'parts.{part}.network', 'rmjax.heads.length:LengthBiasNet', **spec['network']) for part, spec in parts.items()}
  objective = reward_objective(model, losses, freeze=options['freeze'], networks=networks)
  shapes = {part: jax.eval_shape(functools.partial(init_network, network), jax.random.key(0)) for part, network in networks.items()}
  built = {part: optimizers.from_config(shapes[part], spec['optimizer'], steps=config.train.steps) for part, spec in parts.items()}
  layout = {'reward': abstract_params(model, mesh)}
  built['reward'] = optimizers.from_config(layout['reward'], options, steps=config.train.steps)
  by_part = {part: optimizer for part, (optimizer, _) in built.items()}

  def init(key: jax.Array) -> TrainState:
    over_keys = jax.vmap if key.ndim else lambda f: f
    params = {'reward': init_params(model, path, mesh, key)}
    for number, (part, network) in enumerate(networks.items()):
      params[part] = over_keys(lambda key, network=network, number=number: init_network(network, jax.random.fold_in(key, number)))(key)
    return over_keys(lambda params, key: init_state(params, by_part, key))(params, key)

  moves = {}
  if config.train.moves.name:
    moves['moves'] = named.partial('train.moves', 'rmjax.training.phases:warmup_fit_alternate', **config.train.moves)
  return Setup(
    train_source=train_source,
    eval_source=eval_source,
    tokenizer=tokenizer,
    encode=encode,
    encode_all=encode_all,
    shape=shape,
    mesh=mesh,
    decoder=decoder,
    model=model,
    objective=objective,
    schedule=built['reward'][1],
    layout=layout,
    init=init,
    step=make_step(objective, by_part, accumulate=config.train.accumulate, **moves),
  )


def _encode_compatible(encode: Encode, record: Record, *, levels: int) -> Any:
  return encode(compatible(record, levels))


def open_data(config: ml_collections.ConfigDict) -> tuple[Source, Source, Tokenizer]:
  """Training records, evaluation records and the tokenizer: from files, or from the config's world where it names none.

  Raises:
    InputError: neither is given, or one cannot be read.
  """
  if config.data.train and config.data.eval:
    columns = dict(pair.split('=', 1) for pair in config.data.columns.split(',') if '=' in pair)
    read = functools.partial(open_source, columns=columns, bad_rows=config.data.bad_rows)
    sources = [_mix(config.data.train, config.data.mixture, read) if config.data.mixture else read(config.data.train), read(config.data.eval)]
    path = config.data.tokenizer or (config.model.path and tokenizer_directory(config.model.path))
    if not path:
      raise InputError('config.data.tokenizer is empty: give a directory with a tokenizer.json, or a config.model.path that has one')
  elif config.world.name:
    sources = open_world(config)
    path = config.data.tokenizer or sources[0].tokenizer_path
  else:
    missing = 'train' if not config.data.train else 'eval'
    raise InputError(f'config.data.{missing} is empty: give --config.data.{missing}=FILE (JSON Lines, Parquet or tfds:NAME)')
  return *sources, Tokenizer.load(path)


def _mix(spec: str, weights: str, read: Callable[[str], Source]) -> Mixture:
  try:
    numbers = [float(weight) for weight in weights.split(',')]
  except ValueError:
    raise InputError(f"config.data.mixture = '{weights}': give numbers, separated by commas") from None
  return Mixture([read(part) for part in split_spec(spec)], numbers)


def open_world(config: ml_collections.ConfigDict) -> list[Source]:
  """Training and evaluation records of the config's world.

  Raises:
    InputError: there is no such world, or a setting that it refuses.
  """
  world = config.world.to_dict()
  make = named.resolve('world', world.pop('name'), 'rmjax.worlds.preferences:Preferences')
  sizes = {split: world.pop(f'{split}_size') for split in ('train', 'eval')}
  changes = {'train': {}, 'eval': world.pop('eval', {})}
  return [make(split=split, seed=config.seed, size=size, **{**world, **changes[split]}) for split, size in sizes.items()]
