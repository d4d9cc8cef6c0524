"""What can be read from a reward model's representation by a linear map: MRMBench's probes, and the baselines they must be seen beside.

A high probe accuracy says "linearly decodable", not "used by the reward": print the majority rate, a random backbone's probe and a bag of tokens' too.

Dimensions: M responses, D features, C classes, S slots, N responses of a prompt, K tokens of a vocabulary.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
import functools
import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int, Num, ScalarLike
import numpy as np
import optax

from rmjax.data.pipeline import Encode
from rmjax.data.records import Record
from rmjax.errors import InputError
from rmjax.evaluation.scored import Scored
from rmjax.evaluation.scoring import score_records
from rmjax.models import RewardModel
from rmjax.training.saved import init_params
from rmjax.trees import Array, Tree


class FeatureHead(nn.Module):
  """Gives back what a head would get, in float32, so that whatever scores records also reads representations; its rewards are all 0."""

  @nn.compact
  def __call__(self, response_hidden: Float[Array, '*B N D'], prompt_hidden: Float[Array, '*B D']) -> Float[Array, '*B N D']:
    del prompt_hidden
    return response_hidden.astype(jnp.float32)

  @nn.nowrap
  def preference_logits(self, scores: Float[Array, '*B N D']) -> Float[Array, '*B N N']:
    """No preference."""
    return jnp.zeros((*scores.shape[:-1], scores.shape[-2]), jnp.float32)

  @nn.nowrap
  def reward(self, scores: Float[Array, '*B N D']) -> Float[Array, '*B N']:
    """No reward."""
    return jnp.zeros(scores.shape[:-1], jnp.float32)


def represent(model: RewardModel, params: Any, records: Iterable[Record], encode: Encode, *, mesh: Mesh, **shape: int) -> Iterator[Scored]:
  """The hidden state of each response's last token, before the head, as `scores` of what `score_records` yields.

  The last token is found by its column, never by a pad id, so a pad token inside of a response, or one that is also the end of text, does no harm.

  Args:
    model: any reward model; of its head nothing is used.
    params: its parameters, on the mesh.
    records: any number.
    encode: record -> tree, or why it is refused.
    mesh: where batches go.
    **shape: rows, length, slots and responses of a batch.
  """
  bare = model.clone(head=FeatureHead(), reference=None)
  return score_records(bare, {'backbone': params['backbone']}, records, encode, mesh=mesh, **shape)


def stack(scored: Iterable[Scored]) -> Float[np.ndarray, 'M D']:
  """float32 representations of all responses, in order; NaN for those of refused records.

  Raises:
    InputError: every record was refused.
  """
  scored = list(scored)
  width = next((record.scores.shape[-1] for record in scored if not record.refused), None)
  if width is None:
    raise InputError(f'no response to probe: {scored[0].refused if scored else "there are no records"}')
  nothing = lambda count: np.full((count, width), np.nan, np.float32)
  return np.concatenate([nothing(len(r.rewards)) if r.refused else r.scores[: len(r.rewards)] for r in scored])


def features(model: RewardModel, params: Any, records: Iterable[Record], encode: Encode, *, mesh: Mesh, **shape: int) -> Float[np.ndarray, 'M D']:
  """`represent`, stacked."""
  return stack(represent(model, params, records, encode, mesh=mesh, **shape))


def random_params(model: RewardModel, mesh: Mesh, seed: int = 0) -> dict[str, Any]:
  """Parameters of the same backbone that learned nothing: the baseline of what a probe reads from any network of this shape."""
  return init_params(model.clone(head=FeatureHead(), reference=None), '', mesh, jax.random.key(seed))


# A bag of tokens: what a probe reads without any network.


def common_tokens(trees: Iterable[Tree | str], size: int = 1024) -> Int[np.ndarray, 'K']:
  """Ids of the tokens that stand in the most prompts and responses, at most `size`; refused records (str) are passed over."""
  counts = Counter(token for tree in trees if not isinstance(tree, str) for segment in tree.segments for token in set(map(int, segment.tokens)))
  return np.array(sorted(token for token, _ in counts.most_common(size)), np.int64)


def bag_of_tokens(trees: Iterable[Tree | str], counts: Sequence[int], vocabulary: Int[np.ndarray, 'K']) -> Float[np.ndarray, 'M K']:
  """log(1 + how often each token stands in prompt and response), in float32.

  Args:
    trees: of the records, or why they were refused.
    counts: responses of each record.
    vocabulary: sorted ids; other tokens do not count.

  Returns:
    A row a response, as in `stack`; NaN for those of refused records.
  """
  rows = []
  for tree, count in zip(trees, counts, strict=True):
    for n in range(count):
      if isinstance(tree, str):
        rows.append(np.full(len(vocabulary), np.nan, np.float32))
        continue
      tokens = np.array([token for segment in tree.segments if segment.response in (-1, n) for token in segment.tokens], np.int64)
      known = tokens[np.isin(tokens, vocabulary)]
      rows.append(np.log1p(np.bincount(np.searchsorted(vocabulary, known), minlength=len(vocabulary))).astype(np.float32))
  return np.stack(rows) if rows else np.empty((0, len(vocabulary)), np.float32)


# Classes: levels of a rating, merged so that classes are balanced.


def merge_levels(values: Num[np.ndarray, 'M'], cuts: Sequence[float]) -> Int[np.ndarray, 'M']:
  """Class of each value: how many of the cuts it reaches; -1 where it is NaN.

  PKU-SafeRLHF's harm level is cut at (1,) for the easy task ({0} against {1, 2, 3}) and at (1, 2) for the hard one ({0}, {1}, {2, 3}).

  Reference: MRMBench (2025).
  """
  return np.where(np.isnan(values), -1, np.searchsorted(np.asarray(cuts, np.float64), values, side='right')).astype(np.int32)


def balanced_cuts(values: Num[np.ndarray, 'M'], classes: int) -> tuple[float, ...]:
  """Cuts that make classes of the most equal sizes (of the highest entropy).

  Args:
    values: levels; NaN is unknown.
    classes: C.

  Returns:
    C - 1 of the levels, increasing; each begins a class. Of more than 33 levels, one of 32 quantiles.

  Raises:
    InputError: fewer levels than classes.

  Reference: MRMBench (2025) merges levels "to balance classes"; its cuts for HelpSteer are not in our sources, so they are chosen and must be reported.
  """
  known = values[~np.isnan(values)]
  levels = np.unique(known)
  if len(levels) < classes:
    raise InputError(f'{len(levels)} levels ({", ".join(f"{level:g}" for level in levels) or "none"}) do not make {classes} classes')
  starts = levels[1:] if len(levels) <= 33 else np.unique(np.quantile(known, np.linspace(0, 1, 34)[1:-1], method='higher'))
  starts = starts[starts > levels[0]]  # a quantile may be the lowest level, where most values are

  def entropy(cuts: tuple[float, ...]) -> float:
    share = np.bincount(merge_levels(known, cuts), minlength=classes) / len(known)
    return float(-np.sum(share * np.log(np.maximum(share, 1e-12))))

  if len(starts) < classes - 1:
    starts = levels[1:classes]
  return max((tuple(map(float, cuts)) for cuts in itertools.combinations(starts, classes - 1)), key=entropy)


def majority(train: Int[np.ndarray, 'M'], test: Int[np.ndarray, 'L']) -> float:
  """Accuracy on `test` of always saying what is most frequent in `train`; -1 is unknown. NaN where nothing is known."""
  train, test = train[train >= 0], test[test >= 0]
  return float(np.mean(test == np.argmax(np.bincount(train)))) if len(train) and len(test) else np.nan


# Probes.


class Probe(NamedTuple):
  """A linear classifier: logits = (x - mean) / scale @ weights + bias."""

  mean: Float[Array, '*B D']
  scale: Float[Array, '*B D']
  weights: Float[Array, '*B D C']
  bias: Float[Array, '*B C']


@functools.partial(jax.jit, static_argnames=('classes', 'epochs', 'batch'))
def fit_linear_probe(
  features: Float[Array, 'M D'],
  labels: Int[Array, 'M'],
  classes: int,
  *,
  epochs: int = 1,
  batch: int = 128,
  learning_rate: ScalarLike = 5e-5,
  weight_decay: ScalarLike = 0.1,
  seed: int | Int[Array, ''] = 42,
) -> Probe:
  """MRMBench's probe: softmax(h W) without a bias, on features as they are, by AdamW with a cosine schedule. One compiled scan.

  At this rate and length a weight moves by a few thousandths, so on features of a small norm it hardly learns: see `fit_logistic_probe`.

  Args:
    features: frozen representations.
    labels: classes from 0; -1 is unknown and does not count, so that dimensions with gaps can be `vmap`ped over their labels.
    classes: C.
    epochs: over the data, each in another order.
    batch: responses of a step; the last one of an epoch has what is left.
    learning_rate: at the start; its cosine ends at 0.
    weight_decay: AdamW's.
    seed: of the initial weights and of the order.

  Reference: MRMBench (2025), sections on probing and its code. The initial weights, uniform within 1 / sqrt(D) as a linear layer's of PyTorch, are
  reconstructed.
  """
  count, width = features.shape
  key, init_key = jax.random.split(jax.random.key(seed))
  steps = -(-count // batch)
  optimizer = optax.adamw(optax.cosine_decay_schedule(learning_rate, epochs * steps), weight_decay=weight_decay)
  known = labels >= 0
  features = jnp.where(known[:, None], features, 0.0)

  def loss(weights, rows):
    each = optax.softmax_cross_entropy_with_integer_labels(features[rows] @ weights, jnp.maximum(labels[rows], 0))
    counts = (known[rows] & (rows >= 0)).astype(jnp.float32)
    return jnp.sum(counts * each) / jnp.maximum(jnp.sum(counts), 1)

  def step(carry, rows):
    weights, state = carry
    updates, state = optimizer.update(jax.grad(loss)(weights, rows), state, weights)
    return (optax.apply_updates(weights, updates), state), None

  order = jax.vmap(lambda key: jax.random.permutation(key, count))(jax.random.split(key, epochs))
  order = jnp.pad(order, ((0, 0), (0, steps * batch - count)), constant_values=-1).reshape(epochs * steps, batch)
  weights = jax.random.uniform(init_key, (width, classes), minval=-1, maxval=1) / width**0.5
  (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), order)
  return Probe(jnp.zeros(width), jnp.ones(width), weights, jnp.zeros(classes))


@functools.partial(jax.jit, static_argnames=('classes', 'iterations'))
def fit_logistic_probe(
  features: Float[Array, 'M D'], labels: Int[Array, 'M'], classes: int, *, ridge: ScalarLike = 1e-3, iterations: int = 200, tolerance: ScalarLike = 1e-4
) -> Probe:
  """Multinomial logistic regression to convergence, on standardised features with a bias: no scale or shift of a feature changes its predictions.

  Args:
    features: frozen representations.
    labels: classes from 0; -1 is unknown and does not count.
    classes: C.
    ridge: weight, against the mean cross-entropy, of half the squared norm of the weights (not the bias).
    iterations: most steps of L-BFGS.
    tolerance: norm of the gradient at which it stops.

  Reference: Hastie et al., The Elements of Statistical Learning (2009), section 4.4; L-BFGS, Nocedal & Wright (2006), chapter 7.
  """
  known = (labels >= 0)[:, None].astype(jnp.float32)
  total = jnp.maximum(jnp.sum(known), 1)
  features = jnp.where(known > 0, features, 0.0)
  mean = jnp.sum(features, 0) / total
  centred = known * (features - mean)
  scale = jnp.sqrt(jnp.sum(centred**2, 0) / total)
  scale = jnp.where(scale > 1e-6 * (1 + jnp.abs(mean)), scale, 1.0)  # rounding of a constant is no feature
  x = centred / scale

  def loss(params):
    weights, bias = params
    each = optax.softmax_cross_entropy_with_integer_labels(x @ weights + bias, jnp.maximum(labels, 0))
    return jnp.sum(known[:, 0] * each) / total + 0.5 * ridge * jnp.sum(weights**2)

  optimizer = optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(20, store_grad=True))  # convex: curvature needs no care, and it compiles fast
  value_and_grad = optax.value_and_grad_from_state(loss)

  def step(carry):
    params, state, number, _ = carry
    value, grad = value_and_grad(params, state=state)
    updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=loss)
    return optax.apply_updates(params, updates), state, number + 1, optax.tree.norm(grad)

  params = jnp.zeros((x.shape[1], classes)), jnp.zeros(classes)
  start = params, optimizer.init(params), 0, jnp.inf
  (weights, bias), *_ = jax.lax.while_loop(lambda carry: (carry[2] < iterations) & (carry[3] > tolerance), step, start)
  return Probe(mean, scale, weights, bias)


def probe_logits(probe: Probe, features: Float[Array, 'M D']) -> Float[Array, 'M C']:
  """Logits of the classes."""
  return (features - probe.mean) / probe.scale @ probe.weights + probe.bias


def right(probe: Probe, features: Float[Array, 'M D'], labels: Int[Array, 'M']) -> Float[np.ndarray, 'M']:
  """Whether each response's most probable class is the labelled one: 1 or 0; NaN where the label is -1."""
  found = np.asarray(jnp.argmax(probe_logits(probe, features), -1))
  return np.where(labels >= 0, (found == labels).astype(np.float64), np.nan)
