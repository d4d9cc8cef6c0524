"""Token spaces so small that all responses can be listed: exact returns, gradients, KL and optimal policies, by summing over them.

A tabular policy is logits [K, V], one distribution for each of the K prefixes; leading dimensions, such as one for prompts, may come before.

Dimensions: X prompts, Y responses that there are, L longest length, K prefixes, V vocabulary, G responses of a group.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, ScalarLike
import numpy as np

from rmjax.errors import InputError
from rmjax.trees import Array, Trees

LARGEST = 1 << 20  # responses that are worth listing


class Space(NamedTuple):
  """All responses of a vocabulary and a length.

  Attributes:
    tokens: int32[Y, L]; 0 past the end.
    mask: float32[Y, L]; 1 on tokens, the stop token included.
    prefixes: int32[Y, L], number of the prefix before each token; 0 is the empty one.
    shape: (K, V) of a tabular policy.
  """

  tokens: Int[np.ndarray, 'Y L']
  mask: Float[np.ndarray, 'Y L']
  prefixes: Int[np.ndarray, 'Y L']
  shape: tuple[int, int]


def space(vocab: int, length: int, *, end: int = -1) -> Space:
  """Lists all responses.

  Args:
    vocab: V.
    length: L.
    end: the token that ends a response; one that does not end is cut off after L tokens. -1 for none: all have L tokens.

  Raises:
    InputError: there are too many, or none.
  """
  if vocab < 1 or length < 1 or end >= vocab:
    raise InputError(f'a space of vocab = {vocab}, length = {length}, end = {end}: sizes are at least 1, and the end is a token of the vocabulary')
  if vocab**length > LARGEST:
    raise InputError(f'a space of {vocab}^{length} responses is too large to list; at most {LARGEST}')
  tokens = np.indices((vocab,) * length).reshape(length, -1).T.astype(np.int32)
  ended = np.cumsum(tokens == end, 1) - (tokens == end) > 0
  tokens = np.unique(np.where(ended, -1, tokens), axis=0)  # of those that differ after their end one is left
  mask = tokens >= 0
  tokens = np.where(mask, tokens, 0)
  place = np.zeros_like(tokens)  # of the prefix among those of its length
  for t in range(1, length):
    place[:, t] = place[:, t - 1] * vocab + tokens[:, t - 1]
  first = (vocab ** np.arange(length) - 1) // max(vocab - 1, 1) if vocab > 1 else np.arange(length)
  prefixes = np.where(mask, place + first, 0).astype(np.int32)
  return Space(tokens, mask.astype(np.float32), prefixes, (int(first[-1]) + vocab ** (length - 1), vocab))


def token_log_probs(logits: Float[Array, '*X K V'], s: Space) -> Float[Array, '*X Y L']:
  """Log-prob of each token of each response; 0 past its end."""
  return jax.nn.log_softmax(logits)[..., s.prefixes, s.tokens] * s.mask


def log_probs(logits: Float[Array, '*X K V'], s: Space) -> Float[Array, '*X Y']:
  """Log-prob of each response; those of all responses sum to one."""
  return token_log_probs(logits, s).sum(-1)


def expected(values: Float[Array, '*X Y'], logits: Float[Array, '*X K V'], s: Space) -> Float[Array, '*X']:
  """Expectation of a number of responses, such as the reward, under a policy. Its gradient by the logits is the exact policy gradient."""
  return jnp.sum(jnp.exp(log_probs(logits, s)) * values, -1)


def divergence(logits: Float[Array, '*X K V'], ref_logits: Float[Array, '*X K V'], s: Space) -> Float[Array, '*X']:
  """KL(policy || reference) of responses, in nats."""
  ours = log_probs(logits, s)
  return jnp.sum(jnp.exp(ours) * (ours - log_probs(ref_logits, s)), -1)


def optimal_log_probs(rewards: Float[Array, '*X Y'], ref_log_probs: Float[Array, '*X Y'], beta: ScalarLike) -> Float[Array, '*X Y']:
  """The policy over responses that maximises E[reward] - beta KL(policy || reference): log of ref * exp(reward / beta) / Z.

  The value that it attains is beta log Z, with log Z the logsumexp of log ref + reward / beta.
  """
  return jax.nn.log_softmax(ref_log_probs + rewards / beta)


def to_logits(response_log_probs: Float[Array, '*X Y'], s: Space) -> Float[Array, '*X K V']:
  """The tabular policy of a distribution over responses: of each prefix, log of the mass that goes on with each token (less a constant)."""
  shape = response_log_probs.shape[:-1]
  keys = (s.prefixes * s.shape[1] + s.tokens)[s.mask > 0]
  rows = np.broadcast_to(np.arange(len(s.tokens))[:, None], s.mask.shape)[s.mask > 0]
  top = jnp.max(response_log_probs, -1, keepdims=True)
  mass = jnp.exp(response_log_probs - top)[..., rows]
  total = jnp.zeros((*shape, s.shape[0] * s.shape[1])).at[..., keys].add(mass)
  return jnp.log(jnp.maximum(total, 1e-37)).reshape(*shape, *s.shape)


def rollout(responses: Int[Array, 'X G'], s: Space) -> Trees:
  """Groups of responses, by number, as trees: row x holds a prompt of one token, x itself, and its G responses. It has the label `mask`."""
  prompts, group = responses.shape
  length = s.tokens.shape[1]
  tokens, mask = jnp.asarray(s.tokens)[responses], jnp.asarray(s.mask)[responses]  # [X, G, L]
  real = mask > 0
  column = 1 + jnp.arange(group * length).reshape(group, length)
  lengths = jnp.sum(real, -1)
  own = lambda x, fill: jnp.where(real, x, fill).reshape(prompts, -1).astype(jnp.int32)
  first = lambda value: jnp.full((prompts, 1), value, jnp.int32)
  with_prompt = lambda prompt, x: jnp.concatenate([prompt, x], 1)
  return Trees(
    tokens=with_prompt(jnp.arange(prompts, dtype=jnp.int32)[:, None], own(tokens, 0)),
    positions=with_prompt(first(0), own(1 + jnp.arange(length), 0)),
    subtree_end=with_prompt(first(1 + group * length), own(column[None, :, :1] + lengths[..., None], 0)),
    parents=with_prompt(first(-1), own(jnp.where(jnp.arange(length) > 0, column - 1, 0), -1)),
    response_ids=with_prompt(first(-1), own(jnp.arange(group)[:, None], -1)),
    prompt_ends=first(0),
    response_ends=(column[:, 0] + lengths - 1)[:, None].astype(jnp.int32),
    labels={'mask': with_prompt(jnp.zeros((prompts, 1)), mask.reshape(prompts, -1))},
  )


def rollout_log_probs(logits: Float[Array, 'X K V'], responses: Int[Array, 'X G'], s: Space) -> Float[Array, 'X T']:
  """Log-probs of the tokens of `rollout(responses, s)` under a tabular policy with a table for each prompt."""
  picked = jax.vmap(lambda table, chosen: table[chosen])(token_log_probs(logits, s), responses)
  return jnp.concatenate([jnp.zeros((len(responses), 1)), picked.reshape(len(responses), -1)], 1)
