"""A reward model is a backbone and a head."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int

from rmjax import named
from rmjax.backbones.decoder import Decoder, DecoderConfig
from rmjax.backbones.lora import add_lora
from rmjax.errors import InputError
from rmjax.trees import Array, gather, Trees


class RewardModel(nn.Module):
  """Scores every response of a batch of trees, each prompt computed once.

  Attributes:
    backbone: tokens to hidden states [R, T, H].
    head: hidden states of responses and prompts to scores; see `rmjax.heads`. One whose `reads_logits` is true gets the next-token logits at
      each response's last token in place of its hidden state.
  """

  backbone: Decoder
  head: nn.Module

  def __call__(self, batch: Trees) -> Any:
    """The head's scores, a pytree with leading dims [R, S, N] (or [R, S] for what belongs to a prompt).

    Where `response_ends` or `prompt_ends` is -1 they are those of a hidden state that is zero.
    """
    hidden = self.backbone(batch.tokens, batch.positions, batch.subtree_end)
    responses = _states(hidden, batch.response_ends)
    if getattr(self.head, 'reads_logits', False):
      responses = self.backbone.unembed(responses)
    return self.head(responses, _states(hidden, batch.prompt_ends))


def _states(hidden: Float[Array, 'R T H'], ends: Int[Array, 'R *S']) -> Float[Array, 'R *S H']:
  """Hidden states at `ends`; zero where absent, so that no score depends on another tree's text or on how many places are empty."""
  return jnp.where(ends[..., None] >= 0, gather(hidden, ends), 0)


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
  return RewardModel(add_lora(backbone, **lora) if lora['rank'] else backbone, named.build('model.head', 'rmjax.heads.scalar:ScalarHead', **head))
