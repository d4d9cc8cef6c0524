"""The world is what it says: reproducible, honest, of a known Bayes rate, and disjoint between its splits."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json

import grain
import ml_collections
import numpy as np
import pytest

from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.worlds import preferences
from rmjax.worlds.preferences import bayes_rate, build_tokenizer, Preferences, Settings, TOKENIZER
from rmjax.worlds.preferences_tasks import ANIMALS, DEFAULT_TASKS, HERDS, PLACES, SCALE, TASKS

GOLDEN = (
  'repeat : key lamp spoon shoe\n',
  ('one moment . key lamp .', 'gladly . key lamp spoon shoe .', 'you know . ring ball clock bag .', 'gladly . ring ball .'),
  [4.25, 5.5, 0.75, 1.0],
)
# Digests of 200 records by the code as it was before there were marks, curves, camps and levels (commit 68917aa): settings, train, eval.
EVERYTHING = dict(tasks=tuple(TASKS), exchange=True, responses=5, pairs=6, length_bias=0.2)
DIGESTS = (
  ({}, '6e3a4aaeec45f45b', '252319a25a1e37d8'),
  (dict(tasks=('lookup', 'count', 'order', 'form', 'copy')), '136934d5caa29937', 'd24e1e74bc420b55'),  # the quickstart's
  (EVERYTHING, '8d04a0c7d6942a06', 'f681122e2f3e1b54'),
)
NOTHING = dict.fromkeys(('correctness', 'completeness', 'courtesy', 'verbosity'), 0.0)
SHORT = dict(tasks=('count',), answers=False, **NOTHING)


@functools.cache  # the checked constructor takes longer than a record
def world(split='train', **settings):
  return Preferences(split=split, size=100_000, **settings)


def fields(record):
  return {**dataclasses.asdict(record), 'ratings': None}


def test_a_record_is_a_function_of_settings_seed_split_and_number():
  source, again = world(), Preferences(split='train', size=50)
  for i in (49, 3, 3):
    np.testing.assert_equal(fields(source[i]), fields(again[i]))
  others = [source[4], Preferences(split='train', seed=1)[3], world('eval')[3], world(temperature=5.0, responses=5)[3]]
  assert len({(record.prompt, record.responses) for record in [source[3], *others]}) == 5
  assert len(again) == 50 and len(list(again)) == 50


def test_records_do_not_change_between_versions():
  record = Preferences(split='train')[0]
  assert (record.prompt, record.responses, record.labels['gold'].tolist()) == GOLDEN
  exchanged = Preferences(split='train', exchange=True)[0]  # the same draw, with the right words in the wrong places
  assert exchanged.responses[2:] == ('you know . shoe spoon lamp key .', 'gladly . shoe spoon .')


@pytest.mark.parametrize(('settings', 'train', 'held_out'), DIGESTS)
def test_settings_that_are_off_change_no_bit_of_a_record(settings, train, held_out):
  def digest(split):
    found = hashlib.blake2b(digest_size=8)
    for record in Preferences(split=split, seed=3, size=200, **settings):
      found.update(repr((record.prompt, record.responses, record.subset, record.where, sorted(record.labels))).encode())
      for values in (record.wins, record.ratings, *(record.labels[name] for name in sorted(record.labels))):
        found.update(str(values.dtype).encode() + values.tobytes())
    return found.hexdigest()

  assert (digest('train'), digest('eval')) == (train, held_out)


def test_it_is_a_source_for_grain():
  dataset = grain.MapDataset.source(Preferences(split='train', size=20)).seed(0).shuffle().map(lambda record: record.where)
  assert sorted(dataset) == sorted(f'train:{i}' for i in range(20))


def test_splits_share_no_prompt_whatever_the_seed():
  prompts = {split: {world(split, seed=seed)[i].prompt for seed in (0, 1) for i in range(1500)} for split in ('train', 'eval')}
  assert not prompts['train'] & prompts['eval']
  assert all(len(found) > 2000 for found in prompts.values())


@pytest.mark.parametrize('tasks', [(task,) for task in TASKS])
def test_no_word_is_unknown_and_every_task_fits_its_prompt_to_its_split(tasks):
  tokenizer = Tokenizer.load(TOKENIZER)
  for split in ('train', 'eval'):
    for i in range(300):
      record = world(split, tasks=tasks)[i]
      assert record.subset == tasks[0]
      tree = tokenizer.encode_record(record, max_length=64)
      tokens = [token for segment in tree.segments for token in segment.tokens]
      assert tokenizer.unk_id not in tokens and tokenizer.pad_id not in tokens
      assert not tree.labels['truncated']
      assert sum(map(len, (segment.tokens for segment in tree.segments))) >= len(' '.join((record.prompt, *record.responses)).split())


def test_the_tokenizer_file_is_what_the_words_give():
  assert TOKENIZER.read_text() == build_tokenizer()
  tokenizer = Tokenizer.load(TOKENIZER)
  assert len({tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id}) == 4
  assert 200 < tokenizer.vocab_size < 400
  assert len(json.loads(TOKENIZER.read_text())['model']['vocab']) == tokenizer.vocab_size


def test_the_annotator_is_the_formula():
  record = world(temperature=0.8, length_bias=0.3, responses=6)[5]
  gold, length = record.labels['gold'], np.array([len(text.split()) for text in record.responses])
  np.testing.assert_array_equal(record.labels['length'], length)
  for i, j in itertools.combinations(range(6), 2):
    expected = 1 / (1 + np.exp(-(gold[i] - gold[j]) / 0.8 - 0.3 * (length[i] - length[j]))) if record.responses[i] != record.responses[j] else 0
    np.testing.assert_allclose(record.labels['probability'][i, j], expected, rtol=1e-5)


@pytest.mark.parametrize('settings', [{}, dict(temperature=2.0), dict(length_bias=0.5)])
def test_choices_follow_the_probabilities(settings):
  """Both the best predictor's share of right answers and a calibration sum, within four standard errors."""
  records = [world(**settings)[i] for i in range(1500)]
  p, won = (np.concatenate([x(r)[np.triu(r.wins + r.wins.T) > 0] for r in records]) for x in (lambda r: r.labels['probability'], lambda r: r.wins))
  assert abs(np.sum(won - p)) < 4 * np.sqrt(np.sum(p * (1 - p)))
  best = np.where(p > 0.5, won, 1 - won)
  assert abs(best.mean() - bayes_rate(records)) < 4 * np.sqrt(np.mean(p * (1 - p)) / len(p))
  np.testing.assert_allclose(bayes_rate(records), np.maximum(p, 1 - p).mean(), rtol=1e-6)


def test_without_noise_the_better_response_wins():
  records = [world(temperature=1e-3)[i] for i in range(200)]
  for record in records:
    gap = record.labels['gold'][:, None] - record.labels['gold'][None, :]
    compared = record.wins + record.wins.T > 0
    np.testing.assert_array_equal(record.wins[compared & (gap > 0)], 1.0)
  assert bayes_rate(records) > 0.95  # but for exact ties


def test_gold_is_the_weighted_sum_of_what_a_reader_finds():
  """Recomputed from the text, by the words of the answer to a lookup."""
  for i in range(200):
    record = world(tasks=('lookup',), correctness=8.0, completeness=4.0, courtesy=2.0, verbosity=1.0)[i]
    facts, question = record.prompt.split(' . ')
    owners = {fact.split()[0]: fact.split()[2] for fact in facts.split(' , ')}
    asked = [question.split()[2], question.split()[4]]
    for text, gold in zip(record.responses, record.labels['gold'], strict=True):
      sentences = text.removesuffix(' .').split(' . ')
      claims = [claim.split() for claim in sentences[-1].split(' , ')]
      polite = f'{sentences[0]} .' in preferences.OPENERS
      assert [claim[0] for claim in claims] == asked[: len(claims)]
      right = {owners.get(name) == thing for name, _, thing in claims}
      assert len(right) == 1  # an answer is right throughout or wrong throughout
      np.testing.assert_allclose(gold, 8 * right.pop() + 4 * len(claims) / 2 + 2 * polite + (len(sentences) - 1 - polite))


def classify(texts, labels, eval_texts):
  """Least squares on the words and pairs of neighbours that a text has; those seen five times."""
  items = lambda text: {*text.split(), *zip(text.split(), text.split()[1:], strict=False)}
  seen = collections.Counter(item for text in texts for item in items(text))
  columns = {item: k for k, item in enumerate(item for item, count in seen.items() if count >= 5)}

  def features(texts):
    found = np.zeros((len(texts), len(columns)), np.float32)
    for row, text in zip(found, texts, strict=True):
      row[[columns[item] for item in items(text) if item in columns]] = 1
    return found

  x = features(texts)
  weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ (2.0 * labels - 1))
  return features(eval_texts) @ weights > 0


@pytest.mark.parametrize('exchange', [False, True])
@pytest.mark.parametrize('task', TASKS)
def test_a_response_alone_does_not_tell_right_from_wrong(task, exchange):
  """A classifier of texts stays at chance on whether an answer is right, though it finds at once whether it is polite."""
  for attribute in ('correctness', 'courtesy'):
    settings = {**dict.fromkeys(('correctness', 'completeness', 'courtesy', 'verbosity'), 0.0), attribute: 1.0}
    records = [world(tasks=(task,), exchange=exchange, **settings)[i] for i in range(2500)]
    texts = [text for record in records for text in record.responses]
    labels = np.concatenate([record.labels['gold'] for record in records]) == 1
    accuracy = np.mean(classify(texts[:6000], labels[:6000], texts[6000:]) == labels[6000:])
    if attribute == 'correctness':
      assert abs(accuracy - 0.5) < 4 * 0.5 / np.sqrt(4000)
    else:
      assert accuracy > 0.95


def test_an_exchanged_answer_has_the_right_words():
  """Which words the prompt mentions tells a wrong answer by default, and not an exchanged one."""
  for task in ('copy', 'lookup', 'order'):
    for exchange in (False, True):
      strange = []
      for i in range(200):
        record = world(tasks=(task,), exchange=exchange, correctness=1.0, completeness=0.0, courtesy=0.0, verbosity=0.0)[i]
        known = {*record.prompt.split(), *' '.join((*preferences.OPENERS, *preferences.FILLERS)).split()}
        for text, gold in zip(record.responses, record.labels['gold'], strict=True):
          assert set(text.split()) <= known or gold == 0
          strange += [not set(text.split()) <= known] if gold == 0 else []
      assert 0.3 < np.mean(strange) < 0.7 if exchange else all(strange)


def test_length_says_nothing_of_quality_until_a_setting_makes_it():
  def correlation(**settings):
    records = [world(**settings)[i] for i in range(2000)]
    within = lambda name: np.concatenate([record.labels[name] - record.labels[name].mean() for record in records])
    return np.corrcoef(within('gold'), within('length'))[0, 1]

  assert abs(correlation()) < 0.05 and abs(correlation(completeness=0.0, verbosity=0.0, courtesy=0.0)) < 0.05
  assert correlation(verbosity=1.0) > 0.3


def test_how_many_pairs_are_compared():
  for pairs in (1, 5):
    assert all(np.sum(world(responses=5, pairs=pairs)[i].wins) == pairs for i in range(20))
  record = world(responses=5)[0]
  different = sum(a != b for a, b in itertools.combinations(record.responses, 2))
  assert np.sum(record.wins) == different == np.count_nonzero(record.labels['probability']) / 2


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def within_errors(drawn, p, errors=4):
  """Whether a sum of draws is within some standard errors of what their probabilities say."""
  return abs(np.sum(drawn) - np.sum(p)) < errors * np.sqrt(np.sum(p * (1 - p)))


def marks(text, words):
  return [word for word in text.split() if word in words]


def test_no_task_says_a_mark():
  for task in TASKS:
    texts = [text for i in range(300) for text in (world(tasks=(task,), exchange=True)[i].prompt, *world(tasks=(task,), exchange=True)[i].responses)]
    assert not {*ANIMALS, *PLACES} & set(' '.join(texts).split())
  assert sorted(word for herd in HERDS for word in herd) == sorted(ANIMALS) and SCALE == tuple(PLACES)


@pytest.mark.parametrize('answers', [True, False])
@pytest.mark.parametrize(('used', 'animals', 'places'), [({}, 0, 0), (dict(cycle=2.0), 3, 0), (dict(grade=2.0), 0, 3), (dict(cycle=2.0, grade=2.0), 3, 3)])
def test_how_many_marks_are_said(used, animals, places, answers):
  for i in range(50):
    for text in world(marks=3, answers=answers, **used)[i].responses:
      assert (len(marks(text, ANIMALS)), len(marks(text, PLACES))) == (animals, places)


def test_a_pure_cycle_is_rock_paper_scissors_and_no_ranking_fits_it():
  triples = 0
  for i in range(300):
    record = world(marks=2, cycle=3.0, responses=6, **SHORT)[i]
    kind, p = record.labels['kind'], record.labels['probability']
    assert kind.dtype == np.int32 and set(kind) <= {0, 1, 2} and not record.labels['gold'].any()
    for a, b in zip(*np.nonzero(record.wins + record.wins.T), strict=True):
      expected = {0: 0.5, 1: sigmoid(3.0), 2: sigmoid(-3.0)}[(kind[b] - kind[a]) % 3]
      np.testing.assert_allclose(p[a, b], expected, rtol=1e-6)
    for three in itertools.combinations(range(6), 3):
      if len(set(kind[list(three)])) == 3:
        triples += 1
        agreed = [sum(p[a, b] > 0.5 for a, b in itertools.combinations(ranking, 2)) for ranking in itertools.permutations(three)]
        assert sorted(agreed) == [1, 1, 1, 2, 2, 2]  # never all three
        a = list(three)
        np.testing.assert_allclose(p[np.ix_(a, a)].sum(1), 1.0, rtol=1e-6)  # each as strong as the others, so Bradley-Terry's best rewards are equal
  assert triples > 500


@pytest.mark.parametrize('split', ['train', 'eval'])
def test_words_tell_the_kind(split):
  """By majority of five words; and each single one as often as `clarity` says."""
  kinds, majorities, shares = [], [], []
  for i in range(250):
    record = world(split, marks=5, cycle=1.0, **SHORT)[i]
    for text, kind in zip(record.responses, record.labels['kind'], strict=True):
      votes = [sum(word in herd for word in text.split()) for herd in HERDS]
      kinds.append(kind)
      majorities.append(np.argmax(votes) == kind)
      shares += [True] * votes[kind] + [False] * (5 - votes[kind])
  assert np.mean(majorities) >= 0.95
  assert within_errors(shares, np.full(len(shares), 0.9))
  for kind in range(3):
    assert within_errors(np.equal(kinds, kind), np.full(len(kinds), 1 / 3))
  record = world(marks=5, cycle=1.0, clarity=1.0, **SHORT)[0]
  assert all(set(marks(text, ANIMALS)) <= set(HERDS[kind]) for text, kind in zip(record.responses, record.labels['kind'], strict=True))


def test_words_tell_the_grade_and_gold_is_it():
  for blur in (0.0, 1.0):
    said, gold = [], []
    for i in range(500):
      record = world(marks=3, grade=2.0, blur=blur, **SHORT)[i]
      said += [[SCALE.index(word) for word in marks(text, PLACES)] for text in record.responses]
      gold += record.labels['gold'].tolist()
    said, grade = np.array(said), np.array(gold) / 2
    assert 0 <= grade.min() < 0.01 and 0.99 < grade.max() <= 1 and abs(grade.mean() - 0.5) < 4 * np.sqrt(1 / 12 / len(grade))
    if not blur:
      np.testing.assert_array_equal(said, np.round(11 * grade)[:, None] * np.ones(3))
    else:
      inner = (grade > 0.4) & (grade < 0.6)  # nothing is cut off at the ends
      error = (said - 11 * grade[:, None])[inner]
      assert np.corrcoef(said.mean(1), grade)[0, 1] > 0.95
      assert abs(error.mean()) < 0.1 and abs(error.std() - np.sqrt(1 + 2 / 12)) < 0.1  # words are rounded: the noise, with that of rounding twice at most


@pytest.mark.parametrize('used', [dict(cycle=1.0), dict(grade=1.0), dict(cycle=1.0, grade=1.0)])
def test_splits_share_no_response_where_there_are_marks(used):
  settings = dict(tasks=('count',), answers=False, marks=3, **used)
  train, held_out = ({text for i in range(count) for text in world(split, **settings)[i].responses} for split, count in (('train', 1000), ('eval', 200)))
  assert len(train) > 2000 and len(held_out) > 400 and not train & held_out  # without holding out, half of the first two worlds' would be known


def test_a_world_of_few_texts_does_not_hang():
  """A right answer with one mark has sixty texts here, and for some prompts none of them is held out."""
  for settings in (dict(cycle=1.0), dict(grade=1.0, blur=0.0)):
    for split in ('train', 'eval'):
      for answers in (True, False):
        source = world(split, tasks=('arithmetic',), answers=answers, marks=1, fillers=(0,), **settings)
        assert all(len(source[i].responses) == 4 for i in range(50))


def test_without_answers_nothing_tells_right_from_wrong_and_there_is_always_a_text():
  for fillers in ((0,), (0, 3)):
    records = [world(answers=False, fillers=fillers, correctness=8.0, completeness=8.0, courtesy=1.0, verbosity=0.0)[i] for i in range(200)]
    known = set(' '.join((*preferences.OPENERS, *preferences.FILLERS)).split())
    for record in records:
      assert all(text and set(text.split()) <= known for text in record.responses)
      assert record.labels['gold'].tolist() == [float(text.startswith(preferences.OPENERS)) for text in record.responses]


def test_fillers_are_as_many_as_is_said():
  counts = collections.Counter()
  for i in range(1500):
    record = world(fillers=(1, 9), **{**SHORT, 'verbosity': 1.0})[i]
    for text, gold in zip(record.responses, record.labels['gold'], strict=True):
      sentences = [f'{sentence} .' for sentence in text.removesuffix(' .').split(' . ')]
      assert sum(sentence in preferences.FILLERS for sentence in sentences) == gold
      counts[gold] += 1
  assert set(counts) == {1, 9} and within_errors(counts[1], np.full(6000, 0.5))


def test_longer_is_better_where_verbosity_says_so():
  records = [world(fillers=tuple(range(9)), verbosity=0.5)[i] for i in range(1000)]
  within = lambda name: np.concatenate([record.labels[name] - record.labels[name].mean() for record in records])
  assert np.corrcoef(within('gold'), within('length'))[0, 1] > 0.4
  records = [world(fillers=tuple(range(9)), **{**SHORT, 'verbosity': 0.5})[i] for i in range(1000)]
  assert np.corrcoef(within('gold'), within('length'))[0, 1] > 0.9


@pytest.mark.parametrize('curve', ['linear', 'hump'])
def test_the_bias_for_length_follows_its_curve(curve):
  """Short of the bend the longer one wins; past it the shorter one does if the curve is a hump."""
  settings = dict(fillers=tuple(range(12)), length_bias=0.3, curve=curve, bend=12)
  f = (lambda n: n) if curve == 'linear' else lambda n: np.where(n < 12, n, 12 - 0.25 * (n - 12))
  longer, shorter, won = [], [], []
  for i in range(2000):
    record = world(**settings, **SHORT)[i]
    length = record.labels['length']
    for a, b in zip(*np.nonzero((record.wins + record.wins.T > 0) & (length[:, None] > length[None, :])), strict=True):
      longer, shorter, won = [*longer, length[a]], [*shorter, length[b]], [*won, record.wins[a, b]]
      np.testing.assert_allclose(record.labels['probability'][a, b], sigmoid(0.3 * (f(length[a]) - f(length[b]))), rtol=1e-5)
  longer, shorter, won = map(np.array, (longer, shorter, won))
  below, above = longer <= 12, shorter >= 12
  for chosen in (below, above & (longer - shorter >= 8), above & (longer - shorter < 8), ~below & ~above):
    assert chosen.sum() > 300
    assert within_errors(won[chosen], sigmoid(0.3 * (f(longer) - f(shorter)))[chosen])
  assert won[below].mean() > 0.7
  assert won[above].mean() < 0.45 if curve == 'hump' else won[above].mean() > 0.7


def test_all_parts_of_the_annotator_add_up():
  s = dict(tasks=('copy', 'count'), contested=('copy',), marks=2, cycle=1.5, grade=2.0, temperature=0.8, length_bias=0.2, curve='hump', bend=9, responses=5)
  beats = {(0, 1): 1, (1, 2): 1, (2, 0): 1, (1, 0): -1, (2, 1): -1, (0, 2): -1}
  subsets = set()
  for i in range(20):
    record = world(**s)[i]
    gold, kind, length = (record.labels[name].tolist() for name in ('gold', 'kind', 'length'))
    felt = [min(n, 9) - 0.25 * max(n - 9, 0) for n in length]
    subsets.add(record.subset)
    assert record.labels['contested'] == (record.subset == 'copy')
    for a, b in zip(*np.nonzero(record.wins + record.wins.T), strict=True):
      rest = 0.2 * (felt[a] - felt[b]) + 1.5 * beats.get((kind[a], kind[b]), 0)
      wanted = (gold[a] - gold[b]) / 0.8
      expected = sigmoid(rest + wanted) if record.subset == 'count' else (sigmoid(rest + wanted) + sigmoid(rest - wanted)) / 2
      np.testing.assert_allclose(record.labels['probability'][a, b], expected, rtol=1e-5)
  assert subsets == {'copy', 'count'}


def test_on_contested_tasks_two_camps_are_each_of_one_mind():
  signs = []
  for i in range(1500):
    record = world(tasks=('copy', 'count'), contested=('copy',), temperature=1e-3)[i]
    gap = record.labels['gold'][:, None] - record.labels['gold'][None, :]
    better = (record.wins + record.wins.T > 0) & (gap > 0)
    if not better.any():
      continue
    sign = {*record.wins[better].tolist()}
    assert len(sign) == 1  # the whole record is of one annotator, who is of one camp
    if record.subset == 'copy':
      signs += sign
      np.testing.assert_allclose(record.labels['probability'][better], 0.5, rtol=1e-6)
    else:
      assert sign == {1.0}
  assert len(signs) > 500 and within_errors(signs, np.full(len(signs), 0.5))
  records = [world(tasks=('copy',), contested=('copy',))[i] for i in range(100)]
  assert bayes_rate(records) == 0.5


@pytest.mark.parametrize('levels', [3, 5])
def test_levels_of_quality_are_equal_shares_of_gold(levels):
  settings = dict(marks=2, grade=6.0, levels=levels, labelled=1.0)
  gold, quality = [], []
  for split, seed, size in (('train', 0, 750), ('train', 1, 750), ('eval', 0, 50)):
    records = list(Preferences(split=split, seed=seed, size=size, **settings))
    assert all(record.labels['quality'].dtype == np.int32 and record.labels['quality'].shape == (4,) for record in records)
    gold += [record.labels['gold'] for record in records]
    quality += [record.labels['quality'] for record in records]
  gold, quality = np.concatenate(gold), np.concatenate(quality)
  assert np.all(np.diff(quality[np.argsort(gold, kind='stable')]) >= 0)  # the same cuts for all splits and seeds
  assert {*quality.tolist()} == {*range(levels)}
  assert all(abs(np.mean(quality == level) - 1 / levels) < 0.03 for level in range(levels))


def test_equal_gold_is_of_equal_level():
  records = [world(completeness=0.0, courtesy=0.0, verbosity=0.0, levels=3, labelled=1.0)[i] for i in range(50)]
  assert {(float(g), int(q)) for record in records for g, q in zip(record.labels['gold'], record.labels['quality'], strict=True)} == {(0.0, 0), (4.0, 2)}


def test_how_many_records_are_labelled_changes_nothing_else():
  def known(split, labelled):
    records = [world(split, levels=3, labelled=labelled, marks=1, grade=2.0)[i] for i in range(500 if split == 'train' else 50)]
    quality = np.array([record.labels['quality'] for record in records])
    assert np.all((quality == -1).all(1) | (quality >= 0).all(1))
    return quality[:, 0] >= 0, [{**fields(record), 'labels': {**record.labels, 'quality': None}} for record in records]

  few, few_records = known('train', 0.2)
  many, many_records = known('train', 0.6)
  np.testing.assert_equal(few_records, many_records)
  assert within_errors(few, np.full(500, 0.2)) and within_errors(many, np.full(500, 0.6))
  assert not np.any(few & ~many)  # more labels are these and others
  assert known('eval', 0.0)[0].all() and not known('train', 0.0)[0].any()


@pytest.mark.parametrize(
  ('settings', 'more'),
  [
    ({}, set()),
    (dict(marks=2), set()),
    (dict(marks=2, grade=1.0), set()),
    (dict(marks=2, cycle=1.0), {'kind'}),
    (dict(contested=('copy',)), {'contested'}),
    (dict(levels=3, labelled=0.5), {'quality'}),
    (dict(marks=2, cycle=1.0, grade=1.0, contested=('copy', 'form'), levels=3, labelled=0.5), {'kind', 'contested', 'quality'}),
  ],
)
def test_all_records_have_the_same_labels(settings, more):
  tokenizer = Tokenizer.load(TOKENIZER)
  for split in ('train', 'eval'):
    for i in range(50):
      record = world(split, **settings)[i]
      assert record.labels.keys() == {'gold', 'length', 'probability'} | more
      shapes = {name: (record.labels[name].shape, record.labels[name].dtype) for name in more}
      assert shapes == {name: (() if name == 'contested' else (4,), np.int32) for name in more}
      tree = tokenizer.encode_record(record, max_length=64)
      assert tokenizer.unk_id not in [token for segment in tree.segments for token in segment.tokens]


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (dict(split='test'), "split 'test': there are 'train' and 'eval'"),
    (dict(tasks=('copy', 'sing')), r"world.tasks = \('copy', 'sing'\): choose from copy, form"),
    (dict(tasks=()), 'world.tasks'),
    (dict(responses=1), 'world.responses = 1: a preference needs at least 2'),
    (dict(pairs=7), 'world.pairs = 7: 4 responses make 6 pairs'),
    (dict(temperature=0.0), 'world.temperature = 0.0: it must be above 0'),
    (dict(temperature=float('nan')), 'world.temperature = nan'),
    (dict(courtesy=float('inf')), 'world.courtesy = inf: it must be a finite number'),
    (dict(fillers=()), r'world.fillers = \(\): give numbers of sentences, such as'),
    (dict(fillers=(0, -1)), r'world.fillers = \(0, -1\): give'),
    (dict(marks=-1), 'world.marks = -1: it must not be below 0'),
    (dict(marks=1, blur=-0.5), 'world.blur = -0.5: it must not be below 0'),
    (dict(bend=-1), 'world.bend = -1: it must not be below 0'),
    (dict(clarity=1.1), 'world.clarity = 1.1: it must be from 0 to 1'),
    (dict(clarity=float('nan')), 'world.clarity = nan: it must be from 0 to 1'),
    (dict(levels=3, labelled=-0.1), 'world.labelled = -0.1: it must be from 0 to 1'),
    (dict(cycle=1.0), 'world.cycle = 1.0: nobody can read it from a response without marks; set world.marks above 0'),
    (dict(grade=-1.0), 'world.grade = -1.0: nobody can read it'),
    (dict(marks=1, grade=float('nan')), 'world.grade = nan: it must be a finite number'),
    (dict(marks=1, cycle=float('inf')), 'world.cycle = inf: it must be a finite number'),
    (dict(curve='cubic'), "world.curve = 'cubic': choose 'linear' or 'hump'"),
    (dict(contested=('sing',)), r"world.contested = \('sing',\): choose from world.tasks, copy, form"),
    (dict(tasks=('copy',), contested=('form',)), r"world.contested = \('form',\): choose from world.tasks, copy$"),
    (dict(levels=1), 'world.levels = 1: quality needs at least 2 levels'),
    (dict(levels=-3), 'world.levels = -3: quality needs'),
    (dict(labelled=0.5), 'world.labelled = 0.5: there is no quality to know; set world.levels above 1'),
    (dict(colour='red'), 'world.colour: there is no such setting; there are tasks, exchange, responses'),
  ],
)
def test_settings_that_there_are_not(settings, message):
  with pytest.raises(InputError, match=message):
    Preferences(**{'split': 'train', **settings})


def test_settings_are_the_leaves_of_a_config():
  config = ml_collections.ConfigDict(dataclasses.asdict(Settings()))
  assert Preferences(split='train', **config.to_dict()).settings == Settings()
  assert Preferences(split='train', **{**config.to_dict(), 'tasks': list(DEFAULT_TASKS), 'fillers': [0, 0, 0, 1, 1, 2], 'contested': []}).settings == Settings()
