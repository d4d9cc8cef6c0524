"""The world of reactions against its own formulas: rates, users, what a log leaves out."""

import numpy as np
import pytest

from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.worlds import reactions
from rmjax.worlds.reactions import base_rate, class_probabilities, CLASSES, reaction_logits, reaction_rates, Reactions, Settings


def records(count=3000, **settings):
  world = Reactions(**{'split': 'eval', 'size': count, **settings})
  return [world[i] for i in range(count)]


def label(found, name):
  return np.array([np.ravel(record.labels[name])[0] for record in found], float)


def rated(found):
  return np.array([record.ratings[0] for record in found])


def test_reactions_are_about_as_rare_as_they_should_be():
  assert 0.02 < base_rate(Settings()) < 0.04
  found = records(6000, users=20_000)
  rate = base_rate(Settings())
  assert abs(rated(found).mean() - rate) < 3.5 * (rate / 6000) ** 0.5
  for name in ('quality', 'warmth', 'goodbye'):  # each draws reactions
    assert label(found, name)[rated(found) == 1].mean() > label(found, name).mean()


def test_the_rate_of_a_class_by_hand():
  s = Settings(propensity=0.0, adversaries=0.0)
  assert CLASSES.shape == (72, 3)
  best = int(np.flatnonzero((CLASSES == [1.0, 1.0, 1.0]).all(1))[0])
  assert reaction_logits(CLASSES, s)[best] == pytest.approx(2.5 + 2.5 + 2.0 - 6.0)
  assert reaction_rates(s)[best] == pytest.approx(1 / (1 + np.exp(-1.0)))
  mixed = Settings(propensity=0.0, adversaries=0.5, eager=0.2)
  assert reaction_rates(mixed)[best] == pytest.approx(0.5 * 0.731059 + 0.1, abs=1e-6)
  draws = np.random.default_rng(0).normal(0, 1.5, 400_000)
  wide = reaction_rates(Settings(propensity=1.5, adversaries=0.0))[best]
  assert wide == pytest.approx(np.mean(1 / (1 + np.exp(-1.0 - draws))), abs=2e-3)


def test_policies_are_distributions_with_room_for_so_much():
  chances = class_probabilities((0.5, 0.5, 0.3), Settings())
  assert chances.sum() == pytest.approx(1) and chances @ CLASSES[:, 2] == pytest.approx(0.3)
  correlation = lambda s: np.cov(CLASSES[:, :2].T, aweights=class_probabilities((0.5, 0.5, 0.3), s))[0, 1]
  assert correlation(Settings()) < -0.01 and abs(correlation(Settings(room=0.0))) < 1e-9


def test_splits_share_no_user_and_no_prompt_and_a_goodbye_comes_last():
  train, held = records(1500, split='train'), records(1500)
  assert not set(label(train, 'user')) & set(label(held, 'user'))
  assert not {r.prompt for r in train} & {r.prompt for r in held}
  tokenizer = Tokenizer.load(reactions.TOKENIZER)
  for record in held[:200]:
    assert record.responses[0].endswith(reactions.GOODBYE) == bool(record.labels['goodbye'][0])
    assert tokenizer.backend.token_to_id('<unk>') not in tokenizer.backend.encode(record.prompt + record.responses[0]).ids
  again = Reactions(split='eval', size=10)[7]
  assert again.prompt == held[7].prompt and again.responses == held[7].responses and again.ratings == held[7].ratings


def test_what_is_left_out_multiplies_the_odds():
  whole, kept = (rated(records(4000, split='train', keep=keep)).mean() for keep in (1.0, 0.1))
  odds = lambda p: p / (1 - p)
  assert odds(kept) / odds(whole) == pytest.approx(10, rel=0.35)
  assert rated(records(2000, keep=0.1)).mean() < 0.06  # of the held-out log nothing is


def test_accounts_that_react_at_random_and_users_who_do_not_read():
  found = records(2000, adversaries=1.0, eager=0.5)
  assert 0.45 < rated(found).mean() < 0.55 and label(found, 'adversary').all()
  seen, blind = (records(2000, split='train', blind=blind, keep=0.1) for blind in (False, True))
  correlation = lambda found: np.corrcoef(label(found, 'gold'), rated(found))[0, 1]
  assert abs(correlation(blind)) < 0.08 < 0.15 < correlation(seen)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (dict(keep=0.0), 'world.keep = 0'),
    (dict(adversaries=1.2), 'world.adversaries = 1.2'),
    (dict(policies=((0.1, 0.2),)), 'world.policies'),
    (dict(users=3), 'world.users = 3'),
    (dict(hearts=1), 'world.hearts: there is no such setting'),
    (dict(split='test'), "split 'test'"),
  ],
)
def test_bad_settings_are_named(settings, message):
  with pytest.raises(InputError, match=message):
    Reactions(**{'split': 'train', **settings})
