"""Responses of a decoder to a queue of prompts, in one jit: what a response that has ended leaves free goes to the next one.

`generate` holds P N responses until the longest has ended; this holds S, and each takes only as many steps as it has tokens. A response's first
token needs the prompt alone, so n tokens take n - 1 steps, and all of them together what a queue of S servers takes.

Dimensions: P prompts, N responses to each, J = P N, S slots, L prompt length, M new tokens, V vocabulary, D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int, Shaped

from rmjax.backbones.decoder import Decoder
from rmjax.decoding.sampling import Sampling
from rmjax.decoding.steps import any_lane, blank, forward, lay_out, make_caches, make_draw, make_network, make_request, prefill, Processor, Request, unembed
from rmjax.errors import InputError
from rmjax.trees import Array, Trees


def generate_queue(
  decoder: Decoder,
  params: Any,
  prompts: Int[Array, 'P L'],
  lengths: Int[Array, 'P'],
  key: Shaped[Array, ''] | Shaped[Array, 'P N'],
  *,
  slots: int,
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
  """What `rmjax.decoding.generate.generate` gives, S responses at a time: arguments are those, keys draw the same tokens, and it is as pure.

  Responses wait in the order [P, N] and go to the slots as these fall free. All prompts are computed first, in one pass, and are kept; a slot has a
  copy of its prompt, made when it goes on to another one. So a layer's cache has P L + S (L + M - 1) tokens, where `generate` has P L + P N (M - 1),
  and a step reads a prompt once for each slot, not once for all of its responses. This pays where lengths differ much or P N responses do not fit;
  where they fit and have the same length, `generate` is the faster. Cut a queue of prompts that do not fit themselves into several calls.

  Args:
    decoder: as for `generate`, and so are all arguments that are not named here.
    params: its parameters.
    prompts: token ids, padded at their ends.
    lengths: of the prompts.
    key: one key, or [P, N] of them.
    slots: S, responses that are held at a time; more than there are change nothing. On a mesh, a multiple of the devices that share rows.
    responses: N.
    max_new_tokens: M.
    sampling: how tokens are drawn.
    stop_tokens: end a response.
    stop_table: of the stop strings that do.
    budgets: most tokens of each response.
    allowed: tokens that may be drawn.
    processor: changes the logits of a response by itself, so with P = N = 1, under vmap.
    cache_dtype: of the keys and values that are kept.

  Raises:
    InputError: as by `generate`, or there is no slot.
  """
  if slots < 1:
    raise InputError(f'slots = {slots}: there must be at least 1')
  network = make_network(decoder, params, cache_dtype)
  request = make_request(
    decoder.config, prompts, lengths, key, responses=responses, max_new_tokens=max_new_tokens, budgets=budgets, allowed=allowed
  )  # fmt: skip
  draw = make_draw(decoder.config, sampling=sampling, stop_tokens=stop_tokens, stop_table=stop_table, processor=processor)
  last, of_prompts = prefill(network, request)
  jobs = request.budgets.size  # a response's number; this one is nobody's
  slots = min(slots, jobs)
  ring = max(max_new_tokens - 1, 1)
  real = lambda held: jnp.minimum(held, jobs - 1)

  def draw_for(held, hidden, state):
    """Draws the next token of the responses `held` [S], each as if it were alone."""
    rows = jax.tree.map(lambda x: x[real(held), None, None], state)
    one = lambda logits, rows, job: draw(logits, rows.counts[0, 0], rows, _request_of(request, job))
    rows = jax.vmap(one)(unembed(network, hidden)[:, None, None], rows, real(held))
    return jax.tree.map(lambda all_, rows: all_.at[held].set(rows[:, 0, 0], mode='drop'), state, rows)

  def draw_first(state, held):
    return draw_for(held, last[real(held) // responses], state), None

  state = blank(request.budgets.reshape(-1), max_new_tokens)
  state, _ = jax.lax.scan(draw_first, state, jnp.arange(-(-jobs // slots) * slots).reshape(-1, slots))
  queue = jnp.argsort(~state.alive, stable=True)
  queue = jnp.where(jnp.arange(jobs) < jnp.sum(state.alive), queue, jobs)

  def advance(carry):
    """Gives free slots their prompts, computes the last token of every slot's response, and draws the next."""
    column, waiting, held, prompt, caches, state = carry
    # Before the step: after it, XLA would copy the caches of all slots twice at every step, where none has changed too.
    prompt, caches = _copy_prompts(prompt, jnp.where(held < jobs, held // responses, prompt), caches, of_prompts)
    step = state.counts[real(held)] - 1
    hidden, caches = forward(network, caches, state.tokens[real(held), step][:, None], request.lengths[prompt], step, column)
    state = draw_for(held, hidden[:, 0], state)
    free = (held == jobs) | ~state.alive[real(held)]
    held = jnp.where(free, queue.at[waiting + jnp.cumsum(free) - 1].get(mode='fill', fill_value=jobs), held)
    return (column + 1) % ring, waiting + jnp.sum(free), held, prompt, caches, state

  held = queue[:slots]
  prompt = real(held) // responses
  caches = make_caches(network, jax.tree.map(lambda x: x[prompt], of_prompts), slots, max_new_tokens)
  carry = jnp.int32(0), jnp.int32(slots), held, prompt, caches, state
  *_, state = jax.lax.while_loop(lambda carry: any_lane(carry[2] < jobs), advance, carry)
  return lay_out(request, jax.tree.map(lambda x: x.reshape(*request.budgets.shape, *x.shape[1:]), state))


def _request_of(request, job):
  """Of one response, with P = N = 1."""
  p, n = jnp.divmod(job, request.budgets.shape[1])
  allowed = request.allowed
  if allowed is not None and allowed.ndim == 3:
    allowed = allowed[p % allowed.shape[0], n % allowed.shape[1]]
  one = lambda x: x[None, None]
  return Request(request.prompts[p][None], request.lengths[p][None], one(request.keys[p, n]), one(request.budgets[p, n]), allowed)


def _copy_prompts(prompt, wanted, caches, of_prompts):
  """Slots with copies of the prompts that are wanted [S], and which they are. One slot at a time: most steps want none, and no copy is touched."""

  def copy(carry):
    prompt, copies = carry
    slot = jnp.argmax(prompt != wanted)  # in a lane that wants none, the first slot, which gets what it has
    put = lambda copies, all_: jax.lax.dynamic_update_index_in_dim(
      copies, jax.lax.dynamic_index_in_dim(all_, wanted[slot], keepdims=False), slot, 0
    )  # fmt: skip
    return prompt.at[slot].set(wanted[slot]), jax.tree.map(put, copies, of_prompts)

  copies = [(cache.prompt_keys, cache.prompt_values) for cache in caches]
  prompt, copies = jax.lax.while_loop(lambda carry: any_lane(carry[0] != wanted), copy, (prompt, copies))
  return prompt, [cache._replace(prompt_keys=keys, prompt_values=values) for cache, (keys, values) in zip(caches, copies, strict=True)]
