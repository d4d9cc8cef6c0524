"""Advantages: exact values, invariances, a plain loop as the oracle, and what comes of groups and masks with nothing in them."""

import itertools
import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import trees
from rmjax.errors import InputError
from rmjax.policy import advantages

ONE = jnp.array([1.0, 0.0, 0.0, 0.0])
ALL = jnp.ones(4, bool)
GAE = jax.jit(advantages.gae)
GOLDEN = json.loads((Path(__file__).parents[1] / 'goldens/policy/trl.json').read_text())


def line(rewards, values, **options):
  n = len(rewards)
  a, g = GAE(jnp.array([rewards]), jnp.array([values]), jnp.ones((1, n)), jnp.zeros((1, n), jnp.int32), **options)
  np.testing.assert_allclose(g - a, [values], atol=1e-6)
  return a[0]


@pytest.mark.parametrize(
  ('decay', 'expected'),
  [(1.0, [0.5, 0.6, 0.4]), (0.95, [0.451, 0.58, 0.4]), (0.0, [-0.1, 0.2, 0.4])],
)
def test_gae_of_the_card(decay, expected):
  np.testing.assert_allclose(line([0.0, 0.0, 1.0], [0.5, 0.4, 0.6], discount=1.0, decay=decay), expected, atol=1e-6)


def test_gae_compiles_once():
  traced = []

  @jax.jit
  def compiled(*arrays, **scalars):
    traced.append(1)
    return advantages.gae(*arrays, **scalars)

  for x in (0.5, 0.9):
    compiled(jnp.ones((1, 2)), jnp.ones((1, 2)), jnp.ones((1, 2)), jnp.zeros((1, 2), jnp.int32), discount=x, decay=x)
  assert len(traced) == 1


def test_gae_of_one_token():
  np.testing.assert_allclose(line([2.0], [0.5], discount=0.3, decay=0.7), [1.5])


def loop(rewards, values, mask, segments, discount, decay):
  """GAE as the textbook has it, one response at a time."""
  a = np.zeros(rewards.shape)
  for r in range(len(rewards)):
    for segment in set(segments[r].tolist()) - {-1}:
      next_value, next_a = 0.0, 0.0
      for t in reversed(np.flatnonzero((segments[r] == segment) & (mask[r] > 0))):
        next_a = rewards[r, t] + discount * next_value - values[r, t] + discount * decay * next_a
        next_value, a[r, t] = values[r, t], next_a
  return a, np.where((mask > 0) & (segments >= 0), a + values, 0.0)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31 - 1))
def test_gae_is_the_loop_wherever_tokens_lie(seed):
  """Responses may be interleaved, have tokens that do not count anywhere, and be absent; NaN outside is never read."""
  rng = np.random.default_rng(seed)
  segments = rng.integers(-1, 4, (3, 17)).astype(np.int32)
  mask = rng.integers(0, 2, (3, 17)).astype(np.float32)
  rewards, values = rng.normal(size=(2, 3, 17)).astype(np.float32)
  discount, decay = rng.uniform(0, 1, 2)
  expected = loop(rewards, values, mask, segments, discount, decay)
  outside = (mask == 0) | (segments < 0)
  rewards[outside], values[outside] = np.nan, np.nan
  got = GAE(rewards, values, mask, segments, discount=discount, decay=decay)
  for ours, theirs in zip(got, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_packed_responses_are_each_as_if_alone():
  texts = [[[3, 4, 5], [6]], [[7, 8], [9, 1, 2, 3]]]
  packed = trees.pack([[trees.branch([1, 2], text) for text in texts]], length=16, slots=2, responses=2)
  rng = np.random.default_rng(0)
  rewards, values = rng.normal(size=(2, 1, 16)).astype(np.float32)
  mask = (packed.response_ids >= 0).astype(np.float32)
  a, g = GAE(rewards, values, mask, packed.response_ids, discount=0.9, decay=0.8)
  to_go = jax.jit(advantages.return_to_go)(rewards, mask, packed.response_ids, discount=0.9)
  for segment in range(4):
    (columns,) = np.nonzero(packed.response_ids[0] == segment)
    np.testing.assert_allclose(a[0, columns], line(rewards[0, columns], values[0, columns], discount=0.9, decay=0.8), atol=1e-6)
    expected = [sum(0.9**k * r for k, r in enumerate(rewards[0, columns[i:]])) for i in range(len(columns))]
    np.testing.assert_allclose(to_go[0, columns], expected, atol=1e-6)
  np.testing.assert_array_equal(np.where(mask > 0, 0, a) + np.where(mask > 0, 0, g) + np.where(mask > 0, 0, to_go), 0.0)


def test_no_gradient_passes_and_signals_go_by_vmap():
  ones, segments = jnp.ones((1, 3)), jnp.zeros((1, 3), jnp.int32)
  gradient = jax.grad(lambda v: sum(x.sum() for x in advantages.gae(ones, v, ones, segments, discount=1.0, decay=0.9)))(ones)
  np.testing.assert_array_equal(gradient, 0.0)
  signals = jax.random.normal(jax.random.key(0), (1, 3, 2))
  several = jax.vmap(lambda r: advantages.gae(r, ones, ones, segments, discount=1.0, decay=0.9), -1, -1)(signals)
  one = advantages.gae(signals[..., 1], ones, ones, segments, discount=1.0, decay=0.9)
  np.testing.assert_allclose([x[..., 1] for x in several], one, rtol=1e-6)


def test_group_advantages_of_the_card():
  a = lambda **options: advantages.group_relative(ONE, ALL, eps=0.0, **options)
  np.testing.assert_allclose(a(), [1.5, -0.5, -0.5, -0.5], rtol=1e-6)
  np.testing.assert_allclose(a(ddof=0), [3**0.5] + [-(3**-0.5)] * 3, rtol=1e-6)
  np.testing.assert_allclose(a(scale='none'), [0.75, -0.25, -0.25, -0.25], rtol=1e-6)
  np.testing.assert_allclose(a(baseline='leave_one_out', scale='none'), [1, -1 / 3, -1 / 3, -1 / 3], rtol=1e-6)
  np.testing.assert_allclose(a(baseline='length', scale='none', lengths=jnp.array([4, 2, 1, 1])), [0.5, -0.5, -0.5, -0.5], rtol=1e-6)
  np.testing.assert_array_equal(a(baseline='none', scale='none'), ONE)
  np.testing.assert_allclose(advantages.group_relative(ONE, ALL), np.array([0.75, -0.25, -0.25, -0.25]) / (0.5 + 1e-4), rtol=1e-6)


@pytest.mark.parametrize('name', ['group', 'batch', 'none', 'rloo'])
def test_group_advantages_are_trls(name):
  scores = jnp.array([[jnp.nan if x is None else x for x in group] for group in GOLDEN['scores']])
  options = dict(baseline='leave_one_out', scale='none') if name == 'rloo' else dict(scale=name)
  ours = advantages.group_relative(scores, ~jnp.isnan(scores), **options)
  np.testing.assert_allclose(ours, GOLDEN['advantages'][name], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(('baseline', 'scale'), [*itertools.product(advantages.BASELINES, advantages.SCALES)])
def test_invariances(baseline, scale):
  scores = jax.random.normal(jax.random.key(0), (5, 6))
  valid = jax.random.bernoulli(jax.random.key(1), 0.8, (5, 6)).at[:, :2].set(True)
  lengths = jax.random.randint(jax.random.key(2), (5, 6), 1, 9)
  a = lambda scores, valid=valid, lengths=lengths: advantages.group_relative(scores, valid, baseline=baseline, scale=scale, eps=0.0, lengths=lengths)
  plain = a(scores)
  np.testing.assert_array_equal(jnp.where(valid, 0.0, plain), 0.0)
  np.testing.assert_allclose(a(jnp.where(valid, scores, jnp.nan)), plain, rtol=1e-6)
  order = jax.random.permutation(jax.random.key(3), 6)
  np.testing.assert_allclose(a(scores[:, order], valid[:, order], lengths[:, order]), plain[:, order], rtol=1e-4, atol=1e-6)
  more = lambda x: jnp.concatenate([x, jnp.zeros_like(x[:, :3])], 1)
  np.testing.assert_allclose(a(more(scores), more(valid), more(lengths))[:, :6], plain, rtol=1e-5, atol=1e-6)
  if baseline != 'none':
    np.testing.assert_allclose(a(scores + 7.0), plain, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(a(scores * 3.0), plain * (3.0 if scale == 'none' else 1.0), rtol=1e-4, atol=1e-5)
  if baseline in ('mean', 'leave_one_out'):
    np.testing.assert_allclose(plain.sum(-1), 0.0, atol=1e-5)
  gradient = jax.grad(lambda scores: a(scores).sum())(scores)
  np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize(('baseline', 'scale'), [*itertools.product(('mean', 'leave_one_out', 'length'), advantages.SCALES)])
def test_groups_that_say_nothing_have_advantages_of_exactly_zero(baseline, scale):
  """Equal scores whose float32 mean is another number, a group of one, and a group of none, among others that do say something."""
  scores = jnp.array([[0.1] * 7, [0.3] + [jnp.nan] * 6, [jnp.nan] * 7, [1.0] * 3 + [0.0] * 4])
  valid = ~jnp.isnan(scores)
  a = advantages.group_relative(scores, valid, baseline=baseline, scale=scale, eps=0.0, lengths=valid * 3)
  np.testing.assert_array_equal(a[:3], 0.0)
  assert np.isfinite(a).all() and (np.abs(a[3]) > 0.1).all()
  np.testing.assert_array_equal(advantages.informative(scores, valid), [False, False, False, True])


def test_without_a_baseline_equal_scores_stay_unless_they_are_to_be_divided_by_their_deviation():
  a = lambda scale: advantages.group_relative(jnp.full((2, 3), 0.1), jnp.ones((2, 3), bool), baseline='none', scale=scale)
  np.testing.assert_allclose(a('none'), 0.1)
  np.testing.assert_array_equal(a('group'), 0.0)
  np.testing.assert_array_equal(a('batch'), 0.0)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(baseline='greedy'), "baseline 'greedy': choose one of mean, leave_one_out, length, none"),
    (dict(scale='token'), "scale 'token': choose one of group, batch, none"),
    (dict(baseline='length'), "baseline 'length' needs the lengths"),
  ],
)
def test_other_options_are_named(options, message):
  with pytest.raises(InputError, match=message):
    advantages.group_relative(ONE, ALL, **options)


def test_whitening():
  x, mask = jnp.array([[1.0, 2.0, 6.0, jnp.nan], [jnp.inf, 3.0, 0.0, 0.0]]), jnp.array([[1.0, 1, 1, 0], [0, 1, 0, 0]])
  white = advantages.whiten(x, mask)
  valid = np.asarray(mask) > 0
  np.testing.assert_allclose(white[valid], (np.array([1, 2, 6, 3]) - 3) / np.std([1, 2, 6, 3], ddof=1), rtol=1e-6)
  np.testing.assert_array_equal(white[~valid], 0.0)
  kept = advantages.whiten(x, mask, shift=False)
  np.testing.assert_allclose(kept[valid], np.asarray(white)[valid] + 3, rtol=1e-6)
  np.testing.assert_array_equal(advantages.whiten(x, jnp.zeros_like(mask)), 0.0)
  np.testing.assert_array_equal(advantages.whiten(x, mask.at[:, 1:].set(0)), 0.0)  # one value
  np.testing.assert_array_equal(advantages.whiten(jnp.full((1, 7), 0.1), jnp.ones((1, 7))), 0.0)


def test_reinforce_plus_plus():
  rewards, mask = jnp.array([[0.0, -1.0, 2.0, 0.0, 1.0]]), jnp.array([[0.0, 1, 1, 1, 1]])
  segments = jnp.array([[-1, 0, 0, 1, 1]])
  to_go = np.array([1, 2, 1, 1])
  np.testing.assert_allclose(advantages.reinforce_plus_plus(rewards, mask, segments)[0, 1:], (to_go - 1.25) / np.std(to_go, ddof=1), rtol=1e-5)


def test_overlong_penalty():
  penalty = advantages.overlong_penalty(jnp.array([1, 8, 9, 10, 12, 13, 99]), max_length=12, cache=4)
  np.testing.assert_allclose(penalty, [0, 0, -0.25, -0.5, -1, -1, -1])
  np.testing.assert_array_equal(advantages.overlong_penalty(jnp.array([11, 12, 13]), max_length=12, cache=0), [0, 0, -1])
  traced = jax.jit(lambda m, c: advantages.overlong_penalty(jnp.array([10]), max_length=m, cache=c))
  np.testing.assert_allclose(traced(12.0, 4.0), [-0.5])
