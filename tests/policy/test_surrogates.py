"""Ratios, surrogates and aggregation: TRL's losses and gradients, exact values, and exactness under packing and micro-batching."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import trees
from rmjax.errors import InputError
from rmjax.policy import kl, surrogates

GOLDEN = json.loads((Path(__file__).parents[1] / 'goldens/policy/trl.json').read_text())
INPUTS = {name: np.array(x, np.float32) for name, x in GOLDEN['inputs'].items()}
LENGTHS = GOLDEN['lengths']


def padded():
  """TRL's batch: a response a row, after a prompt of one token."""
  batch = trees.pack([[trees.branch([1], [[2] * n])] for n in LENGTHS], length=10, slots=1, responses=1)
  return batch, [(r, 0) for r in range(5)]


def packed():
  """The same responses in two rows: two prompts with two of them each, and a prompt with one; more places than are used."""
  group = lambda *lengths: trees.branch([1, 1], [[2] * n for n in lengths])
  rows = [[group(*LENGTHS[:2]), group(*LENGTHS[2:4])], [group(LENGTHS[4])]]
  batch = trees.pack(rows, length=25, slots=3, responses=3)
  return batch, [(0, 0), (0, 1), (0, 3), (0, 4), (1, 0)]  # (row, response id) of each


def layout(batch, places):
  """(how arrays of TRL's shape are laid out, as tokens; the way back)."""
  columns = [np.flatnonzero(batch.response_ids[r] == i) for r, i in places]

  def out(x):
    tokens = np.zeros(batch.tokens.shape, np.float32)
    for b, ((r, _), c) in enumerate(zip(places, columns, strict=True)):
      tokens[r, c] = x[b, : len(c)]
    return jnp.asarray(tokens)

  def back(tokens):
    x = np.zeros((5, GOLDEN['max_length']))
    for b, ((r, _), c) in enumerate(zip(places, columns, strict=True)):
      x[b, : len(c)] = np.asarray(tokens)[r, c]
    return x

  return out, back


MODES = dict(grpo='sequence_mean_token_mean', rloo='sequence_mean_token_mean', bnpo='token_mean', dapo='token_mean', cispo='token_mean', dr_grpo='constant')


def trl_loss(batch, tokens, log_probs, options):
  """(sum, count) of TRL's loss by our functions."""
  mask, old, a = tokens['mask'], tokens['old_log_probs'], tokens['advantages']
  loss_type = options.get('loss_type', 'rloo')
  level = {'sequence': 'sequence', 'token': 'token', None: 'sequence_sum'}[options.get('importance_sampling_level')]
  ratio = surrogates.ratio(log_probs, old, mask, batch, level=level)
  if loss_type == 'cispo':
    losses = surrogates.cispo(log_probs, ratio, a, high=options['epsilon_high'])
  else:
    losses = surrogates.clipped(ratio, a, low=options['epsilon_low'], high=options['epsilon_high'], delta=options.get('delta'))
  if options.get('beta'):
    losses += options['beta'] * kl.estimate(log_probs, tokens['ref_log_probs'], 'k3')
  return surrogates.aggregate(losses, mask, batch, MODES[loss_type], length=GOLDEN['max_length'])


@pytest.mark.parametrize('arrange', [padded, packed])
@pytest.mark.parametrize('name', GOLDEN['losses'])
def test_losses_and_gradients_are_trls_packed_or_not(name, arrange):
  batch, places = arrange()
  out, back = layout(batch, places)
  tokens = {key: out(np.broadcast_to(x[:, None], INPUTS['mask'].shape) if x.ndim == 1 else x) for key, x in INPUTS.items()}

  def loss(log_probs):
    total, count = trl_loss(batch, tokens, log_probs, GOLDEN['options'][name])
    return total / count

  value, gradient = jax.value_and_grad(loss)(tokens['log_probs'])
  expected = GOLDEN['losses'][name]
  np.testing.assert_allclose(value, expected['loss'], rtol=2e-6)
  np.testing.assert_allclose(back(gradient), expected['gradient'], atol=2e-7)
  outside = np.asarray(gradient)[np.asarray(tokens['mask']) == 0]
  np.testing.assert_array_equal(outside, 0.0)


@pytest.mark.parametrize('level', surrogates.LEVELS)
@pytest.mark.parametrize('mode', surrogates.MODES)
def test_micro_batches_add_up(mode, level):
  batch, places = packed()
  out, _ = layout(batch, places)
  tokens = {key: out(np.broadcast_to(x[:, None], INPUTS['mask'].shape) if x.ndim == 1 else x) for key, x in INPUTS.items()}

  def parts(batch, tokens):
    ratio = surrogates.ratio(tokens['log_probs'], tokens['old_log_probs'], tokens['mask'], batch, level=level)
    return jnp.stack(surrogates.aggregate(surrogates.clipped(ratio, tokens['advantages']), tokens['mask'], batch, mode, length=8))

  rows = [jax.tree.map(lambda x, r=r: x[r : r + 1], (batch, tokens)) for r in range(2)]
  np.testing.assert_allclose(sum(parts(*row) for row in rows), parts(batch, tokens), rtol=1e-6)


CARD = trees.pack([[trees.branch([1], [[2] * 4])], [trees.branch([1], [[2] * 4])]], length=6, slots=1, responses=1)
VALUES = jnp.array([[9.0, 1, 1, 1, 1, 9], [9, 3, 3, jnp.nan, jnp.inf, 9]])
CARD_MASK = jnp.array([[0.0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0]])


@pytest.mark.parametrize(
  ('mode', 'expected'),
  [('token_mean', (10, 6)), ('sequence_mean_token_mean', (4, 2)), ('sequence_mean_token_sum', (10, 2)), ('constant', (2.5, 2))],
)
def test_aggregation_of_the_card(mode, expected):
  np.testing.assert_allclose(surrogates.aggregate(VALUES, CARD_MASK, CARD, mode, length=4), expected)
  gradient = jax.grad(lambda x: surrogates.aggregate(x, CARD_MASK, CARD, mode, length=4)[0])(VALUES)
  np.testing.assert_array_equal(gradient[CARD_MASK == 0], 0.0)


@pytest.mark.parametrize('mode', surrogates.MODES)
def test_responses_that_are_masked_whole_count_nowhere(mode):
  empty = CARD_MASK.at[0].set(0)
  total, count = surrogates.aggregate(VALUES, empty, CARD, mode, length=4)
  np.testing.assert_allclose(total / count, {'sequence_mean_token_sum': 6, 'constant': 1.5}.get(mode, 3))
  np.testing.assert_array_equal(surrogates.aggregate(VALUES, 0 * empty, CARD, mode, length=4), (0.0, 0.0))


@pytest.mark.parametrize('level', surrogates.LEVELS)
def test_the_ratio_is_one_before_any_update(level):
  log_probs = -jax.random.exponential(jax.random.key(0), (2, 6))
  of = lambda log_probs, old: surrogates.ratio(log_probs, old, CARD_MASK, CARD, level=level)
  np.testing.assert_array_equal(of(log_probs, log_probs), 1.0)
  strange = jnp.where(CARD_MASK > 0, log_probs, jnp.nan)
  np.testing.assert_array_equal(of(strange, log_probs), 1.0)
  gradient = jax.grad(lambda x: of(x, log_probs).sum())(strange)
  tokens = CARD_MASK.sum(1, keepdims=True)
  each = tokens if level == 'sequence_sum' else 1.0
  np.testing.assert_allclose(gradient, CARD_MASK * each, rtol=1e-6)


def test_ratios_of_the_three_levels():
  d = jnp.array([[0, 0.1, 0.2, 0.3, 0.4, 0], [0, -0.5, 0.1, 7, 7, 0]])
  of = lambda level: surrogates.ratio(d, jnp.zeros((2, 6)), CARD_MASK, CARD, level=level)
  inside = np.asarray(CARD_MASK) > 0
  np.testing.assert_allclose(of('token')[inside], np.exp(d)[inside], rtol=1e-6)
  np.testing.assert_allclose(of('sequence')[inside], np.exp([0.25] * 4 + [-0.2] * 2), rtol=1e-6)
  np.testing.assert_allclose(of('sequence_sum')[inside], np.exp([1.0] * 4 + [-0.4] * 2), rtol=1e-6)
  far = surrogates.ratio(1000 * d, jnp.zeros((2, 6)), CARD_MASK, CARD)
  assert np.isfinite(far).all()


def test_the_clip_by_branch():
  ratio = jnp.array([0.5, 1.0, 1.25, 1.4, 5.0])
  value = lambda a, **options: jax.vmap(jax.value_and_grad(lambda r: surrogates.clipped(r, jnp.array(a), **options)))(ratio)
  loss, gradient = value(2.0, low=0.2, high=0.3)
  np.testing.assert_allclose(loss, [-1.0, -2.0, -2.5, -2.6, -2.6], rtol=1e-6)
  np.testing.assert_array_equal(gradient, [-2, -2, -2, 0, 0])
  loss, gradient = value(-2.0, low=0.2, high=0.3)
  np.testing.assert_allclose(loss, [1.6, 2.0, 2.5, 2.8, 10.0], rtol=1e-6)
  np.testing.assert_array_equal(gradient, [0, 2, 2, 2, 2])
  loss, gradient = value(-2.0, dual=3.0)
  np.testing.assert_allclose(loss, [1.6, 2.0, 2.5, 2.8, 6.0], rtol=1e-6)
  np.testing.assert_array_equal(gradient, [0, 2, 2, 2, 0])
  loss, gradient = value(-2.0, delta=1.3)
  np.testing.assert_allclose(loss, [1.6, 2.0, 2.5, 2.6, 2.6], rtol=1e-6)
  low, high = surrogates.clip_shares(ratio, jnp.array([-1.0, 1.0, 0.0, -1.0, 1.0]))
  np.testing.assert_array_equal(low, [1, 0, 0, 0, 0])
  np.testing.assert_array_equal(high, [0, 0, 0, 0, 1])


def test_at_a_ratio_of_one_the_loss_says_nothing_and_the_gradient_is_reinforce():
  a, weight = jnp.array([0.75, -0.25, -0.25, -0.25]), jnp.array([0.1, 0.4, -0.2, 0.3])
  loss = lambda theta: jnp.mean(surrogates.clipped(jnp.exp(theta * weight - jax.lax.stop_gradient(theta * weight)), a))
  value, gradient = jax.value_and_grad(loss)(jnp.array(0.7))
  np.testing.assert_allclose(value, 0.0, atol=1e-7)
  np.testing.assert_allclose(gradient, -jnp.mean(a * weight), rtol=1e-6)


def test_no_gradient_passes_through_advantages_and_old_log_probs():
  x = jnp.array([[0.0, 0.3, 0.2, 0.1, 0.2, 0.0], [0.0, 0.1, 0.0, 0.0, 0.0, 0.0]])

  def loss(old, a):
    ratio = surrogates.ratio(x, old, CARD_MASK, CARD)
    return (surrogates.clipped(ratio, a) + surrogates.cispo(x, ratio, a, high=2.0) + surrogates.sampler_weights(old, x, CARD_MASK, cap=2.0)).sum()

  for gradient in jax.grad(loss, (0, 1))(x - 0.1, x):
    np.testing.assert_array_equal(gradient, 0.0)


def test_cispo_keeps_every_gradient():
  ratio, a = jnp.array([0.5, 1.0, 9.0]), jnp.array([1.0, -2.0, 3.0])
  gradient = jax.grad(lambda x: surrogates.cispo(x, ratio, a, high=4.0).sum())(jnp.array([-1.0, -2.0, -3.0]))
  np.testing.assert_allclose(gradient, [-0.5, 2.0, -12.0])


def test_sampler_weights():
  old, sampler = jnp.log(jnp.array([0.5, 0.5, 0.9, 0.5])), jnp.log(jnp.array([0.5, 0.25, 0.1, 0.0]))
  weights = surrogates.sampler_weights(old, sampler, jnp.array([1.0, 1, 1, 0]), cap=4.0)
  np.testing.assert_allclose(weights, [1, 2, 4, 1], rtol=1e-6)


def test_value_loss():
  v, g, old = jnp.array([0.5, 1.5, 1.5, 0.9]), jnp.array([2.0, 2.0, 0.0, 1.0]), jnp.array([0.0, 1.0, 1.0, 1.0])
  of = lambda clip: jax.vmap(jax.value_and_grad(lambda *x: surrogates.value_loss(*x, clip=clip)))(v, g, old)
  loss, gradient = of(0.2)
  # Moving towards the return past the clip has no gradient; moving away from it has.
  np.testing.assert_allclose(loss, [0.5 * 1.8**2, 0.5 * 0.8**2, 0.5 * 1.5**2, 0.005], rtol=1e-5)
  np.testing.assert_allclose(gradient, [0, 0, 1.5, -0.1], rtol=1e-5)
  loss, gradient = of(None)
  np.testing.assert_allclose(loss, 0.5 * (v - g) ** 2, rtol=1e-6)
  np.testing.assert_allclose(gradient, v - g, rtol=1e-6)
  for argument in (1, 2):
    np.testing.assert_array_equal(jax.grad(lambda *x: surrogates.value_loss(*x, clip=0.2).sum(), argument)(v, g, old), 0.0)


def test_squared_log_ratio():
  loss = lambda x, target: surrogates.squared_log_ratio(x, target).sum()
  x, target = jnp.array([0.5, -1.0]), jnp.array([2.0, 1.0])
  np.testing.assert_allclose(surrogates.squared_log_ratio(x, target), [2.25, 4.0])
  np.testing.assert_allclose(jax.grad(loss)(x, target), [-3.0, -4.0])
  np.testing.assert_array_equal(jax.grad(loss, 1)(x, target), 0.0)


def test_the_regression_moves_a_policy_by_its_target():
  """The minimum over a distribution is pi_t exp(target) where that sums to one, and one step of multiplicative weights in any case."""
  old = jax.nn.log_softmax(jnp.array([0.3, -0.2, 0.5]))
  new = jax.nn.log_softmax(old + jnp.array([0.4, 0.0, -0.4]))
  loss = lambda logits: jnp.sum(jnp.exp(old) * surrogates.squared_log_ratio(jax.nn.log_softmax(logits) - old, new - old))
  np.testing.assert_allclose(jax.grad(loss)(new), 0.0, atol=1e-7)
  assert loss(new) < 1e-12 < loss(old)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: surrogates.ratio(VALUES, VALUES, CARD_MASK, CARD, level='word'), "ratio level 'word': choose one of token, sequence"),
    (lambda: surrogates.aggregate(VALUES, CARD_MASK, CARD, 'mean'), "aggregation 'mean': choose one of token_mean"),
    (lambda: surrogates.aggregate(VALUES, CARD_MASK, CARD, 'constant'), "aggregation 'constant' needs the length"),
    (lambda: surrogates.clipped(VALUES, VALUES, dual=0.5), 'dual clip 0.5: it must be above 1'),
  ],
)
def test_bad_options_are_named(call, message):
  with pytest.raises(InputError, match=message):
    call()


def test_nothing_compiles_again():
  traced = []

  @jax.jit
  def loss(ratio, a, scalars):
    traced.append(1)
    total, count = surrogates.aggregate(surrogates.clipped(ratio, a, **scalars), CARD_MASK, CARD, 'constant', length=scalars['low'])
    return total / count + surrogates.value_loss(ratio, a, a, clip=scalars['low']).sum()

  for x in (0.1, 0.2):
    loss(jnp.ones((2, 6)), jnp.ones((2, 6)), dict(low=x, high=x, dual=1 + x, delta=x))
  assert len(traced) == 1


def test_prompts_and_padding_are_read_nowhere():
  batch, places = packed()
  noise = dataclasses.replace(batch, tokens=np.where(batch.response_ids < 0, 7, batch.tokens))
  ones = jnp.ones(batch.tokens.shape)  # even where the mask claims them
  np.testing.assert_allclose(surrogates.aggregate(ones, ones, noise, 'token_mean'), (22, 22))
  np.testing.assert_allclose(surrogates.aggregate(ones, ones, noise, 'sequence_mean_token_sum'), (22, 5))
