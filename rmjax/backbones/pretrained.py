"""Hugging Face directories in and out: config.json and safetensors, streamed tensor by tensor."""

from collections.abc import Iterator, Mapping
import json
from pathlib import Path
import shutil
import tempfile
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import safe_open, SafetensorError
from safetensors.numpy import save_file

from rmjax.backbones.decoder import DecoderConfig
from rmjax.backbones.hf_config import read_config, to_hf
from rmjax.errors import InputError

__all__ = ['load_decoder', 'load_score', 'read_config', 'save']

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
    InputError: a file or tensor is missing, cut short, or of another shape.
  """
  files = _tensor_files(Path(path))
  sandwich = 'attention_post_norm' in abstract['layers']
  loaded: dict[str, Any] = {}
  for names, leaf in _leaves(abstract):
    if names[-1].endswith(('_lora_a', '_lora_b')):
      continue
    stacked = names[0] == 'layers'
    hf_name = _hf_name(names, sandwich)
    shape = leaf.shape[1:] if stacked else leaf.shape
    if stacked:
      value = jax.jit(lambda leaf=leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()
      fill = jax.jit(_fill, donate_argnums=0, out_shardings=leaf.sharding)
      for layer in range(leaf.shape[0]):
        value = fill(value, _tensor(files, hf_name.format(layer), shape, names[-1] == 'kernel'), layer)
        value.block_until_ready()  # or the host would run ahead and hold many tensors
    else:
      value = jax.device_put(_tensor(files, hf_name, shape, names[-1] == 'kernel').astype(leaf.dtype), leaf.sharding)
    place = loaded
    for name in names[:-1]:
      place = place.setdefault(name, {})
    place[names[-1]] = value
  return loaded


def load_score(path: Path | str) -> np.ndarray | None:
  """The scalar head float32[H, 1] of a `...ForSequenceClassification` directory; None where there is none."""
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
    InputError: no Hugging Face architecture has this decoder.
    OSError: the files could not be written.
  """
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
    _write_tensors(Path(temporary), _hf_tensors(params, score), np.dtype(ml_dtypes.bfloat16 if dtype == 'bfloat16' else np.float32), max_shard_bytes)
    (Path(temporary) / 'config.json').write_text(json.dumps(raw, indent=2) + '\n')
    for old in [*path.glob('model*.safetensors'), path / 'model.safetensors.index.json']:
      old.unlink(missing_ok=True)
    for file in Path(temporary).iterdir():
      shutil.move(file, path / file.name)


def _write_tensors(directory: Path, tensors: Iterator[tuple[str, Any]], dtype: np.dtype, max_shard_bytes: int) -> None:
  shards: list[list[str]] = []
  shard: dict[str, np.ndarray] = {}
  total = 0

  def flush() -> None:
    save_file(shard, directory / f'{len(shards)}.safetensors', metadata={'format': 'pt'})
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


def _fill(value: jax.Array, tensor: jax.Array, layer: int) -> jax.Array:
  return jax.lax.dynamic_update_index_in_dim(value, tensor.astype(value.dtype), layer, 0)


def _tensor(files: Mapping[str, Path], name: str, shape: tuple[int, ...], turned: bool) -> np.ndarray:
  tensor = _read(files, name)
  wanted = shape[::-1] if turned else shape
  if tensor.shape != wanted:
    raise InputError(f'{files[name]}: {name} has shape {tensor.shape}, not {wanted}: a checkpoint of another architecture than its config.json')
  return tensor.T if turned else tensor


def _read(files: Mapping[str, Path], name: str) -> np.ndarray:
  """One tensor. The file is opened anew for each, or its mapped pages would stay in memory."""
  if name not in files:
    where = next(iter(files.values())).parent
    raise InputError(f'{where} has no tensor {name}: a checkpoint of another architecture than its config.json')
  with safe_open(files[name], 'numpy') as file:
    return file.get_tensor(name)


def _tensor_files(path: Path) -> dict[str, Path]:
  """Tensor name -> file, every file there and whole."""
  index = path / 'model.safetensors.index.json'
  if index.is_file():
    files = {name: path / file for name, file in json.loads(index.read_text())['weight_map'].items()}
  else:
    files = dict.fromkeys(_tensor_names(path / 'model.safetensors'), path / 'model.safetensors')
  for file in sorted(set(files.values())):
    names = _tensor_names(file)
    missing = [name for name, where in files.items() if where == file and name not in names]
    if missing:
      raise InputError(f'{file} lacks {missing[0]}, which {index.name} says it holds: download it again')
  return files


def _tensor_names(file: Path) -> set[str]:
  if not file.is_file():
    raise InputError(f'{file} is missing: a Hugging Face directory has model.safetensors, or every shard that its index names')
  try:
    with safe_open(file, 'numpy') as opened:
      return set(opened.keys())
  except SafetensorError as e:
    raise InputError(f'{file} is damaged or cut short ({e}): download it again') from e


def _leaves(tree: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield tuple(key.key for key in path), leaf
