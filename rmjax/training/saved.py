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
from rmjax.backbones.decoder import Decoder, DecoderConfig
from rmjax.backbones.lora import add_lora, merge_lora
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.models import build, RewardModel
from rmjax.policy.models import LanguageModel
from rmjax.training.checkpoints import check_same_tree, read_meta, restore_params
from rmjax.training.mesh import one_device_mesh, shardings


class Saved(NamedTuple):
  """A trained reward model, and how its text was prepared."""

  model: RewardModel
  params: Any
  tokenizer: Tokenizer
  data: dict[str, Any]  # arguments of `Tokenizer.encode_record`


def choose_decoder(path: str, decoder: Mapping[str, Any], *, tokenizer: Tokenizer, max_length: int) -> DecoderConfig:
  """Architecture to train.

  Args:
    path: Hugging Face directory, or --workdir of a run, whose architecture to take; '' takes `decoder`.
    decoder: fields of `DecoderConfig`; the vocabulary is the tokenizer's.
    tokenizer: what the text is tokenised by.
    max_length: longest path in tokens.

  Raises:
    InputError: the tokenizer has more tokens than the embedding, paths are longer than the network's positions, or a field is unknown.
  """
  try:
    config = read_config(path) if path else DecoderConfig(**{'vocab_size': tokenizer.vocab_size, **decoder})
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


def init_params(model: nn.Module, path: str, mesh: Mesh, key: jax.Array) -> Any:
  """Parameters to start from, each laid out on the mesh as it is made.

  Args:
    model: the model.
    path: Hugging Face directory the backbone is read from, and the head where both have a scalar one; or the --workdir of a run, whose newest
      backbone is read; '' draws everything.
    mesh: where parameters go.
    key: PRNG key; an array of keys gives a stack of parameters, one for each.

  Returns:
    Parameters; those of `reference`, where the model has one, are a copy of `backbone`.
  """
  abstract = abstract_params(model, mesh)
  reference = abstract.pop('reference', None)
  found = _read(path, abstract) if path else {}
  # Only what was not found is drawn: the rest of `init` is dead code, and memory holds the parameters once.
  draw = lambda key: _without({name: x for name, x in nn.unbox(model.init(key, _example()))['params'].items() if name in abstract}, found)
  layout = jax.tree.map(lambda x: x.sharding, _without(abstract, found))
  if key.ndim:  # seeds side by side, on one device
    params = _merge(jax.jit(jax.vmap(draw))(key), jax.tree.map(lambda x: jnp.broadcast_to(x, (*key.shape, *x.shape)), found))
  else:
    params = _merge(jax.jit(draw, out_shardings=layout)(key), found)
  return params if reference is None else {**params, 'reference': jax.tree.map(jnp.copy, params['backbone'])}


def load_reward_model(directory: Path | str, *, best: bool = False, mesh: Mesh | None = None, head: Mapping[str, Any] | None = None) -> Saved:
  """Loads a trained reward model.

  Args:
    directory: the --workdir of a training run, or a Hugging Face directory of a `...ForSequenceClassification` model with one label.
    best: the checkpoint that was best by the run's metric, instead of the newest.
    mesh: where parameters go; one device if None.
    head: dict(name, **fields) of a head without parameters to read any language model by, a Hugging Face directory or the newest of a run, instead
      of the directory's own: `rmjax.rewards.endogenous:EndogenousHead`, or `ImplicitRewardHead` without a reference.

  Raises:
    InputError: the directory is neither, or is broken, or `head` has parameters.
  """
  directory, mesh = Path(directory), mesh or one_device_mesh()
  if not directory.is_dir():
    raise InputError(f'{directory} does not exist: give the --workdir of a training run or a Hugging Face directory')
  if head:
    return _language_model(directory, mesh, head)
  if is_policy(directory):
    raise InputError(f'{directory} is a policy, which was optimized against rewards and is none itself: give the --workdir of a reward model')
  if _is_run(directory):
    settings, text = (read_meta(directory)['config'][name] for name in ('model', 'data'))
    cached = settings['head'].get('reference') == 'cached'
    if cached and not settings['path']:
      raise InputError(f'{directory} read its reference from the data: it cannot be found again without config.model.path')
    model, params, tokenizer = _load_run(directory, mesh, best=best, reference='frozen' if cached else '')
    data = {name: text[name] for name in ('max_length', 'too_long', 'text_prompts')}
    data |= {name: text.get(name, usual) for name, usual in (('suffix', ''), ('layout', 'branch'), ('separator', ''))}  # older runs have none
    if cached and model.reference is not None:  # what was read once from the data is computed where other data are scored
      params['reference'] = load_backbone(settings['path'], abstract_params(model, mesh)['backbone'])
    return Saved(model, params, tokenizer, data)
  config = pretrained.read_config(directory)
  if pretrained.load_score(directory) is None:
    raise InputError(
      f'{directory} has no reward head (score.weight): train one with --config.model.path={directory}, or read its own likelihoods as rewards '
      'with --head=rmjax.rewards.endogenous:EndogenousHead'
    )
  model = build(config, dtype='float32', remat='none', head=dict(name='rmjax.heads.scalar:ScalarHead'), lora=dict(rank=0))
  params = _read(directory, abstract_params(model, mesh))
  return Saved(model, params, Tokenizer.load(directory), _text_settings(directory, config))


def _text_settings(directory: Path, config: DecoderConfig) -> dict[str, Any]:
  """How a Hugging Face directory's text is prepared; our own exports say so."""
  text = {} if _is_run(directory) else json.loads((directory / 'config.json').read_text()).get('rmjax', {})
  return dict(max_length=config.max_positions, too_long='truncate', text_prompts='plain', suffix='') | text


def _language_model(directory: Path, mesh: Mesh, head: Mapping[str, Any]) -> Saved:
  """Any language model, read by a head that has no parameters."""
  config, tokenizer = read_config(directory), Tokenizer.load(tokenizer_directory(directory))
  model = build(config, dtype='float32', remat='none', head=resolve_head(head, tokenizer, ''), lora=dict(rank=0))
  abstract = abstract_params(model, mesh)
  if extra := sorted(abstract.keys() - {'backbone'}):
    raise InputError(
      f'head {head["name"]} wants the parameters {", ".join(extra)}, which {directory} lacks: choose one without, rmjax.rewards.endogenous:EndogenousHead'
    )
  return Saved(model, {'backbone': load_backbone(directory, abstract['backbone'])}, tokenizer, _text_settings(directory, config))


def load_backbone(path: Path | str, abstract: Any) -> Any:
  """A decoder's parameters, of a Hugging Face directory or the newest of a run; a run's adapters are merged.

  Args:
    path: the directory.
    abstract: shapes, dtypes and shardings of a `Decoder`'s parameters.

  Raises:
    InputError: the directory is broken, or holds another architecture or no output matrix where `abstract` has one.
  """
  if not _is_run(path):
    return pretrained.load_decoder(path, abstract)
  mesh = jax.tree.leaves(abstract)[0].sharding.mesh
  found = load_policy(path, mesh).params if is_policy(path) else _load_run(Path(path), mesh)[1]['backbone']
  if any('_lora_' in jax.tree_util.keystr(names) for names, _ in jax.tree_util.tree_leaves_with_path(found)):
    found = merge_lora(found, alpha=read_meta(path)['config']['model']['lora']['alpha'])
  wanted = _plain(abstract)
  if 'unembedding' not in wanted:
    found.pop('unembedding', None)
  check_same_tree(found, wanted, f'the run in {path}')
  return found


class Policy(NamedTuple):
  """A trained policy."""

  decoder: Decoder
  params: Any  # of the decoder, adapters merged
  tokenizer: Tokenizer


def is_policy(path: Path | str) -> bool:
  """Whether a directory is the --workdir of a run that optimized a policy against rewards."""
  return _is_run(path) and read_meta(path)['config'].get('program') == 'optimize_policy'


def load_policy(directory: Path | str, mesh: Mesh, *, best: bool = False) -> Policy:
  """Loads the policy of such a run.

  Raises:
    InputError: its checkpoint is broken.
  """
  meta = read_meta(directory)
  settings = meta['config']['model']
  decoder = Decoder(DecoderConfig(**meta['decoder']), dtype=jnp.dtype(settings['dtype']), remat=settings['remat'])
  lora = settings['lora']
  model = LanguageModel(add_lora(decoder, **lora) if lora['rank'] else decoder)
  params = restore_params(directory, {'policy': abstract_params(model, mesh)}, best=best)['policy']['backbone']
  params = merge_lora(params, alpha=lora['alpha']) if lora['rank'] else params
  return Policy(decoder, params, Tokenizer.load(Path(directory) / 'tokenizer'))


def read_config(path: Path | str) -> DecoderConfig:
  """Architecture of a Hugging Face directory or a run."""
  return DecoderConfig(**read_meta(path)['decoder']) if _is_run(path) else pretrained.read_config(path)


def tokenizer_directory(path: Path | str) -> Path:
  """Where a Hugging Face directory or a run has its tokenizer."""
  return Path(path) / 'tokenizer' if _is_run(path) else Path(path)


def describe(config: DecoderConfig) -> dict[str, Any]:
  """The architecture as JSON-able fields, for a checkpoint's `meta`."""
  return dataclasses.asdict(config)


def abstract_params(model: nn.Module, mesh: Mesh) -> Any:
  """Shapes, dtypes and shardings of the model's parameters."""
  boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), _example()))['params']
  shapes = jax.eval_shape(lambda: nn.unbox(model.init(jax.random.key(0), _example()))['params'])
  return jax.tree.map(lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), shapes, shardings(boxed, mesh))


def _is_run(path: Path | str) -> bool:
  return (Path(path) / 'checkpoints').is_dir()


def _load_run(directory: Path, mesh: Mesh, *, best: bool = False, reference: str = '') -> tuple[RewardModel, Any, Tokenizer]:
  """A run's model, what its checkpoint holds of the parameters, and its tokenizer; `reference` replaces the head's."""
  meta = read_meta(directory)
  settings = meta['config']['model']
  tokenizer = Tokenizer.load(directory / 'tokenizer')
  head = resolve_head(settings['head'], tokenizer, meta['config']['data'].get('suffix', ''))
  make = lambda head: build(DecoderConfig(**meta['decoder']), head=head, **{name: settings[name] for name in ('dtype', 'remat', 'lora')})
  params = restore_params(directory, {'reward': abstract_params(make(head), mesh)}, best=best)['reward']
  return make({**head, 'reference': reference} if reference else head), params, tokenizer


def _plain(abstract: Any) -> Any:
  """Parameters without adapters."""
  return {name: _plain(x) if isinstance(x, dict) else x for name, x in abstract.items() if not name.endswith(('_lora_a', '_lora_b'))}


def _read(path: Path | str, abstract: Any) -> Any:
  """What a directory has of a reward model: the backbone, and, of Hugging Face's, the scalar head if there is one on both sides."""
  found = {'backbone': load_backbone(path, abstract['backbone'])}
  if _is_run(path):
    return found
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
