"""Truncation against a reference in numpy, and draws against their distribution."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rmjax.decoding.sampling import draw, log_prob, Sampling, scale, truncate
from rmjax.errors import InputError

LOGITS = 2 * jax.random.normal(jax.random.key(0), (4, 300))  # more than one block, the last one not full


def kept(p, top_k, top_p, min_p):
  """The tokens that may be drawn, one distribution in float64."""
  order = np.argsort(-p)
  order = order[: top_k or p.size]
  mass = p[order] / p[order].sum()
  order = order[: np.searchsorted(np.cumsum(mass), top_p) + 1] if top_p < 1 else order
  return np.sort(order[p[order] >= min_p * p.max()])


@pytest.mark.parametrize(
  ('top_k', 'top_p', 'min_p'), [(1, 1.0, 0.0), (7, 1.0, 0.0), (0, 0.6, 0.0), (0, 0.001, 0.0), (0, 1.0, 0.05), (20, 0.8, 0.02), (400, 1.0, 0.0)]
)
def test_truncation_keeps_the_tokens_it_says(top_k, top_p, min_p):
  truncated = truncate(LOGITS, Sampling(top_k=top_k, top_p=top_p, min_p=min_p))
  for row, logits in zip(truncated, LOGITS, strict=True):
    logits = np.asarray(logits, np.float64)
    expected = kept(np.exp(logits) / np.exp(logits).sum(), top_k, top_p, min_p)
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(row)), expected)
    np.testing.assert_allclose(row[expected], logits[expected], rtol=1e-6)


def test_the_mass_that_top_p_asks_for_may_be_met_exactly():
  logits = jnp.log(jnp.array([0.5, 0.25, 0.125, 0.125]))
  count = lambda top_p: int(np.isfinite(truncate(logits, Sampling(top_p=top_p))).sum())
  assert [count(top_p) for top_p in (0.4, 0.5, 0.51, 0.75, 0.76)] == [1, 1, 2, 2, 4]  # the last two tie


def draws(logits, sampling, count=20_000):
  keys = jax.random.split(jax.random.key(1), count)
  return np.asarray(jax.jit(lambda keys: draw(keys, jnp.broadcast_to(logits, (count, logits.size)), sampling))(keys))


@pytest.mark.parametrize('sampling', [Sampling(), Sampling(temperature=1.7), Sampling(top_k=12), Sampling(temperature=0.6, top_p=0.9)])
def test_draws_follow_the_distribution(sampling):
  candidates = truncate(scale(LOGITS[0], sampling), sampling)
  p = np.asarray(jax.nn.softmax(candidates), np.float64)
  counts = np.bincount(draws(candidates, sampling), minlength=p.size)
  assert counts[p == 0].sum() == 0
  order = np.argsort(-p)
  frequent = order[p[order] * counts.sum() >= 10]
  group = lambda x: np.append(x[frequent], x.sum() - x[frequent].sum())  # the rare ones together
  expected = group(p / p.sum()) * counts.sum()
  observed, expected = (x if expected[-1] > 5 else x[:-1] for x in (group(counts), expected))
  assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def test_a_sharper_distribution_would_be_noticed():
  """The test above can fail: a temperature 10 % off is seen."""
  p = np.asarray(jax.nn.softmax(LOGITS[0] / 1.1), np.float64)
  counts = np.bincount(draws(LOGITS[0], Sampling()), minlength=p.size)
  frequent = p * counts.sum() >= 10
  expected = np.append(p[frequent], p[~frequent].sum())
  assert stats.chisquare(np.append(counts[frequent], counts[~frequent].sum()), expected / expected.sum() * counts.sum()).pvalue < 1e-6


def test_zero_temperature_takes_the_most_likely_token_traced_or_not():
  keys = jax.random.split(jax.random.key(0), 4)
  np.testing.assert_array_equal(draw(keys, LOGITS, Sampling(temperature=0.0)), LOGITS.argmax(-1))
  traced = jax.jit(lambda temperature: draw(keys, scale(LOGITS, Sampling(temperature)), Sampling(temperature)))
  np.testing.assert_array_equal(traced(0.0), LOGITS.argmax(-1))
  np.testing.assert_array_equal(traced(1.3), draw(keys, LOGITS / 1.3, Sampling(1.3)))


def test_sampling_is_a_pytree_of_its_temperature():
  leaves, structure = jax.tree.flatten(Sampling(0.7, top_k=5))
  assert leaves == [0.7]
  assert jax.tree.unflatten(structure, [0.2]) == Sampling(0.2, top_k=5)


def test_log_prob_is_log_softmax():
  tokens = jnp.array([0, 128, 299, 17])
  expected = jax.nn.log_softmax(LOGITS)[jnp.arange(4), tokens]
  np.testing.assert_allclose(log_prob(LOGITS, tokens), expected, atol=1e-6)
  forbidden = LOGITS.at[:, 1:].set(-jnp.inf)
  np.testing.assert_array_equal(log_prob(forbidden, jnp.zeros(4, jnp.int32)), 0.0)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(temperature=-1.0), 'temperature = -1.0: it must be positive, or 0'),
    (dict(temperature=float('nan')), 'temperature = nan'),
    (dict(top_k=-1), 'top_k = -1: it must be positive, or 0'),
    (dict(top_p=0.0), 'top_p = 0.0: it must be in (0, 1]'),
    (dict(min_p=1.0), 'min_p = 1.0: it must be in [0, 1)'),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(InputError, match=re.escape(message)):
    Sampling(**options)
