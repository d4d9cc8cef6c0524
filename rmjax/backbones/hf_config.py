"""Hugging Face config.json to `DecoderConfig` and back."""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

from rmjax.backbones.decoder import DecoderConfig
from rmjax.errors import InputError

_ACTIVATIONS = {'silu': 'silu', 'gelu_pytorch_tanh': 'gelu_tanh'}

# model_type -> class name, and what transformers assumes where a config.json is silent.
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
  'llama': ('Llama', {}),
  'mistral': ('Mistral', {'sliding_window': 4096}),
  'qwen2': ('Qwen2', {'sliding_window': 4096, 'max_window_layers': 28}),
  'qwen3': ('Qwen3', {'sliding_window': 4096, 'max_window_layers': 28, 'head_dim': 128}),
  'gemma2': (
    'Gemma2',
    dict(head_dim=256, tie_word_embeddings=True, hidden_activation='gelu_pytorch_tanh', sliding_window=4096, query_pre_attn_scalar=256,
         attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
  ),
  'gemma3_text': (
    'Gemma3Text',
    dict(head_dim=256, tie_word_embeddings=True, hidden_activation='gelu_pytorch_tanh', sliding_window=4096, query_pre_attn_scalar=256,
         sliding_window_pattern=6, rope_theta=1e6, rope_local_base_freq=1e4, vocab_size=262208, num_attention_heads=8, num_key_value_heads=4,
         max_position_embeddings=131072),  # the text_config of a Gemma 3 that sees is sparse
  ),
}  # fmt: skip
_DEFAULTS = dict(rms_norm_eps=1e-6, rope_theta=1e4, tie_word_embeddings=False, hidden_act='silu', max_position_embeddings=2048)


def read_config(path: Path | str) -> DecoderConfig:
  """The architecture that a Hugging Face directory's config.json describes.

  Raises:
    InputError: there is none, it is malformed, or its architecture is not supported.
  """
  file = Path(path) / 'config.json'
  if not file.is_file():
    raise InputError(f'{path} holds no config.json: give a Hugging Face model directory')
  try:
    return from_hf(json.loads(file.read_text()))
  except json.JSONDecodeError as e:
    raise InputError(f'{file}:{e.lineno}: malformed JSON: {e.msg}') from e
  except KeyError as e:
    raise InputError(f'{file} lacks {e}') from e
  except (AttributeError, TypeError) as e:
    raise InputError(f'{file} holds a value of the wrong type: {str(e).splitlines()[0]}') from e
  except (InputError, UnicodeDecodeError) as e:
    raise InputError(f'{file}: {e}') from e


def from_hf(raw: Mapping[str, Any]) -> DecoderConfig:
  """`DecoderConfig` of a config.json's contents, of transformers 4 or 5.

  Raises:
    InputError: the architecture is not supported.
    KeyError: an entry is missing.
  """
  family = raw.get('model_type', '')
  if family == 'gemma3' and 'text_config' in raw:
    return from_hf({'model_type': 'gemma3_text', **raw['text_config']})
  if family not in _FAMILIES:
    raise InputError(f"model_type '{family}' is not supported: {', '.join(_FAMILIES)} are")
  if raw.get('quantization_config'):
    raise InputError('its weights are quantized (quantization_config): give the float32, bfloat16 or float16 checkpoint')
  if raw.get('partial_rotary_factor', 1.0) != 1.0:
    raise InputError(f'partial_rotary_factor = {raw["partial_rotary_factor"]} is not supported: rotary embeddings turn whole heads')
  if raw.get('use_bidirectional_attention'):
    raise InputError('use_bidirectional_attention is set: an encoder, not a decoder')
  c = {**_DEFAULTS, **_FAMILIES[family][1], **{name: value for name, value in raw.items() if name != 'rope_scaling' or value}}
  gemma = family in ('gemma2', 'gemma3_text')
  activation = c.get('hidden_activation') or c['hidden_act']
  if activation not in _ACTIVATIONS:
    raise InputError(f"activation '{activation}' is not supported: {', '.join(_ACTIVATIONS)} are")
  rope, local_rope = _rope(c)
  bias = bool(c.get('attention_bias')) and family not in ('qwen2', 'mistral')
  return DecoderConfig(
    vocab_size=c['vocab_size'],
    hidden_size=c['hidden_size'],
    intermediate_size=c['intermediate_size'],
    num_layers=c['num_hidden_layers'],
    num_heads=c['num_attention_heads'],
    num_kv_heads=c.get('num_key_value_heads') or c['num_attention_heads'],
    head_dim=c.get('head_dim') or 0,
    max_positions=c['max_position_embeddings'],
    rope_theta=float(rope.pop('rope_theta')),
    rope_scaling={} if rope.get('rope_type', 'default') == 'default' else rope,
    local_rope_theta=float(local_rope) if family == 'gemma3_text' else 0.0,
    windows=_windows(family, c),
    norm_eps=c['rms_norm_eps'],
    activation=_ACTIVATIONS[activation],
    attention_bias=bias or family == 'qwen2',
    output_bias=bias,
    mlp_bias=bool(c.get('mlp_bias', False)),
    qk_norm=family in ('qwen3', 'gemma3_text'),
    sandwich_norm=gemma,
    unit_offset=gemma,
    embedding_scale=gemma,
    query_scale=int(c['query_pre_attn_scalar']) if gemma else 0,
    attention_softcap=(c.get('attn_logit_softcapping') or 0.0) if gemma else 0.0,
    logit_softcap=(c.get('final_logit_softcapping') or 0.0) if gemma else 0.0,
    tie_embeddings=bool(c['tie_word_embeddings']),
  )


def to_hf(config: DecoderConfig) -> tuple[str, dict[str, Any]]:
  """(class name such as 'Qwen3', contents of config.json without `architectures`) of an architecture.

  Raises:
    InputError: no supported family has it.
  """
  c = config
  if c.sandwich_norm:
    family = 'gemma3_text' if c.qk_norm else 'gemma2'
  elif c.qk_norm:
    family = 'qwen3'
  elif c.attention_bias and not c.output_bias:
    family = 'qwen2'
  else:
    family = 'mistral' if any(c.windows) else 'llama'
  window = max(c.windows, default=0)
  raw: dict[str, Any] = dict(
    model_type=family,
    vocab_size=c.vocab_size,
    hidden_size=c.hidden_size,
    intermediate_size=c.intermediate_size,
    num_hidden_layers=c.num_layers,
    num_attention_heads=c.num_heads,
    num_key_value_heads=c.num_kv_heads,
    head_dim=c.head_dim,
    max_position_embeddings=c.max_positions,
    rms_norm_eps=c.norm_eps,
    rope_theta=c.rope_theta,
    rope_scaling=dict(c.rope_scaling) or None,
    tie_word_embeddings=c.tie_embeddings,
    attention_bias=c.output_bias,
  )
  activation = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[c.activation]
  if family == 'llama':
    raw |= dict(mlp_bias=c.mlp_bias)
  elif family == 'mistral':
    raw |= dict(sliding_window=window)
  if c.sandwich_norm:
    raw |= dict(hidden_activation=activation, query_pre_attn_scalar=c.query_scale or c.head_dim, sliding_window=window or 4096)
    raw |= dict(attn_logit_softcapping=c.attention_softcap or None, final_logit_softcapping=c.logit_softcap or None)
  else:
    raw |= dict(hidden_act=activation)
  if family in ('qwen2', 'qwen3'):
    first = next((i for i, w in enumerate(c.windows) if w), c.num_layers)
    raw |= dict(use_sliding_window=bool(window), sliding_window=window or None, max_window_layers=first)
  if family not in ('llama', 'mistral'):
    raw |= dict(layer_types=['sliding_attention' if w else 'full_attention' for w in c.windows or (0,) * c.num_layers])
  if family == 'gemma3_text':
    raw |= dict(rope_local_base_freq=c.local_rope_theta)
  back = from_hf(raw)
  if back != config:
    differing = [name for name in vars(config) if getattr(back, name) != getattr(config, name)]
    raise InputError(f'no Hugging Face architecture has this decoder: {_FAMILIES[family][0]} comes nearest and differs in {", ".join(differing)}')
  return _FAMILIES[family][0], raw


def _rope(c: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
  """Rotary parameters of full layers, `rope_theta` among them, and the base of layers with a window."""
  rope = c.get('rope_parameters') or {}
  if 'full_attention' in rope:
    return {'rope_theta': c['rope_theta'], **rope['full_attention']}, rope.get('sliding_attention', {}).get('rope_theta', 1e4)
  found = {'rope_theta': c['rope_theta'], **(c.get('rope_scaling') or {}), **rope}
  if 'type' in found:  # its name before transformers 4.43
    found.setdefault('rope_type', found.pop('type'))
  return found, c.get('rope_local_base_freq', 1e4)


def _windows(family: str, c: Mapping[str, Any]) -> tuple[int, ...]:
  """Window of each layer, 0 for none; () where no layer has one."""
  layers, window = range(c['num_hidden_layers']), c.get('sliding_window') or 0
  if family in ('qwen2', 'qwen3') and not c.get('use_sliding_window'):
    window = 0
  if family == 'mistral':
    local = [True] * len(layers)
  elif c.get('layer_types'):
    local = [kind == 'sliding_attention' for kind in c['layer_types']]
  elif family == 'gemma2':
    local = [i % 2 == 0 for i in layers]
  elif family == 'gemma3_text':
    local = [(i + 1) % c['sliding_window_pattern'] != 0 for i in layers]
  elif family in ('qwen2', 'qwen3'):
    local = [i >= c['max_window_layers'] for i in layers]
  else:
    local = [False] * len(layers)
  windows = tuple(window if is_local else 0 for is_local in local)
  return windows if any(windows) else ()
