"""The study of reactions: every figure that is claimed is measured, and GRPO on the world's classes finds what is rewarded."""

import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import rluf
from experiments import reactions_study, reproduce
from experiments.setup import open_world
from rmjax.evaluation.claims import named_arms
from rmjax.worlds import reactions

SMALL = dict(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=2)


def small(**changes):
  config = rluf.get_config()
  config.model.decoder = SMALL
  sizes = {'train.steps': 2, 'world.train_size': 100, 'world.eval_size': 300, 'study.iterations': 2, 'study.texts': 1}
  return reproduce.arm_config(config, tuple((sizes | changes).items()))


def test_every_claim_is_of_a_figure_and_every_arm_of_the_config():
  config = small()
  assert set().union(*map(named_arms, config.claims)) <= set(config.arms)
  figures = reactions_study.study(config, (0, 1))
  assert len(figures) == 2 and all(np.isfinite(list(seed.values())).all() for seed in figures)
  for overrides in config.arms.values():
    open_world(reproduce.arm_config(config, overrides))
  for claim in config.claims:
    reproduce.check_claim(claim, dict.fromkeys(config.arms, figures))


def test_what_is_standardised_is_so_over_the_reference():
  rng = np.random.default_rng(0)
  reference = reactions.class_probabilities((0.4, 0.4, 0.1), reactions.Settings())
  values = jnp.asarray(rng.normal(3, 2, (72, 5)))
  found = reactions_study.standardize(values, jnp.asarray(reference))
  share = np.repeat(reference[:, None] / 5, 5, 1)
  assert abs(np.sum(share * found)) < 1e-5 and abs(np.sum(share * np.square(found)) - 1) < 1e-5
  np.testing.assert_allclose(reactions_study.standardize(7 * values - 3, jnp.asarray(reference)), found, atol=1e-4)


def test_grpo_finds_what_is_rewarded_and_the_divergence_holds_it():
  """Hearts are for goodbyes alone: the rate of goodbyes rises with their weight, and not where they have none."""
  reference = jnp.asarray(reactions.class_probabilities((0.45, 0.4, 0.1), reactions.Settings()))
  logits = jnp.asarray(np.repeat(4 * reactions.CLASSES[:, 2:] - 3, 2, 1), jnp.float32)
  settings = lambda beta: ml_collections.ConfigDict(dict(weights=(0.0, 0.3, 3.0), iterations=150, groups=32, group=8, rate=0.05, beta=beta))
  policies = np.asarray(reactions_study.optimize(logits, reference, settings(0.3), 0))
  np.testing.assert_allclose(policies.sum(1), 1, rtol=1e-5)
  quality, _, goodbye = reactions.CLASSES.T
  assert policies[0] @ quality > reference @ quality + 0.15
  assert policies[0] @ goodbye < 0.3 < 0.7 < policies[2] @ goodbye and policies[2] @ quality < policies[0] @ quality
  held = np.asarray(reactions_study.optimize(logits, reference, settings(30.0), 0))
  assert np.abs(held - np.asarray(reference)).sum(1).max() < 0.4 * np.abs(policies - np.asarray(reference)).sum(1).min()
