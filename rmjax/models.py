"""A reward model is a backbone and a head."""

from collections.abc import Mapping
import pkgutil
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from rmjax.backbones.decoder import Decoder, DecoderConfig
from rmjax.backbones.lora import add_lora
from rmjax.errors import InputError
from rmjax.trees import gather, Trees


class RewardModel(nn.Module):
  """Scores every response of a batch of trees, each prompt computed once.

  Attributes:
    backbone: tokens to hidden states [R, T, H].
    head: hidden states of responses and prompts to scores; see `rmjax.heads`.
  """

  backbone: Decoder
  head: nn.Module

  def __call__(self, batch: Trees) -> Any:
    """The head's scores, a pytree with leading dims [R, S, N] (or [R, S] for what belongs to a prompt); garbage where `response_ends` is -1."""
    hidden = self.backbone(batch.tokens, batch.positions, batch.subtree_end)
    return self.head(gather(hidden, batch.response_ends), gather(hidden, batch.prompt_ends))


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
  return RewardModel(add_lora(backbone, **lora) if lora['rank'] else backbone, _head(**head))


def _head(*, name: str, **fields: Any) -> nn.Module:
  try:
    return pkgutil.resolve_name(name)(**fields)
  except (ImportError, AttributeError, ValueError, TypeError) as e:
    raise InputError(f"model.head.name = '{name}' with {fields}: {e}; give an import path such as 'rmjax.heads.scalar:ScalarHead' and its fields") from e
