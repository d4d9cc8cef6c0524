"""The world of principles against what its docstrings say: balance, errors, synonyms, embeddings, splits."""

import itertools

import numpy as np
import pytest

from rmjax.data.curation import unit
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.worlds import principles
from rmjax.worlds.principles import embed, Principles, SEEN, SYNONYMS, UNSEEN
from rmjax.worlds.traits import SCALES


def records(count=1500, **settings):
  world = Principles(**{'split': 'train', 'size': count, 'marks': 1, 'blur': 0.5, **settings})
  return [world[i] for i in range(count)]


def label(found, name):
  return np.concatenate([record.labels[name] for record in found])


def test_yes_and_no_are_balanced_for_every_principle_and_wrong_as_often_as_set():
  found = records(error=0.2)
  ratings, truth, attribute = np.concatenate([r.ratings for r in found]), label(found, 'truth'), label(found, 'attribute')
  assert abs(np.mean(ratings != truth) - 0.2) < 4 * (0.16 / len(ratings)) ** 0.5
  for j in range(8):
    mine = ratings[attribute == j]
    assert len(mine) > 800 and abs(mine.mean() - 0.5) < 4 * 0.5 / len(found) ** 0.5 / 0.7  # verdicts on one response go together
  exact = records(100, error=0.0)
  np.testing.assert_array_equal(np.concatenate([r.ratings for r in exact]), label(exact, 'truth'))


def test_annotators_name_one_to_three_different_attributes_that_are_salient():
  found = records(300, salient=4)
  counts = []
  for record in found:
    who, what = record.labels['annotator'], record.labels['attribute']
    assert set(who) == {0, 1, 2} and len(set(what)) <= 4
    for one in range(3):
      counts.append(int((who == one).sum()))
      assert len(set(what[who == one])) == counts[-1]
    for j, text in zip(what, record.columns['principles'], strict=True):
      assert text in SEEN[j]
  assert {1, 2, 3} == set(counts) and abs(np.mean(counts) - 2) < 0.15  # six verdicts a response, as four responses have pairs


def test_principles_have_words_of_their_own_and_every_word_is_seen_but_not_every_pair():
  words = [word for some in SYNONYMS for word in some]
  assert len(words) == len(set(words)) == 48 and not set(words) & {word for scale in SCALES[:8] for word in scale}
  for seen, unseen, own in zip(SEEN, UNSEEN, SYNONYMS, strict=True):
    assert len(seen) == 24 and len(unseen) == 6 and not set(seen) & set(unseen)
    assert {text for text in seen + unseen} == {f'{a} {b}' for a, b in itertools.permutations(own, 2)}
    assert set(' '.join(unseen).split()) == set(' '.join(seen).split()) == set(own)


def test_a_text_is_prompt_response_principle():
  tokenizer = Tokenizer.load(Principles.tokenizer_path)
  for record in records(50):
    assert '?\n' in record.prompt and record.prompt.endswith(' .')
    for response, principle in zip(record.responses, record.columns['principles'], strict=True):
      assert response == principles.question(principle) == f' is it {principle}'
      ids, _ = tokenizer.encode_path(record.prompt, response + principles.END)
      assert tokenizer.unk_id not in ids
      assert ids == tokenizer.encode_path(record.prompt.split('\n')[0] + '\n', record.prompt.split('\n')[1] + response + principles.END)[0]


def test_embeddings_are_near_by_attribute_then_by_kin():
  vectors = unit(embed([text for some in SEEN for text in some])).reshape(8, 24, -1)
  cosine = np.einsum('aid,bjd->abij', vectors, vectors)
  own = np.stack([cosine[j, j][~np.eye(24, dtype=bool)] for j in range(8)])
  kin = np.stack([cosine[j, j ^ 1] for j in range(8)])
  others = np.stack([cosine[a, b] for a in range(8) for b in range(8) if a // 2 != b // 2])
  assert np.mean(own > 0.7) > 0.97 and 0.6 < np.median(kin) < 0.74 and np.abs(others).max() < 0.3
  assert 0.05 < np.mean(kin > 0.7) < 0.5 and np.mean(kin > 0.8) < 0.01 and 0.5 < np.mean(own > 0.8) < 0.95  # what a threshold lets through
  with pytest.raises(InputError, match="principle word 'apple'"):
    embed(['apple arm'])


def test_controls_change_the_text_alone():
  own, other, none = (records(60, appended=appended) for appended in ('own', 'other', 'none'))
  owner = {text: j for j, some in enumerate(SEEN) for text in some}
  for a, b, c in zip(own, other, none, strict=True):
    assert c.responses == (' is it',) * len(c.ratings)
    assert all(owner[text.removeprefix(' is it ')] != j for text, j in zip(b.responses, b.labels['attribute'], strict=True))
    for record in (b, c):
      assert record.prompt == a.prompt and record.columns == a.columns
      np.testing.assert_array_equal(record.ratings, a.ratings)


def test_overall_preferences_are_of_the_same_responses_and_fixed_principles_of_one_attribute():
  overall = records(30, annotators=0, split='eval')
  assert all(len(record.responses) == 4 and record.wins.sum() == 6 and np.isnan(record.ratings).all() for record in overall)
  weights = np.array(principles.Settings().weights[0])
  for record in overall:
    levels = np.stack([record.labels[f'trait_{j}'] for j in range(8)], 1)
    np.testing.assert_allclose(record.labels['gold'], levels @ weights, rtol=1e-6)
    assert set(np.unique(levels)) <= {0.0, 1.0}
  fixed = records(30, asked=(0,), mentions=(1,))
  assert not label(fixed, 'attribute').any() and all(len(record.responses) == 3 for record in fixed)


def test_splits_share_no_prompt_and_records_are_functions_of_their_number():
  train, held = records(400), records(400, split='eval')
  first = lambda found: {record.prompt.split('\n')[0] for record in found}
  assert not first(train) & first(held)
  again = Principles(split='train', size=10, marks=1, blur=0.5)[7]
  assert again.prompt == train[7].prompt and again.responses == train[7].responses


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (dict(traits=9), 'world.traits = 9'),
    (dict(values=3), 'world.values = 3'),
    (dict(annotators=-1), 'world.annotators = -1'),
    (dict(asked=(8,)), r'world.asked = \(8,\)'),
    (dict(asked=(1,)), r'world.mentions = \(1, 2, 3\)'),
    (dict(salient=9), 'world.salient = 9'),
    (dict(mentions=(0,)), r'world.mentions = \(0,\)'),
    (dict(error=0.7), 'world.error = 0.7'),
    (dict(appended='all'), "world.appended = 'all'"),
  ],
)
def test_bad_settings_are_named(settings, message):
  with pytest.raises(InputError, match=message):
    Principles(split='train', **settings)
