"""The networks of policy optimization: a language model, and a critic that tells what a state is worth."""

import flax.linen as nn
from jaxtyping import Float

from rmjax.backbones.decoder import Decoder
from rmjax.heads.value import values_before
from rmjax.trees import Array, Trees


class LanguageModel(nn.Module):
  """A decoder with its output matrix; parameters are {'backbone': the decoder's}."""

  backbone: Decoder

  def __call__(self, batch: Trees) -> Float[Array, 'R T V']:
    """Next-token logits in float32."""
    return self.backbone.logits(batch.tokens, batch.positions, batch.subtree_end)


class Critic(nn.Module):
  """A backbone and a head of values.

  Attributes:
    backbone: tokens to hidden states [R, T, D].
    head: hidden states to values [R, T, C], one a signal.
  """

  backbone: Decoder
  head: nn.Module

  def __call__(self, batch: Trees) -> Float[Array, 'R T C']:
    """Values, in float32, of the state before each token; 0 where there is no token before."""
    return values_before(self.head(self.backbone(batch.tokens, batch.positions, batch.subtree_end)), batch)
