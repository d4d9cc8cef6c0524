"""The world of languages: one meaning in eight languages, errors of translation, and the text that is read before any preference."""

import collections
import dataclasses

import numpy as np
import pytest

from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.worlds import languages
from rmjax.worlds.languages import CONTENT, LANGUAGES, Languages, Texts, words
from rmjax.worlds.preferences_tasks import NAMES

OF = [{word: place for place, word in enumerate(own)} for own in words()]  # of each language: word -> what it means


def records(count=200, world=Languages, split='train', **settings):
  source = world(split=split, size=count, **settings)
  return [source[i] for i in range(count)]


def spoken(record):
  return f'{record.prompt} {" ".join(record.responses)}'.split()


def test_languages_share_no_word_and_none_is_unknown():
  every = [word for own in words() for word in own]
  assert len(every) == len(set(every)) == LANGUAGES * len(CONTENT) and words()[0] == CONTENT
  assert not set(every) & {*NAMES, '.', ':', '?', 'plus', 'minus'}
  tokenizer = Tokenizer.load(Languages.tokenizer_path)
  for world in (Languages, Texts):
    for record in records(20, world, language=5):
      tree = tokenizer.encode_record(record, max_length=64)
      assert tokenizer.unk_id not in [token for segment in tree.segments for token in segment.tokens]


@pytest.mark.parametrize('language', [1, 4, 7])
def test_a_record_means_the_same_in_every_language(language):
  for original, other in zip(records(50, split='eval'), records(50, split='eval', language=language), strict=True):
    back = lambda text: ' '.join(CONTENT[OF[language][word]] if word in OF[language] else word for word in text.split())
    assert back(other.prompt) == ' '.join(original.prompt.split()) and tuple(map(back, other.responses)) == original.responses
    assert not set(spoken(other)) & set(CONTENT) and other.prompt.endswith('?\n')
    np.testing.assert_equal(dataclasses.asdict(other)['labels'], dataclasses.asdict(original)['labels'])
    np.testing.assert_array_equal(other.wins, original.wins)


def test_errors_are_as_many_as_is_said_in_words_of_the_language_and_those_of_a_lower_rate_among_those_of_a_higher():
  rates = (0.0, 0.05, 0.15, 0.3, 1.0)
  clean, *noisy = ([spoken(record) for record in records(150, language=2, noise=rate)] for rate in rates)
  wrong = [np.array([a != b for one, other in zip(clean, some, strict=True) for a, b in zip(one, other, strict=True) if a in OF[2]]) for some in noisy]
  for few, many in zip(wrong, wrong[1:], strict=False):
    assert not (few & ~many).any()
  for rate, errors in zip(rates[1:], wrong, strict=True):
    assert abs(errors.mean() - rate) <= 4 * (rate * (1 - rate) / len(errors)) ** 0.5
  assert all((a in OF[2]) == (b in OF[2]) for one, other in zip(clean, noisy[-1], strict=True) for a, b in zip(one, other, strict=True))

  other = [spoken(record) for record in records(150, language=3, noise=0.3)]
  right = [spoken(record) for record in records(150, language=3)]
  mistakes = np.array([a != b for one, two in zip(right, other, strict=True) for a, b in zip(one, two, strict=True) if a in OF[3]])
  both, apart = np.mean(mistakes & wrong[2]), mistakes.mean() * wrong[2].mean()
  assert abs(both - apart) < 4 * (apart / len(mistakes)) ** 0.5  # languages err apart from one another
  assert [spoken(record) for record in records(20, noise=0.3)] == [spoken(record) for record in records(20)]  # the original has no errors


def test_texts_are_in_languages_as_often_as_is_said_and_mixed_with_language_0_alone():
  shares = (4.0, 2.0, 1.0, 0.0)
  found, kept, total = collections.Counter(), 0, 0
  for record in records(800, Texts, shares=shares, switch=0.3):
    language = int(record.labels['language'])
    found[language] += 1
    assert record.prompt == '' and len(record.responses) == 2 and not record.wins.any()
    said = [word for word in spoken(record) if any(word in own for own in OF)]
    assert all(word in OF[language] or word in OF[0] for word in said) and len(said) == 2 * 7
    if language:
      kept, total = kept + sum(word in OF[0] for word in said), total + len(said)
  for language, share in enumerate(shares):
    expected = share / sum(shares)
    assert abs(found[language] / 800 - expected) <= 4 * (expected * (1 - expected) / 800) ** 0.5
  assert abs(kept / total - 0.3) < 4 * (0.21 / total) ** 0.5


def test_texts_without_switching_are_in_one_language_and_words_of_a_text_are_near_in_meaning():
  distances = []
  for record in records(200, Texts, shares=(0.0, 0.0, 1.0), switch=0.0, blur=1.0):
    for text in record.responses:
      places = [OF[2][word] for word in text.split() if word in OF[2]]
      assert not set(text.split()) & set(CONTENT)
      first = [place for place in places if place < 12]
      distances += [abs(a - b) for a, b in zip(first, first[1:], strict=False)]
  assert np.mean(distances) < 2  # 4 were they drawn apart: (12^2 - 1) / 36


def test_splits_share_nothing_whatever_the_language():
  read = {text for record in records(400, Texts, shares=(1.0,)) for text in record.responses}
  asked = {record.prompt + text for record in records(400, split='eval') for text in record.responses}
  assert not {text.split('\n')[0] for text in read} & {text.split('\n')[0] for text in asked}
  assert not {text.split('\n')[1] for text in read} & {text.split('\n')[1] for text in asked}


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (dict(language=8), 'world.language = 8: there are 0 to 7'),
    (dict(noise=1.5), 'world.noise = 1.5: it must be from 0 to 1'),
    (dict(switch=-0.1), 'world.switch = -0.1: it must be from 0 to 1'),
    (dict(shares=()), r'world.shares = \(\): give those of 1 to 8 languages'),
    (dict(shares=(0.0, 0.0)), r'world.shares = \(0.0, 0.0\)'),
    (dict(shares=(1.0, -1.0)), r'world.shares = \(1.0, -1.0\)'),
    (dict(traits=3, weights=((1.0, 1.0, 1.0),)), 'world.traits = 3: all languages have words for 1 to 2'),
    (dict(topics=3), 'world.topics = 3'),
  ],
)
def test_settings_that_there_are_not(settings, message):
  with pytest.raises(InputError, match=message):
    languages.Settings(**settings)
