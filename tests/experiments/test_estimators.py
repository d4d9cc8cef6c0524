"""The study of estimators: its two ways to an expectation agree with listing every group, and its tests tell biased from unbiased."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import grpo_ppo
from experiments import estimators
from experiments.reproduce import arm_config
from rmjax.errors import InputError
from rmjax.evaluation.claims import check_claim, named_arms
from rmjax.worlds import sequences_exact as exact

SMALL = dict(vocab=2, length=2, prompts=3)
ESTIMATORS = [
  dict(baseline='leave_one_out', scale='none', aggregation='sequence_mean_token_sum'),
  dict(baseline='mean', scale='none', aggregation='constant'),
  dict(baseline='mean', scale='group', aggregation='sequence_mean_token_mean'),
  dict(baseline='none', scale='group', aggregation='sequence_mean_token_sum'),
]


@pytest.mark.parametrize('options', ESTIMATORS)
@pytest.mark.parametrize('end', [-1, 1])
def test_an_expectation_is_the_sum_over_every_group(options, end):
  """Every group of three that there is, through the training's functions, against the shortcut by rewards."""
  p = estimators.problem(0, **SMALL, end=end, levels=(0.0, 0.3, 1.0))
  groups = np.array(list(itertools.product(range(len(p.space.tokens)), repeat=3)))

  def total(logits, rewards):
    chance = jax.lax.stop_gradient(jnp.exp(exact.log_probs(logits, p.space)[groups].sum(-1)))
    one = lambda group: estimators.rollout_loss(logits[None], group[None], rewards[group][None], p.space, **options)
    return jnp.sum(chance * jax.vmap(one)(jnp.asarray(groups)))

  gradient = jax.jit(jax.grad(total))
  expected = np.array([-gradient(p.logits[x], p.rewards[x]) / 3 for x in range(3)])
  np.testing.assert_allclose(estimators.enumerated(p, **options, group=3), expected, atol=2e-6)
  unbiased = options in ESTIMATORS[:1]
  assert (np.abs(expected - p.gradient).max() < 2e-6) == unbiased


@pytest.mark.parametrize('group', [2, 5])
def test_what_is_unbiased_whatever_the_group(group):
  p = estimators.problem(1, **SMALL, end=1, levels=(0.0, 0.3, 1.0))
  sums = dict(scale='none', aggregation='sequence_mean_token_sum', group=group)
  for baseline, factor in (('leave_one_out', 1.0), ('mean', group / (group - 1)), ('none', 1.0)):
    np.testing.assert_allclose(factor * estimators.enumerated(p, baseline=baseline, **sums), p.gradient, atol=1e-6)
  longest = p.space.tokens.shape[1] * group / (group - 1)
  np.testing.assert_allclose(longest * estimators.enumerated(p, baseline='mean', **{**sums, 'aggregation': 'constant'}), p.gradient, atol=1e-6)


def test_length_bias_needs_lengths_that_vary():
  options = dict(baseline='leave_one_out', scale='none', aggregation='sequence_mean_token_mean', group=4)
  equal, varied = (estimators.problem(2, vocab=3, length=3, prompts=4, end=end, levels=(0.0, 1.0)) for end in (-1, 2))
  np.testing.assert_allclose(3 * estimators.enumerated(equal, **options), equal.gradient, atol=1e-6)
  assert estimators.compare(estimators.enumerated(varied, **options), varied)['angle'] > 0.05


def test_what_is_no_mean_over_responses_has_no_exact_figures():
  p = estimators.problem(0, **SMALL, end=1, levels=(0.0, 1.0))
  for options in (dict(scale='batch', aggregation='constant'), dict(scale='none', aggregation='token_mean')):
    assert estimators.enumerated(p, baseline='mean', **options, group=3) is None


def test_prompts_go_from_unsolved_to_solved():
  p = estimators.problem(0, vocab=4, length=3, end=-1, prompts=8, levels=(0.0, 0.1, 1.0))
  solved = exact.expected((p.rewards == 1).astype(jnp.float32), p.logits, p.space)
  assert (np.diff(solved) > 0).all() and solved[0] < 0.15 and solved[-1] > 0.85
  assert all(set(np.unique(row).round(6)) <= {0, np.float32(0.1).round(6), 1} and row.min() == 0 for row in np.asarray(p.rewards))
  assert all((row > 0).any() for row in np.asarray(p.rewards))


def small(**samples):
  config = grpo_ppo.get_config()
  config.study.samples.update(groups=800, batches=40, **samples)
  return config


def test_the_study_tells_biased_from_unbiased():
  config = small()
  arms = {name: config.arms[name] for name in ('rloo_varied', 'sequence_mean_varied', 'dr_grpo_as_published')}
  found = {name: estimators.study(arm_config(config, overrides), (0, 1, 2)) for name, overrides in arms.items()}
  claims = [claim for claim in config.claims if named_arms(claim) <= arms.keys()]
  assert len(claims) == 7 and all(check_claim(claim, found).holds for claim in claims)
  again = estimators.study(arm_config(config, arms['rloo_varied']), (2,))
  assert again[0] == pytest.approx(found['rloo_varied'][2], rel=1e-4, abs=1e-4)


def test_every_claim_is_about_arms_and_figures_that_there_are():
  config = grpo_ppo.get_config()
  assert set().union(*map(named_arms, config.claims)) <= set(config.arms)
  for name in ('grpo', 'token_mean_varied'):
    arm = arm_config(config, (*config.arms[name], ('study.samples.groups', 8), ('study.samples.batches', 4)))
    (figures,) = estimators.study(arm, (0,))
    assert all(np.isfinite(value) for value in figures.values())
    read = re.findall(rf'\b{name}\.(\w+)', str(config.claims))
    assert read and set(read) <= figures.keys()


def test_samples_that_cannot_be_dealt_out_are_named():
  with pytest.raises(InputError, match='groups = 800 cannot be dealt out evenly to batches = 3'):
    estimators.study(arm_config(small(), (('study.samples.batches', 3),)), (0,))
