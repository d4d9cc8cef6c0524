"""Responses of a decoder to prompts, in one jit: each prompt is computed once, and its N responses share its cache.

Dimensions: P prompts, N responses to each, L prompt length, M new tokens, V vocabulary, T = L + N M columns.
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
from rmjax.decoding.cache import Cache, cached_attention
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


class _State(NamedTuple):
  step: Int[Array, '']
  tokens: Int[Array, 'P N M']
  log_probs: Float[Array, 'P N M']
  sampler_log_probs: Float[Array, 'P N M']
  counts: Int[Array, 'P N']  # tokens drawn
  alive: Bool[Array, 'P N']
  finished: Bool[Array, 'P N']
  matched: Int[Array, 'P N']  # state of the stop strings' automaton


def pack_prompts(prompts: Sequence[Sequence[int]], *, length: int, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Prompts of different lengths as arrays, padded at their ends.

  Args:
    prompts: token ids.
    length: L, columns of a prompt.
    rows: P; prompts that are missing are rows of length 0, which get no responses. None for as many as there are.

  Returns:
    Tokens int32[P, L] and lengths int32[P].

  Raises:
    InputError: a prompt is empty, too long or has a negative token, or there are more of them than rows.
  """
  rows = len(prompts) if rows is None else rows
  if not 0 < len(prompts) <= rows:
    raise InputError(f'{len(prompts)} prompts: there must be at least one and at most rows = {rows}')
  tokens, lengths = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32)
  for i, prompt in enumerate(prompts):
    if not len(prompt):
      raise InputError(f'prompt {i} is empty: give it at least one token, such as BOS')
    if len(prompt) > length:
      raise InputError(f'prompt {i} has {len(prompt)} tokens, and the cache has length = {length} for prompts: shorten it, or raise length')
    if min(prompt) < 0:
      raise InputError(f'prompt {i} has the token {min(prompt)}: ids are not negative')
    tokens[i, : len(prompt)], lengths[i] = prompt, len(prompt)
  return tokens, lengths


def generate(
  decoder: Decoder,
  params: Any,
  prompts: Int[Array, 'P L'],
  lengths: Int[Array, 'P'],
  key: Shaped[Array, ''] | Shaped[Array, 'P N'],
  *,
  responses: int,
  max_new_tokens: int,
  sampling: Sampling = Sampling(),  # noqa: B008 - it is frozen
  stop_tokens: Sequence[int] = (),
  stop_table: Int[Array, 'states V'] | None = None,
  budgets: Int[Array, '#P #N'] | None = None,
  allowed: Bool[Array, '#P #N V'] | Bool[Array, 'V'] | None = None,
  processor: Processor | None = None,
) -> Trees:
  """N responses to each prompt. Pure: jit it, and vmap it over `params`, `key` and `sampling.temperature`.

  The loop ends when all responses have ended; under vmap, when all of all lanes have. Logits go through `processor`, `allowed`, the
  temperature and the sampler's truncation, in this order.

  Args:
    decoder: its architecture and dtype are used. Adapters must be merged into `params` first, `rmjax.backbones.lora.merge_lora`.
    params: the decoder's parameters, unboxed; `init` by `Decoder.logits` where the output matrix is not tied.
    prompts: token ids, padded at their ends.
    lengths: of the prompts; a prompt of length 0 gets no responses.
    key: one key, or [P, N] of them. A response depends on its own key and prompt alone, not on what else is in the batch.
    responses: N.
    max_new_tokens: M.
    sampling: how tokens are drawn.
    stop_tokens: a response ends with the first of these, which belongs to it.
    stop_table: a response ends with the token that completes a stop string; see `rmjax.decoding.stops.stop_table`.
    budgets: most tokens of each response, at most M; 0 for no response.
    allowed: tokens that may be drawn; at least one everywhere.
    processor: changes logits [P, N, V]; -inf forbids a token.

  Returns:
    Trees of one slot: a prompt in the columns from 0 on, response n in those from L + n M on. Its labels are

    - `log_probs` float32[P, T]: log-probability of each response token under the model at the sampling temperature (1 if that is 0), whatever
      processor, allowed tokens and truncation did: what the training forward gives;
    - `sampler_log_probs` float32[P, T]: under the distribution it was drawn from;
    - `mask` float32[P, T]: 1 at response tokens, the stop token included;
    - `finished` int32[P, 1, N]: 1 where a stop token or string ended the response, 0 where it ran out of its budget.

  Raises:
    InputError: prompts and responses are longer than the decoder's positions, or an argument cannot be.
  """
  config = decoder.config
  _check(config, params, prompts, lengths, key, responses, max_new_tokens, stop_tokens, stop_table, allowed)
  model = Decoder(config, dtype=decoder.dtype)
  call = lambda method, *args: model.apply({'params': params}, *args, method=method)
  logits_of = lambda x: call(lambda model, x: model.unembed(model.norm(x)), x)
  shape = (prompts.shape[0], responses)
  keys = key if key.ndim else jax.random.split(key, shape)
  budgets = jnp.full(shape, max_new_tokens) if budgets is None else jnp.minimum(jnp.broadcast_to(budgets, shape), max_new_tokens)
  budgets = jnp.where(jnp.asarray(lengths)[:, None] > 0, budgets, 0)

  def choose(logits, state):
    """Draws token number `state.step` of every response that is alive."""
    scaled = candidates = sampling_lib.scale(logits, sampling)
    if processor or allowed is not None:
      if processor:
        logits = processor(logits, Progress(state.step, state.tokens, prompts, lengths))
      if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
      candidates = sampling_lib.scale(logits, sampling)
    candidates = sampling_lib.truncate(candidates, sampling)
    folded = jax.vmap(lambda key: jax.random.fold_in(key, state.step))(keys.reshape(-1)).reshape(shape)
    tokens = jnp.where(state.alive, sampling_lib.draw(folded, candidates, sampling), 0)
    write = lambda values, new: jax.lax.dynamic_update_index_in_dim(values, jnp.where(state.alive, new, 0), state.step, 2)
    log_probs = sampling_lib.log_prob(scaled, tokens)
    sampler_log_probs = log_probs if candidates is scaled else sampling_lib.log_prob(candidates, tokens)
    sampler_log_probs = jnp.where(jnp.asarray(sampling.temperature) > 0, sampler_log_probs, 0.0)
    hit, matched = jnp.isin(tokens, jnp.array(stop_tokens, jnp.int32)), state.matched
    if stop_table is not None:
      matched = jnp.asarray(stop_table)[matched, tokens]
      hit |= matched == stop_table.shape[0] - 1
    counts = state.counts + state.alive
    return _State(
      step=state.step + 1,
      tokens=write(state.tokens, tokens),
      log_probs=write(state.log_probs, log_probs),
      sampler_log_probs=write(state.sampler_log_probs, sampler_log_probs),
      counts=counts,
      alive=state.alive & ~hit & (counts < budgets),
      finished=state.finished | state.alive & hit,
      matched=matched,
    )

  # Layers are unrolled, each with its own cache and a slice of the weights made once: see benchmarks/generate.py.
  layers = [jax.tree.map(lambda leaf, i=i: leaf[i], params['layers']) for i in range(config.num_layers)]
  block = Block(config, decoder.dtype)

  def forward(carry):
    """Computes the last drawn tokens, and draws the next."""
    state, caches = carry
    step = state.step - 1
    x = call(model.embed, jax.lax.dynamic_index_in_dim(state.tokens, step, 2, keepdims=False))
    angles = rope_angles(config, jnp.broadcast_to(jnp.asarray(lengths)[:, None] + step, shape))
    kept = []
    for weights, window, cache in zip(layers, layer_windows(config), caches, strict=True):
      attend = functools.partial(_attend, cache, lengths, step, window)
      x, cache = block.apply({'params': weights}, x, window, angles, None, None, attend)
      kept.append(cache)
    return choose(logits_of(x), state), kept

  last, caches = _prefill(model, params, prompts, lengths, responses, max_new_tokens)
  blank = jnp.zeros((*shape, max_new_tokens))
  state = _State(
    step=jnp.int32(0),
    tokens=blank.astype(jnp.int32),
    log_probs=blank,
    sampler_log_probs=blank,
    counts=jnp.zeros(shape, jnp.int32),
    alive=budgets > 0,
    finished=jnp.zeros(shape, bool),
    matched=jnp.zeros(shape, jnp.int32),
  )
  logits = logits_of(last)[:, None]
  state = choose(jnp.broadcast_to(logits, (*shape, logits.shape[-1])), state)
  more = lambda carry: (carry[0].step < max_new_tokens) & _any(carry[0].alive)
  state, _ = jax.lax.while_loop(more, forward, (state, caches))
  return _lay_out(jnp.asarray(prompts), jnp.asarray(lengths), state)


def _check(config, params, prompts, lengths, key, responses, max_new_tokens, stop_tokens, stop_table, allowed):
  if responses < 1 or max_new_tokens < 1:
    raise InputError(f'responses = {responses}, max_new_tokens = {max_new_tokens}: they must be at least 1')
  if key.shape not in ((), (prompts.shape[0], responses)):
    raise InputError(f'key has shape {key.shape}: give one key, or responses = {responses} for each of {prompts.shape[0]} prompts')
  longest = prompts.shape[1] + max_new_tokens
  if longest > config.max_positions:
    raise InputError(
      f'prompts of {prompts.shape[1]} and responses of {max_new_tokens} tokens need {longest} positions, and the decoder has {config.max_positions}: '
      'shorten one or the other'
    )
  if wrong := [token for token in stop_tokens if not 0 <= token < config.vocab_size]:
    raise InputError(f'stop token {wrong[0]} is not in the vocabulary of {config.vocab_size}')
  if stop_table is not None and stop_table.shape[1] != config.vocab_size:
    raise InputError(f'the stop table is for {stop_table.shape[1]} tokens, and the decoder has {config.vocab_size}')
  if isinstance(allowed, np.ndarray) and not allowed.any(-1).all():
    raise InputError('allowed leaves no token somewhere: it must leave at least one, such as a stop token')
  if any(getattr(path[-1], 'key', '').endswith('_lora_a') for path, _ in jax.tree_util.tree_leaves_with_path(params)):
    raise InputError('the parameters have adapters, which generation does not compute: merge them first, rmjax.backbones.lora.merge_lora')
  if 'unembedding' not in params and not config.tie_embeddings:
    raise InputError('the parameters have no output matrix, and the decoder does not tie it to the embedding: init by Decoder.logits')
  if isinstance(prompts, np.ndarray) and isinstance(lengths, np.ndarray):
    if prompts.max(initial=0) >= config.vocab_size:
      raise InputError(
        f'a prompt has the token {prompts.max()}, and the vocabulary has {config.vocab_size}: use the tokenizer that the decoder was trained with'
      )
    if lengths.max(initial=0) > prompts.shape[1]:
      raise InputError(f'a prompt has {lengths.max()} tokens, and the cache has {prompts.shape[1]} columns for prompts')


def _prefill(model, params, prompts, lengths, responses, max_new_tokens):
  """Hidden states [P, D] of the prompts' last tokens, before the last norm, and every layer's cache."""
  config = model.config
  column = jnp.arange(prompts.shape[1])
  positions = jnp.broadcast_to(column, prompts.shape)
  subtree_end = jnp.where(column < jnp.asarray(lengths)[:, None], jnp.asarray(lengths)[:, None], 0)
  angles, block = rope_angles(config, positions), Block(config, model.dtype)

  def layer(x, scanned):
    weights, window = scanned
    attend = lambda q, k, v, **options: (tree_attention(q, k, v, subtree_end, positions, **options), (k.swapaxes(1, 2), v.swapaxes(1, 2)))
    return block.apply({'params': weights}, x, window, angles, None, None, attend)

  x = model.apply({'params': params}, jnp.asarray(prompts), method=model.embed)
  x, (keys, values) = jax.lax.scan(layer, x, (params['layers'], jnp.array(layer_windows(config), jnp.int32)))
  last = jnp.take_along_axis(x, jnp.maximum(jnp.asarray(lengths) - 1, 0)[:, None, None], 1)[:, 0]
  # A response's last token is never computed, so it needs no slot.
  empty = jnp.zeros((prompts.shape[0] * responses, config.num_kv_heads, max(max_new_tokens - 1, 1), config.head_dim), keys.dtype)
  return last, [Cache(keys[i], values[i], empty, empty) for i in range(config.num_layers)]


def _attend(cache, lengths, step, static_window, q, k, v, *, window, **options):
  return cached_attention(q, k, v, cache, lengths, step, window=None if window is None else static_window, **options)


@jax.custom_batching.custom_vmap
def _any(flags):
  return jnp.any(flags)


@_any.def_vmap
def _any_of_all_lanes(axis_size, in_batched, flags):
  """One answer for all lanes: a loop with an answer for each would copy the caches of those that are done at every step."""
  del axis_size, in_batched
  return _any(flags), False


def _lay_out(prompts, lengths, state):
  """The batch of trees that prompts and responses are."""
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
