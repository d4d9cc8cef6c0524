"""Parameters of reward models: fresh ones, and those of a trained run or a Hugging Face directory."""

from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rmjax import trees
from rmjax.backbones import pretrained
from rmjax.backbones.decoder import DecoderConfig
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.models import build, RewardModel
from rmjax.training.checkpoints import read_meta, restore_params
from rmjax.training.mesh import one_device_mesh, shardings, use_mesh


class Saved(NamedTuple):
  """A trained reward model, and how its text was prepared."""

  model: RewardModel
  params: Any
  tokenizer: Tokenizer
  data: dict[str, Any]  # arguments of `Tokenizer.encode_record`


def choose_decoder(path: str, decoder: Mapping[str, Any], *, tokenizer: Tokenizer, max_length: int) -> DecoderConfig:
  """Architecture to train.

  Args:
    path: Hugging Face directory whose architecture to take; '' takes `decoder`.
    decoder: fields of `DecoderConfig`; the vocabulary is the tokenizer's.
    tokenizer: what the text is tokenised by.
    max_length: longest path in tokens.

  Raises:
    InputError: the tokenizer has more tokens than the embedding, paths are longer than the network's positions, or a field is unknown.
  """
  try:
    config = pretrained.read_config(path) if path else DecoderConfig(**{'vocab_size': tokenizer.vocab_size, **decoder})
  except TypeError as e:
    raise InputError(f'config.model.decoder: {e}') from e
  if tokenizer.vocab_size > config.vocab_size:
    mend = f'set config.data.tokenizer to the one that {path} was trained with' if path else 'leave config.model.decoder.vocab_size out'
    raise InputError(f'the tokenizer has {tokenizer.vocab_size} tokens and the embedding {config.vocab_size}: {mend}')
  if max_length > config.max_positions:
    raise InputError(f'config.data.max_length = {max_length}, and the network has {config.max_positions} positions: lower it')
  return config


def resolve_head(head: Mapping[str, Any], tokenizer: Tokenizer, suffix: str) -> dict[str, Any]:
  """A config's `model.head` with the texts of its `tokens`, where it has some, as the `token_ids` that the head wants.

  Args:
    head: dict(name, **fields).
    tokenizer: what the text is tokenised by.
    suffix: text after each response, which the tokens follow.

  Raises:
    InputError: a text is not one token there, or both are given.
  """
  head = dict(head)
  if 'tokens' in head:
    if 'token_ids' in head:
      raise InputError('model.head has both tokens and token_ids: give one of them')
    head['token_ids'] = tokenizer.next_token_ids(head.pop('tokens'), suffix)
  return head


def init_params(model: RewardModel, path: str, mesh: Mesh, key: jax.Array) -> Any:
  """Parameters to start from, each laid out on the mesh as it is made.

  Args:
    model: the model.
    path: Hugging Face directory the backbone is read from, and the head where both have a scalar one; '' draws everything.
    mesh: where parameters go.
    key: PRNG key; an array of keys gives a stack of parameters, one for each.
  """
  abstract = abstract_params(model, mesh)
  found = _read(path, abstract) if path else {}
  # Only what was not found is drawn: the rest of `init` is dead code, and memory holds the parameters once.
  draw = lambda key: _without(nn.unbox(model.init(key, _example()))['params'], found)
  layout = jax.tree.map(lambda x: x.sharding, _without(abstract, found))
  if key.ndim:  # seeds side by side, on one device
    return _merge(jax.jit(jax.vmap(draw))(key), jax.tree.map(lambda x: jnp.broadcast_to(x, (*key.shape, *x.shape)), found))
  return _merge(jax.jit(draw, out_shardings=layout)(key), found)


def load_reward_model(directory: Path | str, *, best: bool = False, mesh: Mesh | None = None) -> Saved:
  """Loads a trained reward model.

  Args:
    directory: the --workdir of a training run, or a Hugging Face directory of a `...ForSequenceClassification` model with one label.
    best: the checkpoint that was best by the run's metric, instead of the newest.
    mesh: where parameters go; one device if None.

  Raises:
    InputError: the directory is neither, or is broken.
  """
  directory, mesh = Path(directory), mesh or one_device_mesh()
  if not directory.is_dir():
    raise InputError(f'{directory} does not exist: give the --workdir of a training run or a Hugging Face directory')
  if (directory / 'checkpoints').is_dir():
    meta = read_meta(directory)
    settings, text = (meta['config'][name] for name in ('model', 'data'))
    data = {name: text[name] for name in ('max_length', 'too_long', 'text_prompts')} | {'suffix': text.get('suffix', '')}  # older runs have none
    tokenizer = Tokenizer.load(directory / 'tokenizer')
    settings = {**settings, 'head': resolve_head(settings['head'], tokenizer, data['suffix'])}
    model = build(DecoderConfig(**meta['decoder']), **{name: settings[name] for name in ('dtype', 'remat', 'head', 'lora')})
    params = restore_params(directory, {'reward': abstract_params(model, mesh)}, best=best)['reward']
    return Saved(model, params, tokenizer, data)
  config = pretrained.read_config(directory)
  if pretrained.load_score(directory) is None:
    raise InputError(f'{directory} has no reward head (score.weight): train one with --config.model.path={directory}')
  model = build(config, dtype='float32', remat='none', head=dict(name='rmjax.heads.scalar:ScalarHead'), lora=dict(rank=0))
  params = _read(directory, abstract_params(model, mesh))
  text = json.loads((directory / 'config.json').read_text()).get('rmjax', {})  # our own exports say how their text was prepared
  data = dict(max_length=config.max_positions, too_long='truncate', text_prompts='plain', suffix='') | text
  return Saved(model, params, Tokenizer.load(directory), data)


def describe(config: DecoderConfig) -> dict[str, Any]:
  """The architecture as JSON-able fields, for a checkpoint's `meta`."""
  return dataclasses.asdict(config)


def abstract_params(model: RewardModel, mesh: Mesh) -> Any:
  """Shapes, dtypes and shardings of the model's parameters."""
  with use_mesh(mesh):
    boxed = jax.eval_shape(model.init, jax.random.key(0), _example())['params']
    shapes = jax.eval_shape(lambda: nn.unbox(model.init(jax.random.key(0), _example()))['params'])
    return jax.tree.map(lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), shapes, shardings(boxed, mesh))


def _read(path: Path | str, abstract: Any) -> Any:
  """What a Hugging Face directory has of a reward model: the backbone, and the scalar head if there is one on both sides."""
  found = {'backbone': pretrained.load_decoder(path, abstract['backbone'])}
  score, kernel = pretrained.load_score(path), abstract.get('head', {}).get('score', {}).get('kernel')
  if score is not None and score.shape[1] != 1:
    raise InputError(f'{path} has {score.shape[1]} labels: a reward model has one')
  if score is not None and kernel is not None and kernel.shape == score.shape:
    found['head'] = {'score': {'kernel': jax.device_put(score, kernel.sharding)}}
  return found


def _without(tree: Any, found: Any) -> Any:
  """The leaves of a nested dict that `found` lacks."""
  kept = {name: value for name, value in tree.items() if isinstance(value, dict) or name not in found}
  return {name: _without(value, found.get(name, {})) if isinstance(value, dict) else value for name, value in kept.items()}


def _merge(one: Any, two: Any) -> Any:
  """All leaves of two nested dicts that share none."""
  if not isinstance(one, dict):
    return one
  return {name: _merge(one[name], two.get(name, {})) if name in one else two[name] for name in one | two}


def _example() -> trees.Trees:
  return trees.pack([[trees.branch([0], [[0], [0]])]], length=8, slots=1, responses=2)
