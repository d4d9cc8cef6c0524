"""ONE decoder for the Llama, Qwen2, Qwen3, Mistral and Gemma families: what differs between them is data.

Dimensions: R rows, T length, D hidden, H query heads, K key heads, V vocabulary.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from rmjax.backbones.attention import platform, tree_attention
from rmjax.backbones.blockwise import ATTENDED
from rmjax.errors import InputError
from rmjax.trees import Array


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Architecture of a decoder.

  Attributes:
    vocab_size: V.
    hidden_size: D.
    intermediate_size: of the MLP.
    num_layers: layers.
    num_heads: H.
    num_kv_heads: K; divides H.
    head_dim: 0 for D / H.
    max_positions: longest path.
    rope_theta: base of rotary embeddings.
    rope_scaling: items of Hugging Face's dict for them ('linear' or 'llama3'); any mapping will do, () for none.
    local_rope_theta: base in layers with a window; 0 for the same (Gemma 3 has another).
    windows: attention window of each layer, 0 for none; () for none anywhere.
    norm_eps: epsilon of the RMS norms.
    activation: 'silu' or 'gelu_tanh'.
    attention_bias: biases of query, key and value.
    output_bias: bias of the attention's output.
    mlp_bias: biases of the MLP.
    qk_norm: norms on the heads of queries and keys.
    sandwich_norm: norms after attention and MLP as well as before (Gemma).
    unit_offset: norms scale by 1 + weight (Gemma).
    embedding_scale: embeddings are multiplied by sqrt(D) (Gemma).
    query_scale: logits are divided by sqrt of this; 0 for head_dim.
    attention_softcap: soft cap of attention logits; 0 for none.
    logit_softcap: soft cap of the output; 0 for none.
    tie_embeddings: the output matrix is the embedding.
  """

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int = 0
  max_positions: int = 1 << 20
  rope_theta: float = 10000.0
  rope_scaling: Mapping[str, Any] | Sequence[Sequence[Any]] = ()
  local_rope_theta: float = 0.0
  windows: Sequence[int] = ()
  norm_eps: float = 1e-5
  activation: str = 'silu'
  attention_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  sandwich_norm: bool = False
  unit_offset: bool = False
  embedding_scale: bool = False
  query_scale: int = 0
  attention_softcap: float = 0.0
  logit_softcap: float = 0.0
  tie_embeddings: bool = True

  def __post_init__(self):
    for name in ('vocab_size', 'hidden_size', 'intermediate_size', 'num_layers', 'num_heads', 'num_kv_heads', 'max_positions'):
      if getattr(self, name) < 1:
        raise InputError(f'{name} = {getattr(self, name)}: it must be at least 1')
    if self.num_heads % self.num_kv_heads:
      raise InputError(f'num_heads = {self.num_heads} is no multiple of num_kv_heads = {self.num_kv_heads}')
    if not self.head_dim and self.hidden_size % self.num_heads:
      raise InputError(f'hidden_size = {self.hidden_size} is no multiple of num_heads = {self.num_heads}: set head_dim')
    if self.windows and len(self.windows) != self.num_layers:
      raise InputError(f'windows has {len(self.windows)} entries for num_layers = {self.num_layers}')
    if self.activation not in ACTIVATIONS:
      raise InputError(f"activation = '{self.activation}': choose one of {', '.join(ACTIVATIONS)}")
    if min(self.windows, default=0) < 0:
      raise InputError(f'windows = {self.windows}: a window is positive, or 0 for none')
    object.__setattr__(self, 'head_dim', self.head_dim or self.hidden_size // self.num_heads)
    object.__setattr__(self, 'windows', tuple(self.windows))
    object.__setattr__(self, 'rope_scaling', tuple(sorted(dict(self.rope_scaling or ()).items())))  # hashable
    if self.head_dim % 2:
      raise InputError(f'head_dim = {self.head_dim} is odd: rotary embeddings turn pairs')
    rope_frequencies(self)  # refuses a scaling that it does not know


ROPE_SCALING = {
  'default': (),
  'linear': ('factor',),
  'llama3': ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'),
}  # kind -> what it needs

ACTIVATIONS = {'silu': nn.silu, 'gelu_tanh': functools.partial(nn.gelu, approximate=True)}

REMAT = {
  'none': None,
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, jax.checkpoint_policies.save_only_these_names(ATTENDED)
  ),  # fmt: skip
}


class RMSNorm(nn.Module):
  """x / rms(x) * weight over the last axis, in float32."""

  eps: float
  unit_offset: bool

  @nn.compact
  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    init = nn.initializers.zeros if self.unit_offset else nn.initializers.ones
    scale = self.param('scale', nn.with_logical_partitioning(init, ('norm',)), (x.shape[-1],))
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y**2, -1, keepdims=True) + self.eps)
    return (y * (scale + self.unit_offset)).astype(x.dtype)


def rope_frequencies(config: DecoderConfig, *, local: bool = False) -> np.ndarray:
  """Angular frequencies float32[D / 2] of rotary embeddings.

  Args:
    config: the decoder.
    local: of the layers with a window, where they have their own base.

  Reference: Su et al., RoFormer (2021), eq. 15; scaling 'linear' Chen et al. (2023), 'llama3' Llama 3.1's (2024).

  Raises:
    InputError: another kind of scaling, or something that it needs is missing.
  """
  theta = config.local_rope_theta if local else config.rope_theta
  frequencies = theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
  scaling = {} if local else dict(config.rope_scaling)
  kind = scaling.get('rope_type', scaling.get('type', 'default'))
  if kind not in ROPE_SCALING:
    raise InputError(f"rope scaling '{kind}' is not supported: {', '.join(ROPE_SCALING)} are")
  if missing := [name for name in ROPE_SCALING[kind] if name not in scaling]:
    raise InputError(f"rope scaling '{kind}' lacks {', '.join(missing)}")
  if kind == 'linear':
    frequencies = frequencies / scaling['factor']
  elif kind == 'llama3':
    # Long waves are slowed down, short ones kept, and those between blended.
    turns = scaling['original_max_position_embeddings'] * frequencies / (2 * np.pi)
    low, high = scaling['low_freq_factor'], scaling['high_freq_factor']
    kept = np.clip((turns - low) / (high - low), 0, 1)
    frequencies = kept * frequencies + (1 - kept) * frequencies / scaling['factor']
  return frequencies.astype(np.float32)


def rope_angles(config: DecoderConfig, positions: Int[Array, 'R T']) -> tuple[Float[Array, 'R T F'], Float[Array, 'R T F'] | None]:
  """Angles of `rotate`; the second are of the layers with a window, None where they have no base of their own."""
  angle = lambda local: positions[..., None].astype(jnp.float32) * rope_frequencies(config, local=local)
  return angle(False), angle(True) if config.local_rope_theta else None


def layer_windows(config: DecoderConfig) -> tuple[int, ...]:
  """The window of each layer, `NO_WINDOW` where there is none."""
  return tuple(window or NO_WINDOW for window in config.windows or (0,) * config.num_layers)


def rotate(x: Float[Array, 'R T H D'], angles: Float[Array, 'R T D/2']) -> Float[Array, 'R T H D']:
  """Rotary embedding of the pairs (x[i], x[i + D/2]), in float32 (Hugging Face's order)."""
  cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
  a, b = jnp.split(x.astype(jnp.float32), 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


class Block(nn.Module):
  """One layer: attention and MLP, each with its residual."""

  config: DecoderConfig
  dtype: Any

  @nn.compact
  def __call__(self, x, window, angles, subtree_end, positions, attend=None):
    c = self.config
    norm = functools.partial(RMSNorm, c.norm_eps, c.unit_offset)
    dense = functools.partial(_dense, dtype=self.dtype)
    after = (lambda y, name: norm(name=name)(y)) if c.sandwich_norm else (lambda y, name: y)

    y = norm(name='attention_norm')(x)
    y, kept = Attention(c, self.dtype, name='attention')(y, window, angles, subtree_end, positions, attend)
    x = x + after(y, 'attention_post_norm')

    y = norm(name='mlp_norm')(x)
    gate = dense(c.intermediate_size, ('embed', 'mlp'), c.mlp_bias, name='gate')(y)
    up = dense(c.intermediate_size, ('embed', 'mlp'), c.mlp_bias, name='up')(y)
    y = dense(c.hidden_size, ('mlp', 'embed'), c.mlp_bias, name='down')(ACTIVATIONS[c.activation](gate) * up)
    x = x + after(y, 'mlp_post_norm')
    return nn.with_logical_constraint(x, ('batch', 'length', None)), kept


class Attention(nn.Module):
  """Grouped-query attention with rotary positions: on trees, or whatever `attend(q, k, v, scale=, window=, softcap=)` gives.

  Returns what `attend` returns, the attended values and what it wants to keep (a cache); nothing is kept of trees.
  """

  config: DecoderConfig
  dtype: Any

  @nn.compact
  def __call__(self, x, window, angles, subtree_end, positions, attend=None):
    c = self.config
    heads = lambda y, count: y.reshape(*y.shape[:2], count, c.head_dim)
    dense = functools.partial(_dense, dtype=self.dtype)
    q = heads(dense(c.num_heads * c.head_dim, ('embed', 'heads'), c.attention_bias, name='query')(x), c.num_heads)
    k = heads(dense(c.num_kv_heads * c.head_dim, ('embed', 'kv_heads'), c.attention_bias, name='key')(x), c.num_kv_heads)
    v = heads(dense(c.num_kv_heads * c.head_dim, ('embed', 'kv_heads'), c.attention_bias, name='value')(x), c.num_kv_heads)
    if c.qk_norm:
      q = RMSNorm(c.norm_eps, c.unit_offset, name='query_norm')(q)
      k = RMSNorm(c.norm_eps, c.unit_offset, name='key_norm')(k)
    full, local = angles
    if local is not None:
      full = jnp.where(window < NO_WINDOW, local, full)
    q, k = rotate(q, full), rotate(k, full)
    options = dict(scale=(c.query_scale or c.head_dim) ** -0.5, window=window if any(c.windows) else None, softcap=c.attention_softcap or None)
    y, kept = attend(q, k, v, **options) if attend else (tree_attention(q, k, v, subtree_end, positions, **options), None)
    return dense(c.hidden_size, ('heads', 'embed'), c.output_bias, name='output')(y.reshape(*y.shape[:2], -1)), kept


NO_WINDOW = 1 << 30


def _dot_general(x: Array, kernel: Array, dimensions: Any, **options: Any) -> Array:
  """`jax.lax.dot_general` of activations and a matrix, in two dimensions on a CPU.

  There XLA transposes activations of three for every gradient of a matrix: a step of a 22M-parameter reward model takes a quarter longer. A length that
  is laid out over devices stays a dimension of its own, since one of rows and columns would have to be gathered.
  """
  if platform() != 'cpu' or jax.sharding.get_abstract_mesh().shape.get('sequence', 1) > 1:
    return jax.lax.dot_general(x, kernel, dimensions, **options)
  flat = jax.lax.dot_general(x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **options)
  return flat.reshape(*x.shape[:-1], -1)


def _dense(features: int, axes: tuple[str, str], bias: bool, **options: Any) -> nn.Dense:
  kernel_init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes)
  bias_init = nn.with_logical_partitioning(nn.initializers.zeros, axes[1:])
  return nn.Dense(features, use_bias=bias, kernel_init=kernel_init, bias_init=bias_init, **{'dot_general': _dot_general, **options})


class Decoder(nn.Module):
  """Tokens of packed trees to hidden states, and to logits for those who want them.

  Attributes:
    config: the architecture.
    dtype: of matrix products and hidden states; parameters, norms, softmax and logits are float32.
    remat: what the backward pass recomputes: 'none', 'dots' (all but matrix products and, in blocks, attention) or 'full'.
  """

  config: DecoderConfig
  dtype: Any = jnp.float32
  remat: str = 'none'

  def setup(self):
    c = self.config
    if self.remat not in REMAT:
      raise InputError(f"remat = '{self.remat}': choose one of {', '.join(REMAT)}")
    init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ('vocab', 'embed'))
    self.embedding = nn.Embed(c.vocab_size, c.hidden_size, embedding_init=init)
    block = Block if self.remat == 'none' else nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
    self.layers = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
      length=c.num_layers,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(c, self.dtype)
    self.norm = RMSNorm(c.norm_eps, c.unit_offset)
    if not c.tie_embeddings:
      product = functools.partial(_dot_general, preferred_element_type=jnp.float32)
      self.unembedding = _dense(c.vocab_size, ('embed', 'vocab'), False, dtype=self.dtype, name=None, dot_general=product)

  def __call__(self, tokens: Int[Array, 'R T'], positions: Int[Array, 'R T'], subtree_end: Int[Array, 'R T']) -> Float[Array, 'R T D']:
    """Hidden states after the last norm; garbage at padding."""
    c = self.config
    x, _ = self.layers(self.embed(tokens), jnp.array(layer_windows(c), jnp.int32), rope_angles(c, positions), subtree_end, positions)
    return self.norm(x)

  def embed(self, tokens: Int[Array, 'R T']) -> Float[Array, 'R T D']:
    """What goes into the first layer."""
    x = self.embedding(tokens).astype(self.dtype)  # cast after the gather, so that gradients of a frequent token add up in float32
    if self.config.embedding_scale:
      x = x * jnp.asarray(self.config.hidden_size**0.5, x.dtype)
    return nn.with_logical_constraint(x, ('batch', 'length', None))

  def logits(self, tokens: Int[Array, 'R T'], positions: Int[Array, 'R T'], subtree_end: Int[Array, 'R T']) -> Float[Array, 'R T V']:
    """Next-token logits in float32; `init` by this method to have the output matrix where it is not tied."""
    return self.unembed(self(tokens, positions, subtree_end))

  def unembed(self, hidden: Float[Array, '*B D']) -> Float[Array, '*B V']:
    """Next-token logits, in float32, of hidden states that `__call__` gave."""
    if self.config.tie_embeddings:
      y = jnp.einsum('...d,vd->...v', hidden, self.embedding.embedding.astype(hidden.dtype), preferred_element_type=jnp.float32)
    else:
      y = self.unembedding(hidden)
    cap = self.config.logit_softcap
    return cap * jnp.tanh(y / cap) if cap else y
