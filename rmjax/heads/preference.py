"""General preference head: responses as points of R^2K, a preference as a sum of signed areas, so that cycles can be told.

Dimensions: B any leading ones, N responses, H hidden, K planes, M opponents.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from rmjax.errors import InputError
from rmjax.trees import Array

GATES = ('none', 'softmax', 'softmax_k', 'softplus')


class PreferenceScores(NamedTuple):
  """What the head says of N responses to one prompt.

  Attributes:
    embeddings: each response's points, one a plane; all zero where the response is absent.
    gate: weight of each plane, from the prompt alone, not negative.
    temperature: what areas are divided by.
  """

  embeddings: Float[Array, '*B N K 2']
  gate: Float[Array, '*B K']
  temperature: Float[Array, '*B']


class PreferenceEmbeddingHead(nn.Module):
  """Embeds each response on its own, so that comparing N of them takes N embeddings, not N^2 passes.

  Embeddings are free up to one rotation in each plane: compare logits across runs, never embeddings.

  Attributes:
    dim: 2K, numbers in an embedding.
    gate: weights of the planes. 'softmax' sums to 1 as in the released models, 'softmax_k' is K times that (mean 1, the scale of 'none'),
      'softplus' is only positive; 'none' weighs all planes by 1 and has no parameters. 'softmax' does nothing where K = 1.
    normalize: embeddings have length 1, so that |logit| is at most max(gate) / temperature.
    temperature: of the preference; |logit| <= 10 with the default, a normalised embedding and a gate that sums to 1.
    learn_temperature: it is max(softplus(t), 0.01) with t a parameter that starts at -2.25 (0.1002) instead.

  Raises:
    InputError: `dim` is not even and positive, `temperature` not positive, or there is no such gate.

  Reference: Zhang et al., General Preference Modeling (2024), sections 4.1-4.3; initial scale and gates as in its code.
  """

  dim: int = 8
  gate: str = 'softmax'
  normalize: bool = True
  temperature: float = 0.1
  learn_temperature: bool = False

  def __post_init__(self):
    if self.dim < 2 or self.dim % 2:
      raise InputError(f'model.head.dim = {self.dim}: it must be even and positive, two numbers a plane')
    if self.gate not in GATES:
      raise InputError(f"model.head.gate = '{self.gate}': choose one of {', '.join(GATES)}")
    if not self.temperature > 0:
      raise InputError(f'model.head.temperature = {self.temperature}: it must be positive')
    super().__post_init__()

  @nn.compact
  def __call__(self, response_hidden: Float[Array, '*B N H'], prompt_hidden: Float[Array, '*B H']) -> PreferenceScores:
    init = nn.with_logical_partitioning(nn.initializers.normal(1 / (response_hidden.shape[-1] + 1)), ('embed', None))
    dense = lambda features, name: nn.Dense(features, use_bias=False, kernel_init=init, dtype=jnp.float32, name=name)
    v = dense(self.dim, 'embedding')(response_hidden)
    if self.normalize:
      # v / max(|v|, 1e-6), written so that the zero vector of an absent response has a gradient: a norm has none there.
      v = v / jnp.sqrt(jnp.maximum(jnp.sum(v**2, -1, keepdims=True), 1e-12))
    planes = self.dim // 2
    if self.gate == 'none':
      gate = jnp.ones((*prompt_hidden.shape[:-1], planes), jnp.float32)
    else:
      z = dense(planes, 'eigenvalues')(prompt_hidden)
      gate = nn.softplus(z) if self.gate == 'softplus' else nn.softmax(z) * (planes if self.gate == 'softmax_k' else 1)
    temperature = jnp.asarray(self.temperature, jnp.float32)
    if self.learn_temperature:
      init = nn.with_logical_partitioning(nn.initializers.constant(-2.25), ())
      temperature = jnp.maximum(nn.softplus(self.param('raw_temperature', init, ())), 1e-2)
    return PreferenceScores(v.reshape(*v.shape[:-1], planes, 2), gate, jnp.broadcast_to(temperature, prompt_hidden.shape[:-1]))

  @nn.nowrap
  def preference_logits(self, scores: PreferenceScores) -> Float[Array, '*B N N']:
    """s[i, j] / temperature with s[i, j] = sum_k gate[k] (x_i[k] y_j[k] - y_i[k] x_j[k]); skew-symmetric by construction.

    Bradley-Terry where v = [r, 1]: s[i, j] = r[i] - r[j]. The paper's section 4.2 writes the negative of this; its definition 4.3 and code do not.
    """
    area = jnp.einsum('...k,...ik,...jk->...ij', scores.gate, scores.embeddings[..., 0], scores.embeddings[..., 1])
    return (area - jnp.swapaxes(area, -1, -2)) / scores.temperature[..., None, None]

  @nn.nowrap
  def reward(self, scores: PreferenceScores, opponents: Float[Array, 'M K 2'] | None = None) -> Float[Array, '*B N']:
    """Mean preference logit of each response over its opponents.

    Args:
      scores: of the responses.
      opponents: embeddings to compare with; None compares with the group's own responses, the response itself included (it adds 0).
        Embeddings that are zero belong to absent responses and do not count.

    Returns:
      The mean, so that empty places in a batch change nothing. A group of one has reward 0 and an absent response too. The rank score
      of the released code is twice this, since it takes s[i, j] - s[j, i].

    Reference: Zhang et al. (2024), section 5 (the score against a policy, over its samples).
    """
    if opponents is None:
      logits, others = self.preference_logits(scores), scores.embeddings
    else:
      weighted = scores.embeddings * (scores.gate / scores.temperature[..., None])[..., None, :, None]
      others = jnp.asarray(opponents, jnp.float32)
      logits = jnp.einsum('...ik,jk->...ij', weighted[..., 0], others[..., 1]) - jnp.einsum('...ik,jk->...ij', weighted[..., 1], others[..., 0])
    present = jnp.sum(jnp.any(others != 0, (-2, -1)), -1)
    return jnp.sum(logits, -1) / jnp.maximum(present, 1)[..., None]
