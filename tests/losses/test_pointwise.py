"""Losses on single responses: entropy at the base rate, and what leaving zeros out does to a logit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from rmjax.errors import InputError
from rmjax.losses.pointwise import binary_cross_entropy, label_cross_entropy, logit_correction


def best_logit(ones, zeros, **options):
  """The constant logit with the least loss on so many ones and zeros."""
  ratings = jnp.repeat(jnp.array([1.0, 0.0]), jnp.array([ones, zeros]), total_repeat_length=ones + zeros)
  loss = lambda g: float(binary_cross_entropy(jnp.full(ratings.shape, g), ratings, **options).mean())
  return optimize.minimize_scalar(loss, bounds=(-8, 8), method='bounded', options=dict(xatol=1e-4)).x


def test_the_loss_at_the_base_rate_is_its_entropy():
  ratings = jnp.zeros(100).at[:3].set(1.0)
  loss = binary_cross_entropy(jnp.full(100, np.log(0.03 / 0.97)), ratings)
  assert loss.shape == (100,) and loss.mean() == pytest.approx(0.1347, abs=5e-5)
  assert loss[0] == pytest.approx(-np.log(0.03), abs=1e-5) and loss[50] == pytest.approx(-np.log(0.97), abs=1e-6)
  np.testing.assert_allclose(binary_cross_entropy(jnp.zeros(100), ratings), np.log(2), rtol=1e-6)


@pytest.mark.parametrize('keep', [1.0, 0.5, 0.1])
def test_down_sampling_shifts_the_logit_by_its_log(keep):
  true, zeros = np.log(30 / 970), round(970 * keep)
  assert best_logit(30, zeros) == pytest.approx(true - np.log(keep), abs=2e-3)  # uncorrected: - log keep too high
  assert best_logit(30, zeros) + logit_correction(keep) == pytest.approx(true, abs=2e-3)  # corrected after training
  assert best_logit(30, zeros, keep_rate=keep) == pytest.approx(true, abs=2e-3)  # or within
  assert logit_correction(0.1) == pytest.approx(-2.302585, abs=1e-6)


def test_weight_of_a_one_is_as_if_there_were_more():
  assert best_logit(30, 970, positive_weight=10.0) == pytest.approx(best_logit(300, 970), abs=2e-3)


def test_what_is_unknown_has_no_gradient_and_the_defaults_are_the_plain_loss():
  rewards, ratings = jnp.array([0.3, -2.0, 4.0, 1.0]), jnp.array([1.0, 0.0, jnp.nan, 0.5])
  np.testing.assert_allclose(binary_cross_entropy(rewards, ratings), label_cross_entropy(rewards, ratings), rtol=1e-6)
  gradient = jax.grad(lambda r: binary_cross_entropy(r, ratings, positive_weight=3.0, keep_rate=0.2).sum())(rewards)
  assert gradient[2] == 0 and np.isfinite(gradient).all() and (gradient[jnp.array([0, 1])] != 0).all()
  assert binary_cross_entropy(rewards, ratings, positive_weight=3.0)[0] == pytest.approx(3 * float(label_cross_entropy(rewards, ratings)[0]), rel=1e-6)


@pytest.mark.parametrize('keep', [0.0, -0.1, 1.5])
def test_a_share_that_there_is_not(keep):
  with pytest.raises(InputError, match='keep_rate'):
    logit_correction(keep)
