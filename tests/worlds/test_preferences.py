"""The world is what it says: reproducible, honest, of a known Bayes rate, and disjoint between its splits."""

import collections
import dataclasses
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
from rmjax.worlds.preferences_tasks import DEFAULT_TASKS, TASKS

GOLDEN = (
  'repeat : key lamp spoon shoe\n',
  ('one moment . key lamp .', 'gladly . key lamp spoon shoe .', 'you know . ring ball clock bag .', 'gladly . ring ball .'),
  [4.25, 5.5, 0.75, 1.0],
)


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


def test_it_is_a_source_for_grain():
  dataset = grain.MapDataset.source(Preferences(split='train', size=20)).seed(0).shuffle().map(lambda record: record.where)
  assert sorted(dataset) == sorted(f'train:{i}' for i in range(20))


def test_splits_share_no_prompt_whatever_the_seed():
  prompts = {split: {Preferences(split=split, seed=seed)[i].prompt for seed in (0, 1) for i in range(1500)} for split in ('train', 'eval')}
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
    (dict(colour='red'), 'world.colour: there is no such setting; there are tasks, exchange, responses'),
  ],
)
def test_settings_that_there_are_not(settings, message):
  with pytest.raises(InputError, match=message):
    Preferences(**{'split': 'train', **settings})


def test_settings_are_the_leaves_of_a_config():
  config = ml_collections.ConfigDict(dataclasses.asdict(Settings()))
  assert Preferences(split='train', **config.to_dict()).settings == Settings()
  assert Preferences(split='train', **{**config.to_dict(), 'tasks': list(DEFAULT_TASKS)}).settings == Settings()
