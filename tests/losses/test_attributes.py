"""The loss of heads with one reward for each attribute: of the one that was rated, and of nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.losses.attributes import attribute_cross_entropy
from rmjax.losses.pointwise import label_cross_entropy

COMPONENTS = jax.random.normal(jax.random.key(0), (2, 3, 4))
ATTRIBUTE = jnp.array([[0, 3, -1], [2, 2, 1]])
RATINGS = jnp.array([[1.0, 0.0, 1.0], [0.0, jnp.nan, 1.0]])


def test_it_is_the_cross_entropy_of_the_component_that_was_rated():
  found = attribute_cross_entropy(COMPONENTS, ATTRIBUTE, RATINGS)
  np.testing.assert_allclose(found[0, 1], label_cross_entropy(COMPONENTS[0, 1, 3], jnp.array(0.0)))
  np.testing.assert_allclose(found[1, 2], np.log1p(np.exp(-COMPONENTS[1, 2, 1])), rtol=1e-6)
  assert found[0, 2] == 0 == found[1, 1]


def test_only_what_was_rated_has_a_gradient():
  gradient = jax.grad(lambda x: attribute_cross_entropy(x, ATTRIBUTE, RATINGS).sum())(COMPONENTS)
  moved = np.zeros((2, 3, 4), bool)
  moved[0, 0, 0] = moved[0, 1, 3] = moved[1, 0, 2] = moved[1, 2, 1] = True
  np.testing.assert_array_equal(np.asarray(gradient) != 0, moved)
