"""A reward model is a backbone and a head."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from rmjax import named
from rmjax.backbones.decoder import Decoder, DecoderConfig
from rmjax.backbones.lora import add_lora
from rmjax.errors import InputError
from rmjax.trees import Array, gather, response_lengths, response_sums, Trees

CHUNK = 256  # columns whose next-token logits are held at a time


class RewardModel(nn.Module):
  """Scores every response of a batch of trees, each prompt computed once.

  Attributes:
    backbone: tokens to hidden states [R, T, H].
    head: hidden states of responses and prompts to scores; see `rmjax.heads`. One whose `reads_logits` is true gets the next-token logits at
      each response's last token in place of its hidden state; one whose `reads_log_probs` is true gets log-probabilities of whole responses,
      and a reference's; one that has `of_logits` gets what that makes of the logits that predict each token, see `per_token`, and the batch, after
      the hidden states at those columns [R, S, N] that its `columns` gives of the batch, if it has that too.
    reference: a further backbone for that, which is never trained; None takes `backbone` without its adapters where there is need of one.
  """

  backbone: Decoder
  head: nn.Module
  reference: Decoder | None = None

  def __call__(self, batch: Trees) -> Any:
    """The head's scores, a pytree with leading dims [R, S, N] (or [R, S] for what belongs to a prompt).

    Where `response_ends` or `prompt_ends` is -1 they are those of a hidden state that is zero.
    """
    if getattr(self.head, 'reads_log_probs', False):
      return self._implicit(batch)
    if hasattr(self.head, 'of_logits'):
      hidden = self.backbone(batch.tokens, batch.positions, batch.subtree_end)
      states = [_states(hidden, self.head.columns(batch))] if hasattr(self.head, 'columns') else []
      return self.head(*states, *per_token(self.backbone, batch, self.head.of_logits, hidden=hidden), batch)
    hidden = self.backbone(batch.tokens, batch.positions, batch.subtree_end)
    responses = _states(hidden, batch.response_ends)
    if getattr(self.head, 'reads_logits', False):
      responses = self.backbone.unembed(responses)
    return self.head(responses, _states(hidden, batch.prompt_ends))

  def _implicit(self, batch: Trees) -> Any:
    lengths = response_lengths(batch)
    log_probs, confidence = _sequence_log_probs(self.backbone, batch)
    if self.head.reference == 'frozen':
      frozen = nn.map_variables(_sequence_log_probs, 'params', trans_in_fn=_frozen, init=self.is_initializing())
      ref_log_probs, _ = frozen(self.reference or self.backbone, batch)
    elif self.head.reference == 'cached' and not self.is_initializing():
      if 'ref_log_probs' not in batch.labels:
        raise InputError("the data have no label `ref_log_probs`: add it (rmjax.evaluation.reference), or set model.head.reference = 'frozen'")
      ref_log_probs = batch.labels['ref_log_probs']
      if ref_log_probs.ndim == 2:
        ref_log_probs = response_sums(ref_log_probs, batch)
      ref_log_probs = jnp.where(lengths > 0, ref_log_probs, 0.0)
    else:
      ref_log_probs = jnp.zeros_like(log_probs)
    return self.head(log_probs, ref_log_probs, lengths, confidence / jnp.maximum(lengths, 1))


def _states(hidden: Float[Array, 'R T H'], ends: Int[Array, 'R *S']) -> Float[Array, 'R *S H']:
  """Hidden states at `ends`; zero where absent, so that no score depends on another tree's text or on how many places are empty."""
  return jnp.where(ends[..., None] >= 0, gather(hidden, ends), 0)


def _sequence_log_probs(decoder: Decoder, batch: Trees) -> tuple[Float[Array, 'R S N'], Float[Array, 'R S N']]:
  """Sums over each response's tokens of log p(token), and of log p(token) - log sum_v p(v)^2."""

  def of(logits: Array, tokens: Array) -> tuple[Array, Array]:
    total = jax.nn.logsumexp(logits, -1)
    log_p = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0] - total
    return log_p, log_p - (jax.nn.logsumexp(2 * logits, -1) - 2 * total)

  return tuple(response_sums(x, batch) for x in per_token(decoder, batch, of))


def per_token(
  decoder: Decoder,
  batch: Trees,
  of_logits: Callable[[Array, Array], tuple[Array, ...]],
  *,
  chunk: int | None = None,
  hidden: Float[Array, 'R T H'] | None = None,
) -> tuple[Float[Array, 'R T'], ...]:
  """What a function makes of the logits that predict each token of a response; 0 for other tokens.

  Logits of the whole batch, [R, T, V], are never held: they are made a few columns at a time, in the backward pass again, and not at all for columns
  in which no row has a response, such as those of prompts that a rollout has on its left.

  Args:
    decoder: bound to its parameters: a submodule, or the argument of a function under `nn.apply`.
    batch: trees; a token is predicted where its parent is.
    of_logits: (float32[R, C, V], the tokens int32[R, C]) -> float32 arrays [R, C].
    chunk: most columns whose logits are held at a time; None for `CHUNK`.
    hidden: what the decoder makes of the batch, where it is known already.
  """
  rows, length = batch.tokens.shape
  count = -(-length // (chunk or CHUNK))
  chunk = -(-length // count)

  def cut(x: Array) -> Array:
    x = jnp.pad(x, ((0, 0), (0, count * chunk - length), *((0, 0),) * (x.ndim - 2)))
    return x.reshape(rows, count, chunk, *x.shape[2:])

  def of_chunk(decoder: Decoder, carry: tuple[()], xs: tuple[Array, Array, Array]) -> tuple[tuple[()], tuple[Array, ...]]:
    hidden, tokens, known = xs
    compute = lambda decoder, hidden: of_logits(decoder.unembed(hidden), tokens)
    if decoder.is_initializing():
      return carry, compute(decoder, hidden)
    logits = jax.ShapeDtypeStruct((rows, chunk, decoder.config.vocab_size), jnp.float32)
    nothing = lambda decoder, hidden: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_logits, logits, tokens))
    return carry, nn.cond(known.any(), compute, nothing, decoder, hidden)

  scan = nn.scan(nn.remat(of_chunk, prevent_cse=False), variable_broadcast='params', split_rngs={'params': False}, in_axes=1, out_axes=1)
  if hidden is None:
    hidden = decoder(batch.tokens, batch.positions, batch.subtree_end)
  before = gather(hidden, batch.parents)
  known = (batch.response_ids >= 0) & (batch.parents >= 0)
  _, found = scan(decoder, (), (cut(before), cut(batch.tokens), cut(known)))
  return tuple(jnp.where(known, x.reshape(rows, -1)[:, :length], 0.0) for x in found)


def _frozen(variables: Any) -> Any:
  """Parameters that no gradient passes, of a decoder whose adapters are off: theirs is a product in which `lora_b` is a factor."""
  off = lambda path, x: jnp.zeros_like(x) if 'kernel_lora_b' in jax.tree_util.keystr(path) else jax.lax.stop_gradient(x)
  return jax.tree_util.tree_map_with_path(off, variables)


def build(config: DecoderConfig, *, dtype: str, remat: str, head: Mapping[str, Any], lora: Mapping[str, Any]) -> RewardModel:
  """Builds the model that a config's `model` describes.

  Args:
    config: architecture of the backbone.
    dtype: of matrix products, 'float32' or 'bfloat16'.
    remat: what is recomputed in the backward pass; see `Decoder`.
    head: dict(name, **fields), `name` the import path of a head such as 'rmjax.heads.scalar:ScalarHead'.
    lora: dict(rank, alpha, modules) of low-rank adapters; rank 0 for none.

  Raises:
    InputError: there is no such head, dtype or remat.
  """
  if dtype not in ('float32', 'bfloat16'):
    raise InputError(f"model.dtype = '{dtype}': choose 'float32' or 'bfloat16'")
  backbone = Decoder(config, dtype=jnp.dtype(dtype), remat=remat)
  built = named.build('model.head', 'rmjax.heads.scalar:ScalarHead', **head)
  if lora['rank']:
    return RewardModel(add_lora(backbone, **lora), built)
  return RewardModel(backbone, built, backbone.clone(remat='none') if getattr(built, 'reference', '') == 'frozen' else None)
