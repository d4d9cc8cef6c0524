"""Ensembles: scale, disagreement, members side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import trees
from rmjax.backbones.decoder import DecoderConfig
from rmjax.models import build
from rmjax.rewards.ensembles import ensemble, hybrid, member_rewards, standardized
from rmjax.training.mesh import one_device_mesh
from rmjax.training.saved import init_params

RNG = np.random.default_rng(0)
MEMBERS, CALIBRATION = RNG.normal(size=(3, 4, 5)).astype(np.float32), RNG.normal(size=(3, 200)).astype(np.float32)


def test_mean_and_penalty_by_hand():
  rewards = np.array([[1.0, 4.0], [3.0, 4.0]], np.float32)
  np.testing.assert_allclose(ensemble(rewards), [2, 4])
  np.testing.assert_allclose(ensemble(rewards, uncertainty=0.5), [1.5, 4])  # a member's deviation is 1, and 0 where they agree
  np.testing.assert_allclose(ensemble(rewards[:1], uncertainty=0.5), rewards[0])
  calibration = np.array([[0.0, 2.0], [10.0, 30.0]], np.float32)  # means 1 and 20, deviations 1 and 10
  np.testing.assert_allclose(standardized(rewards, calibration), [[0, 3], [-1.7, -1.6]], rtol=1e-6)
  np.testing.assert_allclose(ensemble(rewards, calibration=calibration), [-0.85, 0.7], rtol=1e-6)


@pytest.mark.parametrize('uncertainty', [0.0, 1.0])
def test_a_member_times_100_and_moved_changes_nothing_if_standardised(uncertainty):
  scale, shift = np.array([1, 100, 1], np.float32), np.array([0, -7, 0], np.float32)
  larger, calibrated = MEMBERS * scale[:, None, None] + shift[:, None, None], CALIBRATION * scale[:, None] + shift[:, None]
  expected = ensemble(MEMBERS, uncertainty=uncertainty, calibration=CALIBRATION)
  np.testing.assert_allclose(ensemble(larger, uncertainty=uncertainty, calibration=calibrated), expected, atol=1e-4)
  order = lambda rewards: np.argsort(np.asarray(rewards).ravel())
  np.testing.assert_array_equal(order(ensemble(larger, uncertainty=uncertainty, calibration=calibrated)), order(expected))
  raw = np.asarray(ensemble(larger)).ravel()
  assert np.corrcoef(raw, MEMBERS[1].ravel())[0, 1] > 0.999 > np.corrcoef(np.asarray(ensemble(MEMBERS)).ravel(), MEMBERS[1].ravel())[0, 1]  # it decides alone


def test_a_member_that_says_the_same_of_all_has_no_voice_and_no_nan():
  constant = CALIBRATION.copy()
  constant[1] = 3.0
  found = standardized(MEMBERS, constant)
  assert np.isfinite(found).all() and not np.any(found[1])


def test_what_one_member_has_no_reward_for_has_none():
  rewards = np.array([[1.0, np.nan], [3.0, 4.0]], np.float32)
  np.testing.assert_array_equal(ensemble(rewards), [2, np.nan])


def test_members_side_by_side_are_the_members_alone():
  model = build(
    DecoderConfig(vocab_size=16, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=2),
    dtype='float32', remat='none', head=dict(name='rmjax.heads.mlp:MLPRewardHead'), lora=dict(rank=0),
  )  # fmt: skip
  keys = jax.random.split(jax.random.key(0), 3)
  params = init_params(model, '', one_device_mesh(), keys)
  batch = trees.pack([[trees.branch([1, 2], [[3, 4], [5]])]], length=8, slots=1, responses=2)
  found = member_rewards(model, params, batch)
  assert found.shape == (3, 1, 1, 2)
  for member in range(3):
    one = jax.tree.map(lambda x, member=member: x[member], params)
    np.testing.assert_allclose(found[member], model.head.reward(model.apply({'params': one}, batch)), atol=1e-6)
  assert np.abs(found[0] - found[1]).max() > 1e-3


def test_a_rule_where_it_can_tell():
  np.testing.assert_array_equal(hybrid(jnp.array([1.0, 0.0, jnp.nan]), jnp.array([0.3, 0.4, 0.5]), jnp.array([True, True, False])), [1, 0, 0.5])
