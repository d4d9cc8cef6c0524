"""The adaptive KL coefficient."""

import jax
import numpy as np

from rmjax.policy.controllers import adaptive_kl


def test_values_and_limits():
  of = lambda kl, beta=1.0: adaptive_kl(beta, kl, target=6.0, horizon=10_000, rows=256)
  np.testing.assert_allclose(of(12.0), 1.00512, rtol=1e-6)  # the error is clipped to 0.2
  np.testing.assert_allclose(of(600.0, 0.5), 0.5 * 1.00512, rtol=1e-6)
  np.testing.assert_allclose(of(0.0), 1 - 0.00512, rtol=1e-6)
  np.testing.assert_allclose(of(6.0, 0.3), 0.3, rtol=1e-6)
  np.testing.assert_allclose(of(6.6), 1 + 0.1 * 0.0256, rtol=1e-5)


def test_nothing_compiles_again():
  traced = []

  @jax.jit
  def compiled(x):
    traced.append(1)
    return adaptive_kl(x, x, target=x, horizon=x, rows=x)

  compiled(1.0), compiled(2.0)
  assert len(traced) == 1
