"""What all forms of generation are made of: prompts computed once, a step of the network, the draw of a token, and the layout of what was drawn.

Dimensions: P prompts, N responses to each, L prompt length, M new tokens, V vocabulary, D hidden size.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Shaped
import numpy as np

from rmjax.backbones.attention import tree_attention
from rmjax.backbones.decoder import Block, Decoder, layer_windows, rope_angles
from rmjax.decoding import sampling as sampling_lib
from rmjax.decoding.cache import Cache, cached_attention, empty, resolve_dtype, store, Stored
from rmjax.decoding.sampling import Sampling
from rmjax.errors import InputError
from rmjax.trees import Array, Trees


class Progress(NamedTuple):
  """What a logits processor knows."""

  step: Int[Array, '']  # of the token to be drawn; 0 for a response's first
  tokens: Int[Array, 'P N M']  # drawn so far; 0 from `step` on and after the end of a response
  prompts: Int[Array, 'P L']
  lengths: Int[Array, 'P']  # of the prompts


Processor = Callable[[Float[Array, 'P N V'], Progress], Float[Array, 'P N V']]


class Request(NamedTuple):
  """What responses are to be drawn: all that they depend on but the network."""

  prompts: Int[Array, 'P L']
  lengths: Int[Array, 'P']
  keys: Shaped[Array, 'P N']
  budgets: Int[Array, 'P N']  # 0 for no response
  allowed: Bool[Array, '#P #N V'] | Bool[Array, 'V'] | None


class State(NamedTuple):
  """Responses as far as they have been drawn; 0 from there on."""

  tokens: Int[Array, '*B M']
  log_probs: Float[Array, '*B M']
  sampler_log_probs: Float[Array, '*B M']
  counts: Int[Array, '*B']  # tokens drawn
  alive: Bool[Array, '*B']
  finished: Bool[Array, '*B']
  matched: Int[Array, '*B']  # state of the stop strings' automaton


class Network(NamedTuple):
  """A decoder that takes steps."""

  decoder: Decoder
  params: Any
  layers: list[Any]  # parameters of each layer, a slice of the stack made once: see benchmarks/generate.py
  cache_dtype: jnp.dtype


def make_network(decoder: Decoder, params: Any, cache_dtype: str | None) -> Network:
  """A decoder with its parameters, as `generate` is given them.

  Raises:
    InputError: the parameters have adapters or no output matrix, or the cache's dtype is unknown.
  """
  config = decoder.config
  if any(getattr(path[-1], 'key', '').endswith('_lora_a') for path, _ in jax.tree_util.tree_leaves_with_path(params)):
    raise InputError('the parameters have adapters, which generation does not compute: merge them first, rmjax.backbones.lora.merge_lora')
  if 'unembedding' not in params and not config.tie_embeddings:
    raise InputError('the parameters have no output matrix, and the decoder does not tie it to the embedding: init by Decoder.logits')
  layers = [jax.tree.map(lambda leaf, i=i: leaf[i], params['layers']) for i in range(config.num_layers)]
  return Network(Decoder(config, dtype=decoder.dtype), params, layers, resolve_dtype(cache_dtype, decoder.dtype))


def make_request(
  config: Any,
  prompts: Int[Array, 'P L'],
  lengths: Int[Array, 'P'],
  key: Shaped[Array, ''] | Shaped[Array, 'P N'],
  *,
  responses: int,
  max_new_tokens: int,
  budgets: Int[Array, '#P #N'] | None,
  allowed: Bool[Array, '#P #N V'] | Bool[Array, 'V'] | None,
) -> Request:
  """What `generate` is asked for; `config` is the decoder's.

  Raises:
    InputError: prompts and responses are longer than the decoder's positions, or an argument cannot be.
  """
  if responses < 1 or max_new_tokens < 1:
    raise InputError(f'responses = {responses}, max_new_tokens = {max_new_tokens}: they must be at least 1')
  shape = (prompts.shape[0], responses)
  if key.shape not in ((), shape):
    raise InputError(f'key has shape {key.shape}: give one key, or responses = {responses} for each of {prompts.shape[0]} prompts')
  longest = prompts.shape[1] + max_new_tokens
  if longest > config.max_positions:
    raise InputError(
      f'prompts of {prompts.shape[1]} and responses of {max_new_tokens} tokens need {longest} positions, and the decoder has {config.max_positions}: '
      'shorten one or the other'
    )
  if isinstance(allowed, np.ndarray) and not allowed.any(-1).all():
    raise InputError('allowed leaves no token somewhere: it must leave at least one, such as a stop token')
  if isinstance(prompts, np.ndarray) and isinstance(lengths, np.ndarray):
    if prompts.max(initial=0) >= config.vocab_size:
      raise InputError(
        f'a prompt has the token {prompts.max()}, and the vocabulary has {config.vocab_size}: use the tokenizer that the decoder was trained with'
      )
    if lengths.max(initial=0) > prompts.shape[1]:
      raise InputError(f'a prompt has {lengths.max()} tokens, and the cache has {prompts.shape[1]} columns for prompts')
  prompts, lengths = jnp.asarray(prompts), jnp.asarray(lengths)
  budgets = jnp.full(shape, max_new_tokens) if budgets is None else jnp.minimum(jnp.broadcast_to(budgets, shape), max_new_tokens)
  return Request(
    prompts=prompts,
    lengths=lengths,
    keys=key if key.ndim else jax.random.split(key, shape),
    budgets=jnp.where(lengths[:, None] > 0, budgets, 0),
    allowed=None if allowed is None else jnp.asarray(allowed),
  )


def make_draw(
  config: Any, *, sampling: Sampling, stop_tokens: Sequence[int], stop_table: Int[Array, 'states V'] | None, processor: Processor | None
) -> Callable[[Float[Array, 'P N V'], Int[Array, ''], State, Request], State]:
  """(logits, step, state, request) -> state with token number `step` of every response that is alive. `config` is the decoder's.

  Raises:
    InputError: a stop token is not in the vocabulary, or the table of stop strings is for another.
  """
  if wrong := [token for token in stop_tokens if not 0 <= token < config.vocab_size]:
    raise InputError(f'stop token {wrong[0]} is not in the vocabulary of {config.vocab_size}')
  if stop_table is not None and stop_table.shape[1] != config.vocab_size:
    raise InputError(f'the stop table is for {stop_table.shape[1]} tokens, and the decoder has {config.vocab_size}')

  def draw(logits, step, state, request):
    scaled = candidates = sampling_lib.scale(logits, sampling)
    if processor or request.allowed is not None:
      if processor:
        logits = processor(logits, Progress(step, state.tokens, request.prompts, request.lengths))
      if request.allowed is not None:
        logits = jnp.where(request.allowed, logits, -jnp.inf)
      candidates = sampling_lib.scale(logits, sampling)
    candidates = sampling_lib.truncate(candidates, sampling)
    keys = request.keys
    folded = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys.reshape(-1)).reshape(keys.shape)
    tokens = jnp.where(state.alive, sampling_lib.draw(folded, candidates, sampling), 0)
    write = lambda values, new: jax.lax.dynamic_update_index_in_dim(values, jnp.where(state.alive, new, 0), step, 2)
    log_probs = sampling_lib.log_prob(scaled, tokens)
    sampler_log_probs = log_probs if candidates is scaled else sampling_lib.log_prob(candidates, tokens)
    sampler_log_probs = jnp.where(jnp.asarray(sampling.temperature) > 0, sampler_log_probs, 0.0)
    hit, matched = jnp.isin(tokens, jnp.array(stop_tokens, jnp.int32)), state.matched
    if stop_table is not None:
      matched = jnp.asarray(stop_table)[matched, tokens]
      hit |= matched == stop_table.shape[0] - 1
    counts = state.counts + state.alive
    return State(
      tokens=write(state.tokens, tokens),
      log_probs=write(state.log_probs, log_probs),
      sampler_log_probs=write(state.sampler_log_probs, sampler_log_probs),
      counts=counts,
      alive=state.alive & ~hit & (counts < request.budgets),
      finished=state.finished | state.alive & hit,
      matched=matched,
    )

  return draw


def blank(budgets: Int[Array, '*B'], max_new_tokens: int) -> State:
  """Responses of which nothing has been drawn."""
  zeros = jnp.zeros((*budgets.shape, max_new_tokens))
  return State(
    tokens=zeros.astype(jnp.int32),
    log_probs=zeros,
    sampler_log_probs=zeros,
    counts=jnp.zeros(budgets.shape, jnp.int32),
    alive=budgets > 0,
    finished=jnp.zeros(budgets.shape, bool),
    matched=jnp.zeros(budgets.shape, jnp.int32),
  )


def prefill(network: Network, request: Request) -> tuple[Float[Array, 'P D'], list[tuple[Stored, Stored]]]:
  """Hidden states of the prompts' last tokens, before the last norm, and every layer's keys and values [P, key heads, L, head size]."""
  config, (prompts, lengths) = network.decoder.config, request[:2]
  place = jnp.arange(prompts.shape[1])
  positions = jnp.broadcast_to(place, prompts.shape)
  subtree_end = jnp.where(place < lengths[:, None], lengths[:, None], 0)
  angles, block = rope_angles(config, positions), Block(config, network.decoder.dtype)
  kept = lambda x: store(x.swapaxes(1, 2), network.cache_dtype)

  def layer(x, scanned):
    weights, window = scanned
    attend = lambda q, k, v, **options: (tree_attention(q, k, v, subtree_end, positions, **options), (kept(k), kept(v)))
    return block.apply({'params': weights}, x, window, angles, None, None, attend)

  x = network.decoder.apply({'params': network.params}, prompts, method='embed')
  x, found = jax.lax.scan(layer, x, (network.params['layers'], jnp.array(layer_windows(config), jnp.int32)))
  last = jnp.take_along_axis(x, jnp.maximum(lengths - 1, 0)[:, None, None], 1)[:, 0]
  return last, [jax.tree.map(lambda leaf, i=i: leaf[i], found) for i in range(config.num_layers)]


def make_caches(network: Network, prompts: list[tuple[Stored, Stored]], rows: int, max_new_tokens: int) -> list[Cache]:
  """Caches with room for the responses of so many rows. A response's last token is never computed, so it needs no column."""
  config = network.decoder.config
  room = empty(rows, config.num_kv_heads, max(max_new_tokens - 1, 1), config.head_dim, network.cache_dtype)
  return [Cache(*of_layer, room, room) for of_layer in prompts]


def forward(
  network: Network,
  caches: list[Cache],
  tokens: Int[Array, 'P N'],
  lengths: Int[Array, 'P'],
  step: Int[Array, ''] | Int[Array, 'P'],
  column: Int[Array, ''],
) -> tuple[Float[Array, 'P N D'], list[Cache]]:
  """Hidden states, before the last norm, of token number `step` of every response; see `cached_attention`. Layers are unrolled, each with its cache."""
  config = network.decoder.config
  block = Block(config, network.decoder.dtype)
  x = network.decoder.apply({'params': network.params}, tokens, method='embed')
  angles = rope_angles(config, jnp.broadcast_to(lengths[:, None] + step.reshape(-1, 1), tokens.shape))
  kept = []
  for weights, window, cache in zip(network.layers, layer_windows(config), caches, strict=True):
    attend = functools.partial(_attend, cache, lengths, step, column, window)
    x, cache = block.apply({'params': weights}, x, window, angles, None, None, attend)
    kept.append(cache)
  return x, kept


def _attend(cache, lengths, step, column, static_window, q, k, v, *, window, **options):
  return cached_attention(q, k, v, cache, lengths, step, column, window=None if window is None else static_window, **options)


def unembed(network: Network, hidden: Float[Array, '*B D']) -> Float[Array, '*B V']:
  """Next-token logits of hidden states that `forward` or `prefill` gave."""
  return network.decoder.apply({'params': network.params}, hidden, method=lambda model, x: model.unembed(model.norm(x)))


@jax.custom_batching.custom_vmap
def any_lane(flags: Bool[Array, '...']) -> Bool[Array, '']:
  """Whether any flag is set; under vmap, in any lane: a loop with an answer for each would copy the caches of those that are done at every step."""
  return jnp.any(flags)


@any_lane.def_vmap
def _any_of_all_lanes(axis_size, in_batched, flags):
  del axis_size, in_batched
  return any_lane(flags), False


def lay_out(request: Request, state: State) -> Trees:
  """The batch of trees that prompts and responses [P, N] are; see `generate`."""
  prompts, lengths = request.prompts, request.lengths
  (rows, length), (_, responses, new) = prompts.shape, state.tokens.shape
  start = length + new * jnp.arange(responses)  # column of each response
  ends = jnp.where(state.counts > 0, start + state.counts, 0)  # one past its last token
  slot = jnp.arange(new)
  real = slot < state.counts[..., None]
  in_prompt = jnp.arange(length) < lengths[:, None]

  def columns(of_prompt, of_responses, padding=0):
    of_prompt = jnp.where(in_prompt, of_prompt, padding)
    of_responses = jnp.where(real, of_responses, padding)
    return jnp.concatenate([of_prompt, of_responses.reshape(rows, -1)], 1)

  before = jnp.where(slot == 0, lengths[:, None, None] - 1, start[:, None] + slot - 1)
  return Trees(
    tokens=columns(prompts, state.tokens).astype(jnp.int32),
    positions=columns(jnp.arange(length), lengths[:, None, None] + slot),
    subtree_end=columns(jnp.maximum(ends.max(1), lengths)[:, None], ends[..., None]),
    parents=columns(jnp.arange(length) - 1, before, -1),
    response_ids=columns(-1, jnp.arange(responses)[:, None], -1),
    prompt_ends=lengths[:, None] - 1,
    response_ends=ends[:, None] - 1,
    labels={
      'log_probs': columns(0.0, state.log_probs, 0.0),
      'sampler_log_probs': columns(0.0, state.sampler_log_probs, 0.0),
      'mask': columns(0.0, 1.0, 0.0),
      'finished': state.finished[:, None].astype(jnp.int32),
    },
  )
