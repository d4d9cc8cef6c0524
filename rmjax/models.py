"""A reward model is a backbone and a head."""

from typing import Any

import flax.linen as nn

from rmjax.backbones.decoder import Decoder
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
