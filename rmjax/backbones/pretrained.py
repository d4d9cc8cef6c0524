"""Hugging Face directories in and out: config.json and safetensors, streamed tensor by tensor."""

from collections.abc import Callable, Iterator, Mapping
import functools
import json
import math
from pathlib import Path
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import safe_open, SafetensorError
from safetensors.numpy import save_file

from rmjax.backbones.decoder import DecoderConfig
from rmjax.backbones.hf_config import read_config, to_hf
from rmjax.errors import InputError

__all__ = ['load_decoder', 'load_score', 'read_config', 'save']

_DTYPES = {'float32': np.dtype(np.float32), 'bfloat16': np.dtype(ml_dtypes.bfloat16)}

# Our path under `layers` -> (name in a Hugging Face layer, the same with norms on both sides).
_LAYER_NORMS = {
  'attention_norm': ('input_layernorm', 'input_layernorm'),
  'attention_post_norm': (None, 'post_attention_layernorm'),
  'mlp_norm': ('post_attention_layernorm', 'pre_feedforward_layernorm'),
  'mlp_post_norm': (None, 'post_feedforward_layernorm'),
}
_LAYER_MODULES = {
  'attention/query': 'self_attn.q_proj',
  'attention/key': 'self_attn.k_proj',
  'attention/value': 'self_attn.v_proj',
  'attention/output': 'self_attn.o_proj',
  'attention/query_norm': 'self_attn.q_norm',
  'attention/key_norm': 'self_attn.k_norm',
  'gate': 'mlp.gate_proj',
  'up': 'mlp.up_proj',
  'down': 'mlp.down_proj',
}


def load_decoder(path: Path | str, abstract: Any) -> Any:
  """Reads a decoder's parameters.

  Each leaf is made on its devices and filled layer by layer in place, so that the host never holds more than one tensor beside it.

  Args:
    path: Hugging Face directory, one safetensors file or several with an index; float32, bfloat16 or float16.
    abstract: shapes, dtypes and shardings (or none) of a `Decoder`'s parameters, unboxed.

  Returns:
    Parameters of `abstract`'s names, but for adapters, which no such directory has.

  Raises:
    InputError: a file or tensor is missing, cut short, or of another shape, or a layer has tensors that `abstract` has no place for.
  """
  files = _tensor_files(Path(path))
  sandwich = 'attention_post_norm' in abstract['layers']
  leaves = [(names, leaf, _hf_name(names, sandwich)) for names, leaf in _leaves(abstract) if not names[-1].endswith(('_lora_a', '_lora_b'))]
  layers = range(abstract['layers']['attention_norm']['scale'].shape[0])
  _refuse_strangers(files, {name.format(layer) for _, _, name in leaves for layer in layers})
  one = lambda names, leaf: leaf.shape[1:] if names[0] == 'layers' else leaf.shape  # the shape of a single tensor
  leaves.sort(key=lambda item: -math.prod(one(*item[:2])))  # the largest come while the rest of the target is not yet there
  loaded: dict[str, Any] = {}
  for names, leaf, name in leaves:
    stacked, turned = names[0] == 'layers', names[-1] == 'kernel'  # kernels are [in, out] here and [out, in] there
    shape = one(names, leaf)
    read = functools.partial(_read, files, shape=shape[::-1] if turned else shape)
    place = loaded
    for key in names[:-1]:
      place = place.setdefault(key, {})
    place[names[-1]] = _fill(leaf, (read(name.format(layer)) for layer in layers), turned) if stacked else _put(leaf, read(name), turned)
  return loaded


def load_score(path: Path | str) -> np.ndarray | None:
  """The head float32[H, labels] of a `...ForSequenceClassification` directory, one label for a scalar reward; None where there is none."""
  files = _tensor_files(Path(path))
  if 'score.weight' not in files:
    return None
  return np.ascontiguousarray(_read(files, 'score.weight').astype(np.float32).T)


def save(
  path: Path | str,
  config: DecoderConfig,
  params: Any,
  *,
  score: Any = None,
  dtype: str = 'float32',
  max_shard_bytes: int = 1 << 30,
  extra: Mapping[str, Any] | None = None,
) -> None:
  """Writes a directory that transformers loads: a reward model if there is a score, else a language model.

  Everything is written beside its place and moved there at the end, so that a full disk harms nothing.

  Args:
    path: the directory; made if absent.
    config: the architecture.
    params: a `Decoder`'s parameters, adapters merged.
    score: float32[H, 1], the scalar head.
    dtype: of the tensors, 'float32' or 'bfloat16'.
    max_shard_bytes: a file's most bytes; one tensor may be larger.
    extra: further entries of config.json, such as `pad_token_id`.

  Raises:
    InputError: no Hugging Face architecture has this decoder or head, adapters are not merged, the dtype is another, or a language model
      lacks its output matrix.
    OSError: the files could not be written.
  """
  if dtype not in _DTYPES:
    raise InputError(f"dtype = '{dtype}': choose one of {', '.join(_DTYPES)}")
  if any(names[-1].endswith(('_lora_a', '_lora_b')) for names, _ in _leaves(params)):
    raise InputError('the parameters hold adapters (lora): merge them first')
  if score is not None and score.shape != (config.hidden_size, 1):
    raise InputError(f'score has shape {score.shape}, not {(config.hidden_size, 1)}: only a scalar head can be saved')
  if score is None and not config.tie_embeddings and 'unembedding' not in params:
    raise InputError('a decoder without output matrix is no language model: save it with its reward head')
  name, raw = to_hf(config)
  raw |= dict(architectures=[f'{name}For{"SequenceClassification" if score is not None else "CausalLM"}'], dtype=dtype, torch_dtype=dtype)
  if name == 'Gemma3Text' and score is None:
    raw['architectures'] = ['Gemma3ForCausalLM']
  if score is not None:
    raw |= dict(num_labels=1, id2label={'0': 'LABEL_0'}, label2id={'LABEL_0': 0})
  raw |= extra or {}
  path = Path(path)
  path.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path, prefix='.writing-') as temporary:
    _write_tensors(Path(temporary), _hf_tensors(params, score), _DTYPES[dtype], max_shard_bytes)
    (Path(temporary) / 'config.json').write_text(json.dumps(raw, indent=2) + '\n')
    written = sorted(file.name for file in Path(temporary).iterdir())
    for file in written:
      (Path(temporary) / file).replace(path / file)
    for old in [*path.glob('model*.safetensors'), *path.glob('model.safetensors.index.json')]:
      if old.name not in written:
        old.unlink()


def _write_tensors(directory: Path, tensors: Iterator[tuple[str, Any]], dtype: np.dtype, max_shard_bytes: int) -> None:
  shards: list[list[str]] = []
  shard: dict[str, np.ndarray] = {}
  total = 0

  def flush() -> None:
    try:
      save_file(shard, directory / f'{len(shards)}.safetensors', metadata={'format': 'pt'})
    except SafetensorError as e:
      raise OSError(f'{directory.parent} could not be written: {e}') from e
    shards.append(list(shard))
    shard.clear()

  for name, tensor in tensors:
    tensor = np.ascontiguousarray(np.asarray(tensor).astype(dtype))
    if shard and sum(x.nbytes for x in shard.values()) + tensor.nbytes > max_shard_bytes:
      flush()
    shard[name] = tensor
    total += tensor.nbytes
  flush()
  files = ['model.safetensors'] if len(shards) == 1 else [f'model-{i + 1:05}-of-{len(shards):05}.safetensors' for i in range(len(shards))]
  for i, file in enumerate(files):
    (directory / f'{i}.safetensors').rename(directory / file)
  if len(shards) > 1:
    index = {'metadata': {'total_size': total}, 'weight_map': {name: file for names, file in zip(shards, files, strict=True) for name in names}}
    (directory / 'model.safetensors.index.json').write_text(json.dumps(index, indent=2) + '\n')


def _hf_tensors(params: Any, score: Any) -> Iterator[tuple[str, Any]]:
  sandwich = 'attention_post_norm' in params['layers']
  for names, leaf in _leaves(params):
    turn = (lambda x: x.T) if names[-1] == 'kernel' else (lambda x: x)
    if names[0] == 'layers':
      for layer in range(leaf.shape[0]):
        yield _hf_name(names, sandwich).format(layer), turn(leaf[layer])
    else:
      yield _hf_name(names, sandwich), turn(leaf)
  if score is not None:
    yield 'score.weight', score.T


def _hf_name(names: tuple[str, ...], sandwich: bool) -> str:
  """'model.layers.{}.mlp.up_proj.weight' of ('layers', 'up', 'kernel')."""
  kind = 'bias' if names[-1] == 'bias' else 'weight'
  if names[0] != 'layers':
    return {'embedding': 'model.embed_tokens', 'norm': 'model.norm', 'unembedding': 'lm_head'}[names[0]] + f'.{kind}'
  module = '/'.join(names[1:-1])
  name = _LAYER_NORMS[module][sandwich] if module in _LAYER_NORMS else _LAYER_MODULES[module]
  return f'model.layers.{{}}.{name}.{kind}'


def _fill(leaf: jax.ShapeDtypeStruct, tensors: Iterator[np.ndarray], turned: bool) -> jax.Array:
  """Stacks tensors on the devices, in place."""
  make, write, _ = _placing(leaf.shape, leaf.dtype, leaf.sharding, turned)
  stack = make()
  for layer, tensor in enumerate(tensors):
    stack = write(stack, tensor, layer).block_until_ready()  # or the host would run ahead and hold many tensors
  return stack


def _put(leaf: jax.ShapeDtypeStruct, tensor: np.ndarray, turned: bool) -> jax.Array:
  return _placing(leaf.shape, leaf.dtype, leaf.sharding, turned)[2](tensor).block_until_ready()


@functools.cache
def _placing(shape: tuple[int, ...], dtype: np.dtype, sharding: Any, turned: bool) -> tuple[Callable, Callable, Callable]:
  """Jitted: an empty stack; one layer written into a stack in place; a tensor that is no stack."""
  ours = lambda x: (x.T if turned else x).astype(dtype)
  make = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)
  write = jax.jit(lambda stack, x, layer: jax.lax.dynamic_update_index_in_dim(stack, ours(x), layer, 0), donate_argnums=0, out_shardings=sharding)
  return make, write, jax.jit(ours, out_shardings=sharding)


_ANOTHER = 'a checkpoint of another architecture than its config.json'


def _read(files: Mapping[str, tuple[Path, str]], name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
  """One tensor. The file is opened anew for each, or its mapped pages would stay in memory."""
  if name not in files:
    raise InputError(f'{next(iter(files.values()))[0].parent} has no tensor {name}: {_ANOTHER}')
  file, name_there = files[name]
  with safe_open(file, 'numpy') as opened:
    tensor = opened.get_tensor(name_there)
  if shape is not None and tensor.shape != shape:
    raise InputError(f'{file}: {name} has shape {tensor.shape}, not {shape}: {_ANOTHER}')
  return tensor


def _refuse_strangers(files: Mapping[str, tuple[Path, str]], known: set[str]) -> None:
  """A bias or a layer that nothing reads would change the network silently."""
  for name, (file, _) in files.items():
    if name.startswith('model.layers.') and name not in known and not name.endswith('.rotary_emb.inv_freq'):
      raise InputError(f'{file} holds {name}, of which its config.json knows nothing: {_ANOTHER}')


def _tensor_files(path: Path) -> dict[str, tuple[Path, str]]:
  """Tensor as a language model names it -> (file, its name there), every file there and whole."""
  index = path / 'model.safetensors.index.json'
  if index.is_file():
    try:
      files = {name: path / file for name, file in json.loads(index.read_text())['weight_map'].items()}
    except (ValueError, KeyError, AttributeError, TypeError) as e:  # ValueError: neither JSON nor text
      raise InputError(f'{index} is damaged or cut short ({e}): download it again') from e
  else:
    files = dict.fromkeys(_tensor_names(path / 'model.safetensors'), path / 'model.safetensors')
  if not files:
    raise InputError(f'{path} holds no tensors: download it again')
  for file in sorted(set(files.values())):
    names = _tensor_names(file)
    missing = [name for name, where in files.items() if where == file and name not in names]
    if missing:
      raise InputError(f'{file} lacks {missing[0]}, which {index.name} says it holds: download it again')
  # Bare decoders and those inside a vision-language model have other prefixes than 'model.'.
  suffix = 'embed_tokens.weight'
  prefix = next((name.removesuffix(suffix) for name in files if name.endswith(suffix)), 'model.')
  parts = tuple(prefix + part for part in ('embed_tokens.', 'layers.', 'norm.'))
  ours = lambda name: 'model.' + name.removeprefix(prefix) if name.startswith(parts) else name
  return {ours(name): (file, name) for name, file in files.items()}


def _tensor_names(file: Path) -> set[str]:
  if not file.is_file():
    raise InputError(f'{file} is missing: a Hugging Face directory has model.safetensors, or every shard that its index names (no pickled weights)')
  try:
    with safe_open(file, 'numpy') as opened:
      return set(opened.keys())  # safetensors checks the file's length against its header here
  except SafetensorError as e:
    raise InputError(f'{file} is damaged or cut short ({e}): download it again') from e


def _leaves(tree: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield tuple(key.key for key in path), leaf
