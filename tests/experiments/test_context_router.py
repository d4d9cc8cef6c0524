"""The router's second stage: what it moves, what it learns, that the first stage's heads stay."""

import flax.linen as nn
import jax
import numpy as np

from experiments.context_router import apply_router, fit_router
from rmjax.heads.mixture import Router

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(3, 8)).astype(np.float32)
GROUP = np.repeat(np.arange(3), 40)
PROMPTS = (CENTRES[GROUP] + 0.2 * RNG.normal(size=(120, 8))).astype(np.float32)
LOSSES = np.where(np.arange(3) == (GROUP[:, None] + 1) % 3, 0.2, 1.5).astype(np.float32)  # component g + 1 speaks for group g
OPTIONS = dict(temperature=1e-3, epochs=20, batch=32, learning_rate=1e-2)
PARAMS = nn.unbox(Router(3, 16).init(jax.random.key(0), PROMPTS))['params']


def test_contexts_are_routed_to_the_component_that_speaks_for_them():
  before = np.exp(apply_router(PARAMS, PROMPTS))
  fitted = fit_router(PARAMS, PROMPTS, LOSSES, jax.random.key(1), **OPTIONS)
  after = np.exp(apply_router(fitted, PROMPTS))
  assert (after.argmax(-1) == (GROUP + 1) % 3).mean() > 0.95 > (before.argmax(-1) == (GROUP + 1) % 3).mean()
  np.testing.assert_allclose(after.sum(-1), 1, rtol=1e-5)


def test_a_large_temperature_leaves_the_router_where_it_was():
  """The target is then the router itself, and its cross-entropy is least there."""
  fitted = fit_router(PARAMS, PROMPTS, LOSSES, jax.random.key(1), **{**OPTIONS, 'temperature': 1e6, 'learning_rate': 1e-4})
  moved = lambda params: np.abs(apply_router(params, PROMPTS) - apply_router(PARAMS, PROMPTS)).max()
  assert moved(fitted) < 0.03 < moved(fit_router(PARAMS, PROMPTS, LOSSES, jax.random.key(1), **{**OPTIONS, 'learning_rate': 1e-4})) / 2


def test_fewer_pairs_than_a_batch_are_one():
  few = fit_router(PARAMS, PROMPTS[:5], LOSSES[:5], jax.random.key(1), **OPTIONS)
  assert np.abs(apply_router(few, PROMPTS) - apply_router(PARAMS, PROMPTS)).max() > 0.1


def test_what_cannot_be_told_apart_is_not_learnt():
  same = np.ones_like(PROMPTS)
  fitted = np.exp(apply_router(fit_router(PARAMS, same, LOSSES, jax.random.key(1), **OPTIONS), same))
  assert np.allclose(fitted, fitted[0]) and fitted[0].max() < 0.6
