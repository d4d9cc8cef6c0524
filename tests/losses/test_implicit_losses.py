"""Losses of the implicit reward: TRL's values and gradients (tests/goldens/make_dpo_goldens.py), closed forms, optima."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.errors import InputError
from rmjax.heads.implicit import ImplicitRewardHead, ImplicitScores
from rmjax.losses import implicit
from rmjax.losses.listwise import plackett_luce
from rmjax.losses.preference import preference_cross_entropy

GOLDEN = json.loads((Path(__file__).parents[1] / 'goldens' / 'dpo' / 'trl.json').read_text())
DRAWN = {name: np.array(x) for name, x in GOLDEN['drawn'].items()}
BETA, PAIRS = GOLDEN['beta'], len(DRAWN['mask']) // 2
WINS = jnp.array([[0.0, 1.0], [0.0, 0.0]])


def pairs(values):
  """[2 * PAIRS], chosen first, to [PAIRS, 2]."""
  return jnp.moveaxis(jnp.reshape(values, (2, PAIRS)), 0, -1)


def scores_of(log_probs, beta=BETA):
  sums = lambda x: pairs(jnp.sum(x * DRAWN['mask'], -1))
  tokens = pairs(DRAWN['mask'].sum(-1)).astype(jnp.int32)
  confidence = sums(log_probs - DRAWN['squares']) / tokens
  return ImplicitScores(sums(log_probs), sums(DRAWN['ref_log_probs']), tokens, confidence, jnp.full(PAIRS, beta))


def logits_of(scores, **options):
  return ImplicitRewardHead(beta=BETA, **options).preference_logits(scores)


def batch_wins():
  return jnp.broadcast_to(WINS, (PAIRS, 2, 2))


OURS = {
  'sigmoid': lambda s, wins, eps: preference_cross_entropy(logits_of(s), wins),
  'hinge': lambda s, wins, eps: implicit.hinge(logits_of(s), wins),
  'ipo': lambda s, wins, eps: implicit.ipo(logits_of(s, average=True), wins, s.beta),
  'robust': lambda s, wins, eps: implicit.robust(logits_of(s), wins, eps),
  'sigmoid_norm': lambda s, wins, eps: preference_cross_entropy(logits_of(s, average=True), wins),
  'wpo': lambda s, wins, eps: implicit.weighted(logits_of(s), wins, s.confidence),
}


@pytest.mark.parametrize('name', OURS)
def test_losses_and_gradients_are_trl_s(name):
  golden = GOLDEN['dpo'][name]
  loss = lambda log_probs: jnp.mean(OURS[name](scores_of(log_probs), batch_wins(), golden['label_smoothing']))
  value, gradient = jax.value_and_grad(loss)(jnp.asarray(DRAWN['log_probs'], jnp.float32))
  np.testing.assert_allclose(value, golden['loss'], rtol=2e-6)
  np.testing.assert_allclose(gradient, golden['gradient'], rtol=2e-5, atol=1e-7)


def test_sft_is_trl_s_mean_over_the_chosen_s_tokens():
  scores = scores_of(DRAWN['log_probs'])
  value = jnp.sum(implicit.negative_log_likelihood(scores.log_probs)[:, 0]) / jnp.sum(scores.num_tokens[:, 0])
  np.testing.assert_allclose(value, GOLDEN['dpo']['sft']['loss'], rtol=2e-6)
  each = implicit.chosen_negative_log_likelihood(scores.log_probs, scores.num_tokens, batch_wins(), average=False)
  np.testing.assert_allclose(jnp.sum(each) / jnp.sum(scores.num_tokens[:, 0]), value, rtol=2e-6)
  mean = implicit.chosen_negative_log_likelihood(scores.log_probs, scores.num_tokens, batch_wins())
  np.testing.assert_allclose(mean * scores.num_tokens[:, 0], each, rtol=2e-6)


def test_conservative_and_simpo_are_trl_s_cpo():
  scores = scores_of(DRAWN['log_probs'])
  mean = scores.log_probs / scores.num_tokens
  gap = mean[:, :, None] - mean[:, None, :]
  golden = GOLDEN['cpo']['cdpo']
  np.testing.assert_allclose(implicit.conservative(golden['beta'] * gap, batch_wins(), golden['label_smoothing']), golden['losses'], rtol=2e-6)
  golden = GOLDEN['cpo']['simpo']
  free = scores._replace(ref_log_probs=jnp.zeros((PAIRS, 2)))
  logits = ImplicitRewardHead(beta=golden['beta'], average=True, reference='none').preference_logits(free)
  np.testing.assert_allclose(preference_cross_entropy(logits, batch_wins(), golden['simpo_gamma']), golden['losses'], rtol=2e-6)


def test_odds_ratio_is_trl_s_orpo():
  scores, golden = scores_of(DRAWN['log_probs']), GOLDEN['orpo']
  losses = implicit.odds_ratio(scores.log_probs, scores.num_tokens, batch_wins())
  np.testing.assert_allclose(-golden['beta'] * losses, golden['losses'], rtol=1e-5)


@pytest.mark.parametrize('golden', GOLDEN['kto'])
def test_kto_is_trl_s(golden):
  """Two desirable or undesirable responses and a mismatched one in each tree; at the last shift the KL estimate is below 0 and counts as 0."""

  def loss(log_probs):
    sums = lambda x: jnp.sum(x * DRAWN['mask'], -1)
    own = pairs(BETA * (sums(log_probs) - sums(DRAWN['ref_log_probs'])))
    others = BETA * (DRAWN['mismatched'] + golden['shift'] - DRAWN['ref_mismatched']).reshape(PAIRS, 2)
    rewards = jnp.concatenate([own, others], -1)
    ratings = jnp.broadcast_to(jnp.array([1.0, 0.0, jnp.nan, jnp.nan]), rewards.shape)
    mismatched = jnp.broadcast_to(jnp.array([0, 0, 1, 1]), rewards.shape)
    losses = implicit.kto(rewards, ratings, mismatched, desirable=golden['desirable'])
    return jnp.sum(losses) / (2 * PAIRS)

  value, gradient = jax.value_and_grad(loss)(jnp.asarray(DRAWN['log_probs'], jnp.float32))
  np.testing.assert_allclose(value, golden['loss'], rtol=2e-6)
  np.testing.assert_allclose(gradient, golden['gradient'], rtol=2e-5, atol=1e-7)


def test_kto_s_baseline_passes_no_gradient_and_absent_places_change_nothing():
  rewards, ratings = jnp.array([[0.3, -0.2, 0.8]]), jnp.array([[1.0, 0.0, jnp.nan]])
  loss = lambda rewards, ratings, mismatched: jnp.sum(implicit.kto(rewards, ratings, mismatched))
  value, gradient = jax.value_and_grad(loss)(rewards, ratings, jnp.array([[0, 0, 1]]))
  np.testing.assert_allclose(value, 1 / (1 + np.exp(0.3 - 0.8)) + 1 / (1 + np.exp(0.8 + 0.2)), rtol=1e-6)
  assert gradient[0, 2] == 0 and (gradient[0, :2] != 0).all()
  wider = jnp.array([[0.3, -0.2, 0.8, 5.0]]), jnp.array([[1.0, 0.0, jnp.nan, jnp.nan]]), jnp.array([[0, 0, 1, -1]])
  np.testing.assert_allclose(loss(*wider), value, rtol=1e-6)


def pair(h, beta):
  return jnp.array([[0.0, beta * h], [-beta * h, 0.0]])


@pytest.mark.parametrize('beta', [0.05, 0.1, 5.0])
def test_closed_forms(beta):
  """The card's values; at the start the gradient's weight is beta / 2."""
  np.testing.assert_allclose(preference_cross_entropy(pair(0.0, beta), WINS), np.log(2), rtol=1e-7)
  np.testing.assert_allclose(jax.grad(lambda h: preference_cross_entropy(pair(h, beta), WINS))(0.0), -beta / 2, rtol=1e-6)
  np.testing.assert_allclose(preference_cross_entropy(pair(2.0, 0.1), WINS), 0.598139, atol=1e-6)
  np.testing.assert_allclose(implicit.ipo(pair(1 / (2 * beta), beta), WINS, jnp.array(beta)), 0.0, atol=1e-9)
  np.testing.assert_allclose(implicit.ipo(pair(0.0, beta), WINS, jnp.array(beta)), 1 / (4 * beta**2), rtol=1e-6)
  np.testing.assert_allclose(implicit.hinge(pair(0.25 / beta, beta), WINS), 0.75, rtol=1e-6)
  assert implicit.hinge(pair(1.5 / beta, beta), WINS) == 0


def test_the_optimum_under_label_smoothing_is_finite():
  slope = jax.grad(lambda logit, smoothing: implicit.conservative(pair(logit, 1.0), WINS, smoothing))
  for smoothing in (0.1, 0.3):
    np.testing.assert_allclose(slope(np.log((1 - smoothing) / smoothing), smoothing), 0.0, atol=1e-6)
    assert slope(np.log((1 - smoothing) / smoothing) - 0.1, smoothing) < 0 < slope(np.log((1 - smoothing) / smoothing) + 0.1, smoothing)


def test_the_robust_loss_sees_through_flips():
  """Its mean over labels flipped with probability eps is the clean loss."""
  logits, eps = pair(1.3, 1.0), 0.2
  mean = (1 - eps) * implicit.robust(logits, WINS, eps) + eps * implicit.robust(logits, WINS.T, eps)
  np.testing.assert_allclose(mean, preference_cross_entropy(logits, WINS), rtol=1e-5)
  with pytest.raises(InputError, match='smoothing = 0.5: it must be below 0.5'):
    implicit.robust(logits, WINS, 0.5)


def test_weights_of_wpo_are_constants():
  confidence = jnp.array([-0.5, -1.5])
  loss = lambda logits, confidence: implicit.weighted(logits, WINS, confidence)
  np.testing.assert_allclose(loss(pair(0.7, 1.0), confidence), np.exp(-2) * preference_cross_entropy(pair(0.7, 1.0), WINS), rtol=1e-6)
  np.testing.assert_array_equal(jax.grad(loss, 1)(pair(0.7, 1.0), confidence), 0.0)


def test_odds_of_near_certain_and_absent_responses_are_finite():
  wins = jnp.zeros((4, 4)).at[0, 1].set(1.0).at[2, 0].set(1.0)
  loss = lambda log_probs: implicit.odds_ratio(log_probs, jnp.array([3, 5, 2, 0]), wins)
  value, gradient = jax.value_and_grad(loss)(jnp.array([-3e-9, -4000.0, 0.0, 0.0]))
  assert np.isfinite(value) and np.isfinite(gradient).all()
  half = implicit.odds_ratio(jnp.array([-2 * np.log(2), -3 * np.log(2)]), jnp.array([2, 3]), WINS)  # p = 1/2 each: odds 1
  np.testing.assert_allclose(half, np.log(2), rtol=1e-6)


def minimise(loss, start, rate=1.0, steps=3000):
  """Gradient descent on three logits."""
  return jax.lax.fori_loop(0, steps, lambda _, x: x - rate * jax.grad(loss)(x), start)


def test_the_optimum_of_a_table_is_the_reference_tilted_by_the_reward():
  """Three responses, every pair, exact Bradley-Terry labels: log(pi / ref) differs by r / beta, and pi = ref exp(r / beta) / Z."""
  beta, gold, reference = 0.5, jnp.array([0.3, -0.4, 0.9]), jax.nn.log_softmax(jnp.array([0.2, 1.0, -0.5]))
  wins = jax.nn.sigmoid(gold[:, None] - gold[None, :]) * (1 - jnp.eye(3))
  tilted = jax.nn.log_softmax(reference + gold / beta)
  reward = lambda logits: beta * (jax.nn.log_softmax(logits) - reference)
  losses = {
    'dpo': lambda logits: preference_cross_entropy(reward(logits)[:, None] - reward(logits)[None, :], wins),
    'conservative': lambda logits: implicit.conservative(reward(logits)[:, None] - reward(logits)[None, :], wins, 0.0),
  }
  for loss in losses.values():
    policy = jax.nn.log_softmax(minimise(loss, reference))
    np.testing.assert_allclose(policy, tilted, atol=1e-3)
    ratio = policy - reference
    np.testing.assert_allclose(ratio[:, None] - ratio[None, :], (gold[:, None] - gold[None, :]) / beta, atol=1e-3)


def test_the_optimum_of_rankings_is_the_same():
  """Plackett-Luce over every ranking of three, each weighed by its probability under the gold reward: the K-wise DPO of the card."""
  beta, gold, reference = 0.5, jnp.array([0.3, -0.4, 0.9]), jax.nn.log_softmax(jnp.array([0.2, 1.0, -0.5]))
  orders = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
  wins = jnp.array([[[float(list(o).index(i) < list(o).index(j)) for j in range(3)] for i in range(3)] for o in orders])
  weights = jnp.exp(-plackett_luce(jnp.broadcast_to(gold, (6, 3)), wins))
  np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-5)
  reward = lambda logits: beta * (jax.nn.log_softmax(logits) - reference)
  loss = lambda logits: jnp.sum(weights * plackett_luce(jnp.broadcast_to(reward(logits), (6, 3)), wins))
  np.testing.assert_allclose(jax.nn.log_softmax(minimise(loss, reference)), jax.nn.log_softmax(reference + gold / beta), atol=1e-3)


def test_ipo_s_optimum_is_the_share_of_wins():
  """With a label p for one pair, h = (p - 1/2) / beta: bounded even where p = 1."""
  beta = 0.5
  for share in (0.5, 0.8, 1.0):
    wins = jnp.array([[0.0, share], [1 - share, 0.0]])
    h = minimise(lambda h, wins=wins: implicit.ipo(pair(h, beta), wins, jnp.array(beta)), jnp.float32(0.0), rate=0.2, steps=200)
    np.testing.assert_allclose(h, (share - 0.5) / beta, atol=1e-5)


def logo(log_probs, num_tokens, **options):
  """Of a first response that beats all others."""
  count = len(log_probs)
  wins = np.zeros((count, count), np.float32)
  wins[0, 1:] = 1
  return float(implicit.simpo_multi(jnp.array(log_probs, jnp.float32), jnp.array(num_tokens), wins, **options))


@pytest.mark.parametrize(('gamma', 'expected'), [(2.5, 2.578890), (0.5, 0.974077), (0.0, 0.693147)])
@pytest.mark.parametrize('negatives', [1, 2, 5])
def test_logo_of_equal_average_log_probs_is_the_card_s(gamma, expected, negatives):
  lengths = np.arange(2, 3 + negatives)  # unequal lengths, the same share of a token
  assert logo(-0.7 * lengths, lengths, gamma=gamma, beta=0.5) == pytest.approx(expected, abs=1e-6)


def test_logo_by_hand_and_what_it_is_in_special_cases():
  log_probs, lengths = [-2.0, -9.0, -4.0], [4, 6, 2]
  gap = 2.5 * (-2 / 4 - (-9 / 6 - 4 / 2) / 2) - 0.5
  assert logo(log_probs, lengths) == pytest.approx(np.log1p(np.exp(-gap)), rel=1e-6)
  summed = 0.1 * (-2 - (-9 - 4) / 2)
  assert logo(log_probs, lengths, average=False, beta=0.1, gamma=0.0) == pytest.approx(np.log1p(np.exp(-summed)), rel=1e-6)
  wins = jnp.array([[0.0, 0.7], [0.3, 0.0]])  # V = 1, gamma = 0, sums: DPO with no reference, soft labels too
  values = 0.1 * jnp.array(log_probs[:2])
  dpo = preference_cross_entropy(values[:, None] - values[None], wins)
  found = implicit.simpo_multi(jnp.array(log_probs[:2]), jnp.array(lengths[:2]), wins, beta=0.1, gamma=0.0, average=False)
  np.testing.assert_allclose(found, dpo, rtol=1e-6)
  simpo = implicit.simpo_multi(jnp.array(log_probs[:2]), jnp.array(lengths[:2]), jnp.array([[0.0, 1.0], [0.0, 0.0]]), beta=2.0, gamma=1.0)
  average = 2.0 * jnp.array(log_probs[:2]) / jnp.array(lengths[:2])
  np.testing.assert_allclose(simpo, preference_cross_entropy(average[:, None] - average[None], jnp.array([[0.0, 1.0], [0.0, 0.0]]), margin=1.0), rtol=1e-6)


def test_logo_pushes_the_winner_up_and_its_negatives_down_alike():
  """An absent or uncompared response has no part in it."""
  wins = np.zeros((4, 4), np.float32)
  wins[1, [0, 2]] = 1
  gradient = jax.grad(lambda x: implicit.simpo_multi(x, jnp.array([3, 3, 3, 0]), wins))(jnp.array([-3.0, -2.0, -4.0, 0.0]))
  assert gradient[1] < 0 and gradient[3] == 0
  np.testing.assert_allclose(gradient[jnp.array([0, 2])], -gradient[1] / 2, rtol=1e-6)
