"""Endogenous reward: the card's numbers, its identities by listing every response, packed trees against paths alone, and a directory as a reward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import models, trees
from rmjax.backbones.decoder import DecoderConfig
from rmjax.errors import InputError
from rmjax.models import build
from rmjax.rewards.endogenous import chosen_and_value, decoder_endogenous_reward, EndogenousHead, sequence_endogenous_reward, token_endogenous_reward
from rmjax.training.mesh import one_device_mesh
from rmjax.training.saved import init_params
from rmjax.worlds import sequences_exact as exact

HEAD = 'rmjax.rewards.endogenous:EndogenousHead'
CONFIG = DecoderConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, tie_embeddings=False)
RNG = np.random.default_rng(0)
TEXT = [RNG.integers(0, 32, size).tolist() for size in (5, 3, 6, 1)]  # a prompt and three responses, one of a single token
SPACE = exact.space(3, 3, end=2)  # responses of unequal length
ALL = exact.rollout(np.arange(len(SPACE.tokens))[None], SPACE)  # all of them, to one prompt
TABLE = np.random.default_rng(1).normal(size=SPACE.shape).astype(np.float32) * 2


def rewards_of(table, *, alpha=1.0, gamma=1.0):
  """Token rewards [T] and sums [Y] of all responses, by a table of logits of each prefix."""
  chosen, values = chosen_and_value(jnp.asarray(table)[SPACE.prefixes], SPACE.tokens, alpha)
  lay_out = lambda x: jnp.concatenate([jnp.zeros(1), x.reshape(-1)])[None]
  found = token_endogenous_reward(lay_out(chosen), lay_out(values), ALL, gamma)
  return found, sequence_endogenous_reward(found, ALL)[0, 0]


def value_of(table, alpha=1.0):
  return alpha * jax.nn.logsumexp(table[0] / alpha)


def batch_of(*groups, length=40, slots=2, responses=3, chained=False):
  make = trees.chain if chained else trees.branch
  return trees.pack([[make(prompt, answers) for prompt, *answers in groups]], length=length, slots=slots, responses=responses)


def test_the_card_s_numbers():
  """At alpha = 1: f(s1) = [1, 0], f(s2) = [2, -1], tokens (0, 1)."""
  batch = trees.pack([[trees.branch([0], [[0, 1]])]], length=4, slots=1, responses=1)
  chosen, values = chosen_and_value(jnp.array([[[9.0, 9.0], [1.0, 0.0], [2.0, -1.0], [7.0, 7.0]]]), batch.tokens)
  found = token_endogenous_reward(chosen, values, batch)
  np.testing.assert_allclose(found[0], [0, -1.048587, -1.0, 0], atol=1e-6)
  total = sequence_endogenous_reward(found, batch)
  np.testing.assert_allclose(total[0, 0, 0], -2.048587, atol=1e-6)
  log_pi = jax.nn.log_softmax(jnp.array([1.0, 0.0]))[0] + jax.nn.log_softmax(jnp.array([2.0, -1.0]))[1]
  np.testing.assert_allclose(total[0, 0, 0], log_pi + jax.nn.logsumexp(jnp.array([1.0, 0.0])), atol=1e-6)
  np.testing.assert_allclose(sequence_endogenous_reward(found, batch, mode='mean')[0, 0, 0], -2.048587 / 2, atol=1e-6)
  np.testing.assert_allclose(sequence_endogenous_reward(found, batch, mode='discounted', discount=0.5)[0, 0, 0], -1.548587, atol=1e-6)
  half = token_endogenous_reward(chosen, values, batch, 0.5)
  np.testing.assert_allclose(half[0, 1:3], [1 - 0.5 * 2.048587, -1.0], atol=1e-6)


@pytest.mark.parametrize('alpha', [1.0, 0.3])
def test_a_sum_is_the_log_likelihood_and_the_prompt_s_value(alpha):
  _, total = rewards_of(TABLE, alpha=alpha)
  np.testing.assert_allclose(total, alpha * exact.log_probs(jnp.asarray(TABLE) / alpha, SPACE) + value_of(TABLE, alpha), atol=1e-5)


def test_a_shift_of_all_logits_moves_the_last_token_alone():
  before, total = rewards_of(TABLE)
  after, shifted = rewards_of(TABLE + 5)
  last = np.isin(np.arange(before.shape[1]), np.asarray(ALL.response_ends))
  np.testing.assert_allclose(after - before, 5 * last[None], atol=1e-5)
  np.testing.assert_allclose(shifted - total, 5, atol=1e-5)  # of whatever length


def test_a_shift_of_each_state_leaves_differences_of_sums():
  shifts = np.random.default_rng(2).normal(size=(SPACE.shape[0], 1)).astype(np.float32) * 3
  (plain, total), (shaped, shifted) = rewards_of(TABLE), rewards_of(TABLE + shifts)
  np.testing.assert_allclose(shifted - total, shifts[0, 0], atol=1e-5)
  assert np.abs(shaped - plain).max() > 1  # tokens are shaped
  broken = rewards_of(TABLE + shifts, gamma=0.9)[1] - rewards_of(TABLE, gamma=0.9)[1]
  assert np.ptp(broken) > 0.1  # with a discount they do not telescope


def test_maximum_entropy_returns_the_model_itself():
  """Entropy-regularised at alpha, the optimum of the reward over all responses is pi: nothing is learned."""
  alpha = 0.7
  _, total = rewards_of(TABLE, alpha=alpha)
  log_pi = exact.log_probs(jnp.asarray(TABLE) / alpha, SPACE)
  np.testing.assert_allclose(jax.nn.log_softmax(total / alpha), log_pi, atol=1e-5)
  objective = lambda table: exact.expected(total - alpha * exact.log_probs(table, SPACE), table, SPACE)
  gradient = jax.grad(lambda table: objective(table))(jnp.asarray(TABLE) / alpha)
  np.testing.assert_allclose(gradient, 0, atol=1e-5)
  assert np.abs(jax.grad(objective)(jnp.asarray(TABLE) * 2 / alpha)).max() > 1e-2


@pytest.mark.parametrize(('alpha', 'beta'), [(1.0, 1.0), (1.0, 0.25), (0.5, 2.0)])
def test_a_kl_penalty_sharpens_over_responses(alpha, beta):
  _, total = rewards_of(TABLE, alpha=alpha)
  log_pi = exact.log_probs(jnp.asarray(TABLE) / alpha, SPACE)
  found = exact.optimal_log_probs(total, log_pi, beta)
  np.testing.assert_allclose(found, jax.nn.log_softmax((1 + alpha / beta) * log_pi), atol=1e-5)


def test_with_a_small_penalty_it_is_the_most_likely_response():
  """With alpha = 1 and beta = 0.01 the exponent is 101."""
  log_pi = exact.log_probs(jnp.asarray(TABLE), SPACE)
  found = exact.optimal_log_probs(rewards_of(TABLE)[1], log_pi, 0.01)
  np.testing.assert_allclose(found, jax.nn.log_softmax(101 * log_pi), atol=2e-3)
  assert jnp.argmax(found) == jnp.argmax(log_pi) and jnp.exp(found.max()) > 0.99


def test_theorem_1_bounds_the_pair_probabilities():
  """TV(P_r*, P_r^) <= alpha H eps / 2 over pairs, with eps the largest error of a token's log-probability."""
  rng = np.random.default_rng(3)
  for alpha in (1.0, 0.4):
    other = TABLE + rng.normal(size=TABLE.shape).astype(np.float32) * 0.05
    log_pi = lambda table: np.asarray(exact.token_log_probs(jnp.asarray(table) / alpha, SPACE))  # noqa: B023
    eps = np.abs(log_pi(TABLE) - log_pi(other)).max()
    pairs = [jax.nn.sigmoid(total[:, None] - total[None]) for total in (rewards_of(TABLE, alpha=alpha)[1], rewards_of(other, alpha=alpha)[1])]
    worst = np.abs(pairs[0] - pairs[1]).max()
    assert 0 < worst <= alpha * 3 * eps / 2 + 1e-6


def model_of(**head):
  return build(CONFIG, dtype='float32', remat='none', head=dict(name=HEAD, **head), lora=dict(rank=0))


@pytest.fixture(scope='module', name='params')
def _params():
  return init_params(model_of(), '', one_device_mesh(), jax.random.key(0))


@jax.jit
def dense_logits(params, path):
  columns = jnp.arange(path.shape[1], dtype=jnp.int32)[None]
  return model_of().backbone.apply({'params': params}, path, columns, jnp.full_like(columns, path.shape[1]), method='logits')


def by_definition(params, prompt, response, *, alpha, gamma):
  """Rewards of tokens, from dense logits of one path: logits[t] of the last prompt token on, one position more than the tokens' log-probs need."""
  path = np.array([prompt + response + [0] * 24], np.int32)[:, :24]  # what comes after is seen by nothing
  logits = dense_logits(params['backbone'], path)
  f = np.asarray(logits[0, len(prompt) - 1 : len(prompt) + len(response)], np.float64)
  values = alpha * np.log(np.exp(f / alpha).sum(-1))
  values[-1] = 0
  return f[np.arange(len(response)), response] - gamma * values[1:]


@pytest.mark.parametrize('chunk', [7, 256])
def test_packed_trees_are_their_paths_alone(params, chunk, monkeypatch):
  monkeypatch.setattr(models, 'CHUNK', chunk)
  other, options = [[4, 5], [6], [7, 8]], dict(alpha=0.6, gamma=0.9)
  batch = batch_of(other, TEXT)
  tokens = jax.jit(lambda params: decoder_endogenous_reward(model_of().backbone, params, batch, **options))(params['backbone'])
  scores = jax.jit(lambda params: model_of(**options).apply({'params': params}, batch))(params)
  for slot, (prompt, *responses) in enumerate((other, TEXT)):
    for n, response in enumerate(responses):
      expected = by_definition(params, prompt, response, **options)
      np.testing.assert_allclose(tokens[0][batch.response_ids[0] == slot * 3 + n], expected, atol=2e-5)
      np.testing.assert_allclose(scores[0, slot, n], expected.sum(), atol=5e-5)
  assert (np.asarray(tokens)[np.asarray(batch.response_ids) < 0] == 0).all() and scores[0, 0, 2] == 0
  modes = {mode: np.asarray(sequence_endogenous_reward(tokens, batch, mode=mode, discount=0.5))[0, 1, 1] for mode in ('mean', 'discounted')}
  expected = by_definition(params, TEXT[0], TEXT[2], **options)
  assert modes == pytest.approx(dict(mean=expected.mean(), discounted=float((expected * 0.5 ** np.arange(6)).sum())), abs=2e-5)


def test_a_response_ends_where_the_next_one_begins_in_a_chain(params):
  """Later responses continue earlier ones; each one's last value is still 0."""
  batch = batch_of(TEXT, chained=True)
  tokens = jax.jit(lambda params: decoder_endogenous_reward(model_of().backbone, params, batch))(params['backbone'])
  before = [*TEXT[0]]
  for n, response in enumerate(TEXT[1:]):
    np.testing.assert_allclose(tokens[0][batch.response_ids[0] == n], by_definition(params, before, response, alpha=1.0, gamma=1.0), atol=2e-5)
    before += response


def test_logits_of_a_whole_batch_are_never_held(params, monkeypatch):
  monkeypatch.setattr(models, 'CHUNK', 8)
  batch = batch_of(TEXT, length=64)
  program = str(jax.make_jaxpr(lambda params: model_of().apply({'params': params}, batch))(params))
  assert 'f32[1,8,32]' in program and 'f32[1,64,32]' not in program  # [R, T, V]


def test_bad_input_is_one_clear_line():
  for fields, message in ((dict(alpha=0.0), 'alpha = 0.0: it must be positive'), (dict(gamma=1.5), 'gamma = 1.5'), (dict(mode='max'), "mode = 'max': choose")):
    with pytest.raises(InputError, match=message):
      EndogenousHead(**fields)
  with pytest.raises(InputError, match="endogenous reward: mode = 'max': choose one of sum, mean, discounted"):
    sequence_endogenous_reward(jnp.zeros(ALL.tokens.shape), ALL, mode='max')
