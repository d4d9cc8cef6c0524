"""A mixture of Bradley-Terry models: K rewards of each response, and weights that the prompt decides.

Dimensions: B any leading ones, N responses, H hidden, K components.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from rmjax.errors import InputError
from rmjax.trees import Array

GATES = ('prompt', 'static', 'uniform')


class MixtureScores(NamedTuple):
  """What the head says of N responses to one prompt.

  Attributes:
    components: rewards by each component.
    log_gate: logarithm of the components' weights, which add up to 1.
  """

  components: Float[Array, '*B N K']
  log_gate: Float[Array, '*B K']


class MixtureHead(nn.Module):
  """K linear maps without bias of a response's last hidden state, and a router of the prompt's: one hidden layer (ReLU [reconstructed]) and a softmax.

  Components start from different random maps: of equal ones the gradients are equal, and they would stay so.

  Attributes:
    components: K.
    hidden: units of the router.
    gate: 'prompt' is the router; 'static' one learned weight a component; 'uniform' weighs all alike.
    init_scale: the initial standard deviation of the maps is init_scale / sqrt(H + 1).

  Raises:
    InputError: there is no component or unit, or no such gate.

  Reference: MiCRo, Mixture Modeling and Context-aware Routing for Personalized Preference Learning (2025), section 3.
  """

  components: int = 3
  hidden: int = 128
  gate: str = 'prompt'
  init_scale: float = 1.0

  def __post_init__(self):
    if self.components < 1 or self.hidden < 1:
      raise InputError(f'model.head.components = {self.components}, hidden = {self.hidden}: give 1 or more')
    if self.gate not in GATES:
      raise InputError(f"model.head.gate = '{self.gate}': choose one of {', '.join(GATES)}")
    super().__post_init__()

  def setup(self):
    self.score = _Components(self.components, self.init_scale)
    if self.gate == 'prompt':
      self.router = Router(self.components, self.hidden)
    elif self.gate == 'static':
      self.weights = self.param('weights', nn.with_logical_partitioning(nn.initializers.zeros, (None,)), (self.components,))

  def __call__(self, response_hidden: Float[Array, '*B N H'], prompt_hidden: Float[Array, '*B H']) -> MixtureScores:
    if self.gate == 'prompt':
      log_gate = self.router(prompt_hidden)
    else:
      logits = self.weights if self.gate == 'static' else jnp.zeros(self.components, jnp.float32)
      log_gate = jnp.broadcast_to(jax.nn.log_softmax(logits), (*prompt_hidden.shape[:-1], self.components))
    return MixtureScores(self.score(response_hidden), log_gate)

  @nn.nowrap
  def preference_logits(self, scores: MixtureScores) -> Float[Array, '*B N N']:
    """Logit of sum_k f_k sigmoid(r_ik - r_jk); skew-symmetric, and of K = 1 Bradley-Terry. It need not be transitive.

    Reference: MiCRo (2025), eq. 2.
    """
    r = jnp.swapaxes(scores.components, -1, -2)  # [..., K, N]
    log_p = jax.nn.logsumexp(scores.log_gate[..., None, None] + jax.nn.log_sigmoid(r[..., :, None] - r[..., None, :]), axis=-3)
    return log_p - jnp.swapaxes(log_p, -1, -2)

  @nn.nowrap
  def reward(self, scores: MixtureScores) -> Float[Array, '*B N']:
    """sum_k f_k r_k, comparable within one prompt [ours]: it need not agree with the order of the preferences."""
    return jnp.einsum('...nk,...k->...n', scores.components, jnp.exp(scores.log_gate))


class _Components(nn.Module):
  """The K linear maps."""

  components: int
  init_scale: float

  @nn.compact
  def __call__(self, hidden: Float[Array, '*B N H']) -> Float[Array, '*B N K']:
    init = nn.with_logical_partitioning(nn.initializers.normal(self.init_scale / (hidden.shape[-1] + 1) ** 0.5), ('embed', None))
    return nn.Dense(self.components, use_bias=False, kernel_init=init, dtype=jnp.float32, name='maps')(hidden)


class Router(nn.Module):
  """A prompt's hidden state to log-weights of components.

  Attributes:
    components: K.
    hidden: units of the hidden layer.
  """

  components: int
  hidden: int = 128

  @nn.compact
  def __call__(self, prompt_hidden: Float[Array, '*B H']) -> Float[Array, '*B K']:
    init = lambda axes: nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes)
    x = nn.relu(nn.Dense(self.hidden, kernel_init=init(('embed', 'mlp')), dtype=jnp.float32, name='hidden')(prompt_hidden))
    return jax.nn.log_softmax(nn.Dense(self.components, kernel_init=init(('mlp', None)), dtype=jnp.float32, name='gate')(x))
