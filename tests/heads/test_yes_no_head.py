"""The yes/no head: log-odds of two tokens, their clip, and what several principles make together."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.heads.ordinal import OrdinalTokenHead
from rmjax.heads.yes_no import log_odds, satisfies_all, YesNoHead
from rmjax.losses.pointwise import binary_cross_entropy
from rmjax.training.saved import resolve_head

HEAD = YesNoHead(token_ids=(4, 1))
PROMPT = jnp.ones((2, 16))
LOGITS = 2 * jax.random.normal(jax.random.key(0), (2, 3, 9))


def logits(yes, no, top=0.0, rest=0.0):
  return jnp.array([[top, no, rest, rest, yes]], jnp.float32)


def test_two_and_minus_one_make_three():
  reward = HEAD.apply({}, logits(2.0, -1.0)[None], PROMPT[:1])
  np.testing.assert_array_equal(reward, [[3.0]])
  np.testing.assert_allclose(jax.nn.sigmoid(reward), 0.952574, atol=1e-6)
  np.testing.assert_allclose(binary_cross_entropy(reward, jnp.ones((1, 1))), -np.log(0.952574), atol=1e-6)
  np.testing.assert_allclose(binary_cross_entropy(reward, jnp.zeros((1, 1))), -np.log(1 - 0.952574), atol=2e-5)


def test_it_is_the_difference_of_log_probabilities_and_a_constant_changes_nothing():
  log_p = np.asarray(jax.nn.log_softmax(LOGITS))
  reward = HEAD.apply({}, LOGITS, PROMPT)
  np.testing.assert_allclose(reward, log_p[..., 4] - log_p[..., 1], atol=1e-5)
  np.testing.assert_allclose(HEAD.apply({}, LOGITS + 8, PROMPT), reward, atol=1e-5)
  np.testing.assert_allclose(YesNoHead(token_ids=(1, 4)).apply({}, LOGITS, PROMPT), -reward, atol=1e-6)
  assert not HEAD.init(jax.random.key(0), LOGITS, PROMPT)  # no parameters
  assert HEAD.apply({}, LOGITS.astype(jnp.bfloat16), PROMPT).dtype == jnp.float32


@pytest.mark.parametrize(
  ('yes', 'no', 'top', 'expected'),
  [
    (100.0, 0.0, 0.0, 50.0),  # no is 100 below yes, which is the top
    (0.0, 100.0, 0.0, -50.0),
    (-10.0, -20.0, 50.0, -0.0),  # both too far below another token: 60 and 70
    (10.0, -20.0, 50.0, 10.0),  # -40, and -70 cut to -50
    (49.0, 0.0, 0.0, 49.0),
  ],
)
def test_each_log_probability_is_at_least_50_below_the_top(yes, no, top, expected):
  found = log_odds(logits(yes, no, top), 4, 1)
  np.testing.assert_allclose(found, [expected], atol=1e-5)
  np.testing.assert_allclose(log_odds(logits(yes + 7, no + 7, top + 7, 7.0), 4, 1), [expected], atol=1e-5)


def test_a_clipped_reward_still_has_a_gradient():
  gradient = jax.grad(lambda z: log_odds(z, 4, 1).sum())
  for z in (logits(-10.0, -20.0, 90.0), LOGITS):
    expected = np.zeros(z.shape)
    expected[..., 4], expected[..., 1] = 1, -1
    np.testing.assert_array_equal(gradient(z), expected)


def test_it_is_an_ordinal_head_of_two_tokens():
  ordinal = OrdinalTokenHead(token_ids=(1, 4))  # from the lowest rating
  scores = ordinal.apply({}, LOGITS, PROMPT)
  reward = HEAD.apply({}, LOGITS, PROMPT)
  np.testing.assert_allclose(scores[..., 1] - scores[..., 0], reward, atol=1e-5)
  np.testing.assert_allclose(ordinal.reward(scores), 1 + jax.nn.sigmoid(reward), atol=1e-6)


def test_preferences_are_differences_of_rewards():
  reward = HEAD.apply({}, LOGITS, PROMPT)
  pairs = HEAD.preference_logits(reward)
  np.testing.assert_array_equal(pairs, reward[..., :, None] - reward[..., None, :])
  np.testing.assert_array_equal(HEAD.reward(reward), reward)


def test_of_several_principles_the_least_counts():
  np.testing.assert_array_equal(satisfies_all(jnp.array([[3.0, -1.0], [0.5, 4.0]])), [0.5, -1.0])


def test_yes_with_its_space_is_another_token():
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  backend.train_from_iterator(['Answer: Yes', 'Answer: No', 'Yes', 'No'] * 9, trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
  tokenizer = Tokenizer(backend, {}, None)
  head = resolve_head(dict(name='rmjax.heads.yes_no:YesNoHead', tokens=(' Yes', ' No')), tokenizer, ' Answer:')
  assert head['token_ids'] == tuple(backend.encode(text).ids[0] for text in (' Yes', ' No'))
  assert set(head['token_ids']).isdisjoint(backend.encode('Yes').ids + backend.encode('No').ids)
  with pytest.raises(InputError, match="splits 'Yes it' after"):
    resolve_head(dict(tokens=('Yes it', 'No')), tokenizer, ' Answer:')


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: YesNoHead(), 'model.head.token_ids = (): give two different tokens, the one that says yes'),
    (lambda: YesNoHead(token_ids=(1, 2, 3)), 'model.head.token_ids = (1, 2, 3): give two'),
    (lambda: YesNoHead(token_ids=(3, 3)), 'model.head.token_ids = (3, 3): '),
    (lambda: YesNoHead(token_ids=(3, -1)), 'model.head.token_ids = (3, -1): '),
    (lambda: YesNoHead(token_ids=(3, 9)).apply({}, LOGITS, PROMPT), 'model.head.token_ids = (3, 9): the model has 9 tokens'),
  ],
)
def test_bad_tokens_are_named(make, message):
  with pytest.raises(InputError, match=re.escape(message)):
    make()
