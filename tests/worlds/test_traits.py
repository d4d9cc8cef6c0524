"""The world of traits is what its docstrings say: reproducible, of known probabilities, of gold by its formula, disjoint between its splits."""

import dataclasses

import ml_collections
import numpy as np
import pytest

from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.worlds.preferences_tasks import FILLERS, NAMES
from rmjax.worlds.traits import gold_reward, PLACES_OF_A_SCALE, SCALES, Settings, TOPICS, Traits

GROUPS = ((2.0, -1.0, 0.0), (0.0, 2.0, -1.0))
MIX = ((0.9, 0.1), (0.2, 0.8), (0.5, 0.5), (1.0, 0.0))
FULL = dict(
  weights=GROUPS, mix=MIX, scope=((1.0, 1.0, 1.0), (0.0, 2.0, 1.0), (1.0, -1.0, 1.0), (0.5, 0.5, 0.5)), interactions=((0, 1, 0.7), (1, 1, -0.4)),
  closeness=1.5, spread=0.2, bias=(0.5, 0.0, -0.5), fillers=(0, 2), temperature=0.6,
)  # fmt: skip


def world(split='train', size=2000, **settings):
  return Traits(split=split, size=size, **settings)


def within(found, expected, count):
  """A share within four standard errors."""
  return abs(found - expected) < 4 * np.sqrt(max(expected * (1 - expected), 0.01) / count)


def test_a_record_is_a_function_of_settings_seed_split_and_number():
  one, again = world(**FULL), world(size=60, **FULL)
  for i in (59, 3, 3):
    np.testing.assert_equal(dataclasses.asdict(one[i]), dataclasses.asdict(again[i]))
  others = [one[4], world(seed=1, **FULL)[3], world('eval', **FULL)[3]]
  assert len({(record.prompt, record.responses) for record in [one[3], *others]}) == 4
  assert len(again) == 60
  with pytest.raises(IndexError):
    again[60]


@pytest.mark.parametrize('settings', [{}, FULL, dict(named=True, weights=GROUPS)])
def test_splits_share_no_prompt_and_no_response_whatever_the_seed(settings):
  prompts, texts = ({split: set() for split in ('train', 'eval')} for _ in range(2))
  for split in prompts:
    for seed in (0, 1):
      for record in (world(split, seed=seed, **settings)[i] for i in range(250)):
        prompts[split].add(record.prompt)
        texts[split].update(record.responses)
  assert not prompts['train'] & prompts['eval'] and not texts['train'] & texts['eval']
  assert all(len(found) > 300 for found in (*prompts.values(), *texts.values()))


def test_a_world_of_few_texts_does_not_hang():
  source = world('eval', traits=1, weights=((1.0,),), marks=0, size=5)
  assert all(len(source[i].responses) == 4 for i in range(5)) and not source[0].wins.any()  # one text: there is nothing to compare


@pytest.mark.parametrize('settings', [FULL, dict(traits=len(SCALES), weights=((1.0,) * len(SCALES),), topics=len(TOPICS), named=True, fillers=(0, 3))])
def test_no_word_is_unknown_and_all_records_have_the_same_labels(settings):
  tokenizer = Tokenizer.load(Traits.tokenizer_path)
  names = set()
  for split in ('train', 'eval'):
    for i in range(60):
      record = world(split, **settings)[i]
      tree = tokenizer.encode_record(record, max_length=256)
      assert tokenizer.unk_id not in [token for segment in tree.segments for token in segment.tokens]
      names.add(frozenset(record.labels))
  assert len(names) == 1


def test_the_words_of_traits_are_their_own():
  words = [word for scale in SCALES for word in scale]
  assert len(set(words)) == len(words) and len(words) % PLACES_OF_A_SCALE == 0
  assert not set(words) & {word for text in FILLERS for word in text.split()}


@pytest.mark.parametrize('blur', [0.0, 1.0])
def test_marks_tell_the_levels_in_twelve_places(blur):
  errors = []
  for i in range(150):
    record = world(marks=3, blur=blur, fillers=(0, 1))[i]
    for n, text in enumerate(record.responses):
      words = text.split()
      for j in range(3):
        said = [SCALES[j].index(word) for word in words if word in SCALES[j]]
        assert len(said) == 3
        level = record.labels[f'trait_{j}'][n]
        assert 0 <= level <= 1
        if 0.35 < level < 0.65:  # nothing is cut off at the ends
          errors += [place - 11 * level for place in said]
      assert words[-1] == '.' and record.labels['length'][n] == len(words)
  assert abs(np.mean(errors)) < 0.1 and abs(np.std(errors) - np.sqrt(blur**2 + 1 / 12)) < 0.08  # the noise, and that of rounding


def test_fillers_come_first_and_are_as_many_as_is_said():
  counts = []
  for i in range(300):
    for text in world(fillers=(0, 0, 2), marks=1)[i].responses:
      rest, count = text, 0
      while found := next((filler for filler in FILLERS if rest.startswith(filler)), None):
        rest, count = rest[len(found) + 1 :], count + 1
      counts.append(count)
  assert set(counts) == {0, 2} and within(np.mean(np.equal(counts, 2)), 1 / 3, len(counts))


def test_levels_can_be_few():
  found = np.concatenate([world(values=3)[i].labels['trait_1'] for i in range(200)])
  assert set(found.tolist()) == {0.0, 0.5, 1.0} and all(within(np.mean(found == v), 1 / 3, len(found)) for v in (0, 0.5, 1))


def test_gold_by_hand():
  s = Settings(**{**FULL, 'bias': ()})
  levels = np.array([[0.25, 0.5, 1.0], [1.0, 0.0, 0.5]])
  # Topic 1 has scope (0, 2, 1), group 1 weights (0, 2, -1); interactions 0.7 * s0 s1 - 0.4 * s1 s1 with s = 2z - 1.
  expected = [2 * 2 * 0.5 - 1.0 + 0.0 - 0.0 - 1.5 * abs(0.25 - 0.6), 0.0 - 0.5 + 0.7 * -1.0 - 0.4 * 1.0 - 1.5 * abs(1 - 0.6)]
  np.testing.assert_allclose(gold_reward(levels, 1, 1, 0.6, s), expected, rtol=1e-6)


def test_gold_is_the_groups_mean_by_the_topic_s_mix_or_the_named_group_s():
  for named in (False, True):
    for i in range(40):
      record = world(named=named, **FULL)[i]
      golds = np.stack([record.labels['gold_0'], record.labels['gold_1']])
      shares = np.eye(2)[record.labels['group']] if named else np.array(MIX[record.labels['topic']])
      np.testing.assert_allclose(record.labels['gold'], shares @ golds, rtol=1e-5, atol=1e-6)
  assert 'gold_0' not in world()[0].labels


def test_without_closeness_and_interactions_gold_is_the_scope_s_weighing():
  scope = ((1.0, 0.0, 2.0), (0.0, 1.0, 0.0))
  for i in range(30):
    record = world(topics=2, scope=scope, weights=((1.0, 2.0, 3.0),))[i]
    levels = np.stack([record.labels[f'trait_{j}'] for j in range(3)], -1)
    np.testing.assert_allclose(record.labels['gold'], levels @ (np.array(scope[record.labels['topic']]) * [1, 2, 3]), rtol=1e-5)


def test_the_centre_is_where_the_levels_lie():
  close = world(traits=1, weights=((0.0,),), closeness=1.0, spread=0.1)
  levels = np.stack([close[i].labels['trait_0'] for i in range(600)])
  gold = np.stack([close[i].labels['gold'] for i in range(600)])
  assert gold.max() <= 0
  inner = (levels.min(1) > 0.05) & (levels.max(1) < 0.95)
  assert abs(levels[inner].std(1, ddof=1).mean() / (0.1 * 0.92) - 1) < 0.1  # of four draws: c4 = 0.92
  assert abs(-gold.mean() - 0.1 * np.sqrt(2 / np.pi)) < 0.006  # mean of |N(0, 0.1)|, less what is cut off at the ends
  middle = levels.mean(1, keepdims=True)
  assert np.corrcoef(-abs(levels - middle).ravel(), gold.ravel())[0, 1] > 0.6  # the others say where it is
  far = world(traits=1, weights=((0.0,),), closeness=1.0)
  levels = np.stack([far[i].labels['trait_0'] for i in range(600)])
  assert abs(np.corrcoef(levels[:, 0], levels[:, 1])[0, 1]) < 0.15  # without a spread they do not


def test_annotators_choose_as_their_probability_says():
  """Probability is that of somebody to come; who judged a record is one group, and judges all of it."""
  for settings in (dict(weights=GROUPS, mix=MIX, temperature=0.5), dict(weights=GROUPS, mix=MIX, temperature=0.5, named=True), {**FULL}):
    p, won = [], []
    for i in range(700):
      record = world(**settings)[i]
      i, j = np.nonzero(np.triu(record.wins + record.wins.T))
      p.append(record.labels['probability'][i, j])
      won.append(record.wins[i, j])
    p, won = np.concatenate(p), np.concatenate(won)
    assert set(won.tolist()) == {0.0, 1.0}
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
      chosen = (p >= low) & (p < low + 0.2)
      if chosen.sum() > 200:
        assert abs(won[chosen].mean() - p[chosen].mean()) < 5 * 0.5 / np.sqrt(chosen.sum() / 3)  # pairs of one record hang together


def test_the_probability_by_hand():
  for named in (False, True):
    record = world(named=named, **FULL)[11]
    levels = np.stack([record.labels[f'trait_{j}'] for j in range(3)], -1)
    felt = [record.labels[f'gold_{g}'] + levels @ FULL['bias'] for g in range(2)]
    each = np.stack([1 / (1 + np.exp(-(x[:, None] - x[None, :]) / 0.6)) for x in felt])
    shares = np.eye(2)[record.labels['group']] if named else MIX[record.labels['topic']]
    expected = np.where(record.wins + record.wins.T > 0, np.tensordot(shares, each, 1), 0)
    np.testing.assert_allclose(record.labels['probability'], expected, rtol=1e-4, atol=1e-6)


def test_nearly_without_noise_the_better_one_for_the_group_wins():
  for i in range(50):
    record = world(weights=GROUPS, mix=MIX, temperature=1e-3)[i]
    gold = record.labels[f'gold_{record.labels["group"]}']
    i, j = np.nonzero(record.wins)
    assert np.all(gold[i] > gold[j])


def test_bias_is_felt_and_gold_does_not_know_it():
  settings = dict(weights=((1.0, 0.0, 0.0),), bias=(0.0, 3.0, 0.0), temperature=0.2)
  plain, biased = world(**{**settings, 'bias': ()}), world(**settings)
  longer = []
  for i in range(300):
    np.testing.assert_array_equal(plain[i].labels['gold'], biased[i].labels['gold'])
    a, b = np.nonzero(biased[i].wins)
    longer += (biased[i].labels['trait_1'][a] > biased[i].labels['trait_1'][b]).tolist()
  assert np.mean(longer) > 0.8


def test_groups_judge_topics_as_the_mix_says_and_topics_are_alike():
  records = [world(size=4000, weights=GROUPS, mix=MIX)[i] for i in range(1500)]
  topic, group = (np.array([record.labels[name] for record in records]) for name in ('topic', 'group'))
  for t in range(4):
    assert within(np.mean(topic == t), 0.25, len(topic)) and within(np.mean(group[topic == t]), MIX[t][1], (topic == t).sum())
  alike = np.array([world(weights=GROUPS)[i].labels['group'] for i in range(800)])
  assert within(alike.mean(), 0.5, 800)


def test_prompts_name_their_topic_and_the_group_where_they_should():
  for named in (False, True):
    for i in range(60):
      record = world(named=named, weights=GROUPS)[i]
      words = record.prompt.split()
      assert words[0] == (NAMES[record.labels['group']] if named else 'who') and words[3] == TOPICS[record.labels['topic']] == record.subset


def test_comparisons_are_turned_around_as_often_as_is_said_and_never_in_the_eval_split():
  flips, settings = (0.0, 0.3, 0.5, 0.1), dict(temperature=0.5)
  rates = {t: [] for t in range(4)}
  for i in range(900):
    plain, flipped = world(**settings)[i], world(flips=flips, **settings)[i]
    turned = flipped.labels['flipped']
    np.testing.assert_array_equal(turned, turned.T)
    np.testing.assert_array_equal(flipped.labels['probability'], plain.labels['probability'])  # of before any flip
    np.testing.assert_array_equal(flipped.responses, plain.responses)
    a, b = np.nonzero(np.triu(flipped.wins + flipped.wins.T))
    rates[int(flipped.labels['topic'])] += turned[a, b].tolist()
  for t, found in rates.items():
    assert within(np.mean(found), flips[t], len(found)) if flips[t] else not any(found)
  assert 'flipped' not in world()[0].labels
  assert not any(world('eval', flips=(1.0,) * 4)[i].labels['flipped'].any() for i in range(50))
  always = [world(flips=(1.0,) * 4, temperature=1e-3)[i] for i in range(20)]
  assert all(record.labels['gold'][i] < record.labels['gold'][j] for record in always for i, j in np.argwhere(record.wins))


@pytest.mark.parametrize('pairs', [0, 1, 4])
def test_so_many_pairs_of_different_texts_are_compared(pairs):
  counts = np.zeros((4, 4))
  for i in range(300):
    wins = world(pairs=pairs)[i].wins
    compared = wins + wins.T
    assert compared.sum() / 2 == (pairs or 6) and set(compared.ravel().tolist()) <= {0.0, 1.0}
    counts += compared
  rate = counts[np.triu_indices(4, 1)] / 300
  assert all(within(share, (pairs or 6) / 6, 300) for share in rate)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (dict(split='test'), "split 'test': there are 'train' and 'eval'"),
    (dict(topics=0), 'world.topics = 0: there are 1 to 16'),
    (dict(traits=99), 'world.traits = 99: there are words for 1 to'),
    (dict(responses=0), 'world.responses = 0'),
    (dict(pairs=7), 'world.pairs = 7: 4 responses make 6 pairs'),
    (dict(values=1), 'world.values = 1: a trait needs at least 2'),
    (dict(fillers=()), r'world.fillers = \(\): give numbers of sentences'),
    (dict(fillers=(-1,)), r'world.fillers = \(-1,\)'),
    (dict(weights=()), 'world.weights: give those of 1 to'),
    (dict(weights=((1.0, 2.0),)), r'world.weights has shape \(1, 2\): \(1, 3\) is wanted'),
    (dict(weights=((1.0, 2.0, 3.0), (1.0,))), r'world.weights has shape \(\): \(2, 3\) is wanted'),
    (dict(weights=((1.0, 2.0, float('nan')),)), 'world.weights: give finite numbers'),
    (dict(mix=((1.0,),)), r'world.mix has shape \(1, 1\): \(4, 1\) is wanted'),
    (dict(mix=((0.5,),) * 4), 'world.mix: every topic needs shares'),
    (dict(scope=((1.0,),)), 'world.scope has shape'),
    (dict(bias=(1.0,)), r'world.bias has shape \(1,\): \(3,\) is wanted'),
    (dict(flips=(0.1,)), r'world.flips has shape \(1,\): \(4,\) is wanted'),
    (dict(flips=(0.1, 0.2, 0.3, 1.4)), 'world.flips = .*: give probabilities'),
    (dict(interactions=((0, 3, 1.0),)), 'world.interactions: traits 0 and 3: there are 0 to 2'),
    (dict(interactions=((0.0, 1.0),)), r'world.interactions: give \(trait, trait, weight\)'),
    (dict(temperature=0.0), 'world.temperature = 0.0: it must be above 0'),
    (dict(temperature=float('nan')), 'world.temperature = nan'),
    (dict(marks=-1), 'world.marks = -1'),
    (dict(blur=float('nan')), 'world.blur = nan'),
    (dict(spread=-0.1), 'world.spread = -0.1'),
    (dict(closeness=float('inf')), 'world.closeness = inf'),
    (dict(colour='red'), 'world.colour: there is no such setting; there are topics, traits'),
  ],
)
def test_settings_that_there_are_not(settings, message):
  with pytest.raises(InputError, match=message) as raised:
    Traits(**{'split': 'train', **settings})
  assert '\n' not in str(raised.value)


def test_settings_are_the_leaves_of_a_config():
  config = ml_collections.ConfigDict(dataclasses.asdict(Settings(**FULL)))
  assert Traits(split='train', **config.to_dict()).settings == Settings(**FULL)
  lists = {**config.to_dict(), 'weights': [list(row) for row in GROUPS]}
  assert Traits(split='train', **lists).settings == Settings(**FULL)
