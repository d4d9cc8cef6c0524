"""Responses of a decoder to prompts, in one jit: each prompt is computed once, and its N responses share its cache.

Dimensions: P prompts, N responses to each, L prompt length, M new tokens, V vocabulary, T = L + N M columns.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int, Shaped
import numpy as np

from rmjax.backbones.decoder import Decoder
from rmjax.decoding.sampling import Sampling
from rmjax.decoding.steps import any_lane, blank, forward, lay_out, make_caches, make_draw, make_network, make_request, prefill, Processor, unembed
from rmjax.errors import InputError
from rmjax.trees import Array, Trees


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
  cache_dtype: str | None = None,
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
    cache_dtype: of the keys and values that are kept: 'bfloat16', 'int8' (with a float32 scale for each token and head, so 1 + 4 / head size bytes a
      number), or None for the decoder's. Where it is not the decoder's, a response's tokens after the first are drawn from a model that is a little
      another than the one that trains: `log_probs` are that model's, and no longer what the training forward gives.

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
  network = make_network(decoder, params, cache_dtype)
  request = make_request(
    decoder.config, prompts, lengths, key, responses=responses, max_new_tokens=max_new_tokens, budgets=budgets, allowed=allowed
  )  # fmt: skip
  draw = make_draw(decoder.config, sampling=sampling, stop_tokens=stop_tokens, stop_table=stop_table, processor=processor)
  last, of_prompts = prefill(network, request)
  shape = request.budgets.shape
  caches = make_caches(network, of_prompts, shape[0] * shape[1], max_new_tokens)
  logits = unembed(network, last)[:, None]
  state = draw(jnp.broadcast_to(logits, (*shape, logits.shape[-1])), jnp.int32(0), blank(request.budgets, max_new_tokens), request)

  def advance(carry):
    """Computes token number `step` of every response, and draws the next."""
    step, state, caches = carry
    tokens = jax.lax.dynamic_index_in_dim(state.tokens, step, 2, keepdims=False)
    hidden, caches = forward(network, caches, tokens, request.lengths, step, step)
    return step + 1, draw(unembed(network, hidden), step + 1, state, request), caches

  more = lambda carry: (carry[0] < max_new_tokens - 1) & any_lane(carry[1].alive)
  _, state, _ = jax.lax.while_loop(more, advance, (jnp.int32(0), state, caches))
  return lay_out(request, state)
