"""The study of languages: its figures by hand and beside the benchmark's own, what is left out, and all arms from one pretraining."""

import types

import jax
import numpy as np
import pytest

from configs import m_rewardbench
from experiments import languages_study, reproduce
from rmjax.data.records import Record
from rmjax.errors import InputError
from rmjax.evaluation import multilingual
from rmjax.evaluation.claims import named_arms
from rmjax.evaluation.items import Answer
from rmjax.evaluation.scored import Scored

SMALL = dict(hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=2)


def test_figures_by_hand():
  clean = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 1]], float)
  noisy = np.array([[1, 1, 0], [1, 0, 1], [1, 0, 1], [0, 0, 1]], float)
  found = languages_study.measure({0.0: clean, 0.3: noisy}, (5.0, 1.0, 2.0))
  # Language 1: 3/4 agree where 3/4 * 1/2 + 1/4 * 1/2 would by chance; language 2 is always right, kappa 0 by definition of p_e = 3/4 = p_o.
  expected = dict(
    accuracy_0=0.75, accuracy_1=0.5, accuracy_2=1.0, items=4, gap=0.0, spearman=1.0, kappa=(0.5 + 0.0) / 2, flip=(0.25 + 0.25) / 2,
    flip_least=(0.25 + 0.25) / 2, flip_independent=(0.75 * 0.5 + 0.25 * 0.5 + 0.75 * 0 + 1 * 0.25) / 2, accuracy_noise_0=0.75, kappa_noise_0=0.25,
    accuracy_noise_30=0.5,
  )  # fmt: skip
  assert {name: found[name] for name in expected} == pytest.approx(expected)
  # Of noisy ones: (1, 0, 0, 0) and (0, 1, 1, 1) with (1, 1, 1, 0): p_o = 1/2 and 1/2, p_e = 3/16 + 3/16 and 9/16 + 1/16.
  assert found['kappa_noise_30'] == pytest.approx((((0.5 - 3 / 8) / (5 / 8)) + ((0.5 - 5 / 8) / (3 / 8))) / 2)


@pytest.mark.parametrize('relation', ['independent', 'nested'])
def test_flips_lie_where_they_must(relation):
  rng, count = np.random.default_rng(0), 4000
  first = rng.random(count)
  other = rng.random(count) if relation == 'independent' else first
  found = languages_study.measure({0.0: np.stack([first < 0.8, other < 0.6], -1).astype(float)}, (1.0, 1.0))
  bound = dict(independent='flip_independent', nested='flip_least')[relation]
  assert found['flip'] == pytest.approx(found[bound], abs=4 * 0.5 / count**0.5)
  assert found['kappa'] == pytest.approx(1 - found['flip'] / found['flip_independent'])
  assert found['flip_least'] == pytest.approx(0.2, abs=0.04) and found['flip_independent'] == pytest.approx(0.8 * 0.4 + 0.2 * 0.6, abs=0.04)
  assert found['gap_p'] < 0.01


def test_figures_are_the_benchmark_s():
  """Kappa, flips and the gap of the runner that reads the public files, on the same answers."""
  rng = np.random.default_rng(1)
  correct = (rng.random((30, 2)) < (0.8, 0.6)).astype(float)
  answers = []
  for i, row in enumerate(correct):
    for right, language in zip(row, ('eng_Latn', 'deu_Latn'), strict=True):
      rewards, wins = np.array([right, 0.5]), np.array([[0.0, 1.0], [0.0, 0.0]])
      facts = dict(id=str(i), subset='alpacaeval-easy', language=language)
      answers.append(Answer(facts, rewards, rewards[:, None] - rewards, wins, np.full(2, np.nan), group=str(i)))
  theirs = multilingual.m_rewardbench.measure(answers).figures
  ours = languages_study.measure({0.0: correct}, (1.0, 1.0))
  for name, other in dict(kappa='kappa/deu_Latn', flip='flip_rate/deu_Latn', gap='english_gap/deu_Latn', accuracy_1='score/deu_Latn').items():
    assert ours[name] == pytest.approx(theirs[other])


def test_answers_are_by_gold_and_an_item_that_one_translation_makes_the_same_is_left_out_everywhere(monkeypatch):
  gold = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
  make = lambda language, same=False: [
    Record('?', ('a', 'a') if same and i == 1 else ('a', 'b'), np.zeros((2, 2)), np.full(2, np.nan), labels=dict(gold=gold[i], language=np.int32(language)))
    for i in range(3)
  ]
  # Right in language 0, wrong in language 1, and ties in worse translations.
  factor = {0: 1.0, 1: -1.0, 2: 0.0}

  def scored(model, params, records, encode, **options):
    for record in records:
      gold = record.labels['gold']
      yield Scored(0, factor[int(record.labels['language'])] * gold, np.zeros((2, 2)), np.ones(2, int), record.wins, gold=gold)

  monkeypatch.setattr(languages_study, 'score_records', scored)
  run = types.SimpleNamespace(model=None, encode_all=None, mesh=None, shape={})
  found = languages_study.answers(run, None, {(0.0, 0): make(0), (0.0, 1): make(1), (0.1, 1): make(2, same=True)})
  np.testing.assert_array_equal(found[0.0], [[1, 0], [1, 0]])
  np.testing.assert_array_equal(found[0.1], [[1, 0.5], [1, 0.5]])


def test_arms_learn_from_one_pretraining(tmp_path, monkeypatch):
  """The config as it is, but for two of its arms and two rates of errors, which would take a compile or minutes more."""
  config, trained, fit = m_rewardbench.get_config(), [], reproduce.fit_seeds
  assert config.system == 'm_rewardbench' and set().union(*map(named_arms, config.claims)) <= set(config.arms)
  config.model.decoder, config.study.noise = SMALL, (0.0, 0.3)
  config.arms = {name: config.arms[name] for name in ('implicit', 'judge')}
  config.claims = tuple(claim for claim in config.claims if named_arms(claim) <= set(config.arms))

  def recorded(config, seeds, *, start, **options):
    trained.append((config.world.name.split(':')[1], *seeds, start[0]))
    return fit(config, seeds, start=start, **options)

  monkeypatch.setattr(languages_study, 'fit_seeds', recorded)
  languages_study._pretrained.cache_clear()
  report = reproduce.reproduce(config, tmp_path, smoke=True)
  assert len(report['claims']) == len(config.claims) >= 12 and set(report['arms']) == {'implicit', 'judge'}
  assert [one[:-1] for one in trained] == [('Texts', 0), ('Texts', 1), *2 * [('Languages', 0), ('Languages', 1)]]  # texts are read once

  read, other, judge, _, implicit, _ = (start for *_, start in trained)
  embedding = lambda params: np.asarray(params['backbone']['embedding']['embedding'])
  assert np.std(embedding(read)) == pytest.approx(config.study.embedding, rel=0.02) and (embedding(read) != embedding(other)).any()
  for backbone in (implicit['reference'], judge['backbone']):  # what was read is what all begin with
    jax.tree.map(np.testing.assert_array_equal, implicit['backbone'], backbone)
  assert (embedding(read) != embedding(implicit)).any()


def test_what_only_other_arms_have():
  config = m_rewardbench.get_config()
  assert config.arms.classifier == () and dict(config.arms.apart) == {'world.switch': 0.0}
  assert dict(config.study.pretrain)['world.name'].endswith(':Texts') and 'world.switch' not in dict(config.study.pretrain)


def test_items_are_the_original_and_all_translations():
  config = reproduce.arm_config(m_rewardbench.get_config(), (('world.eval_size', 5), ('study.noise', (0.0, 0.3))))
  found = languages_study.items(config)
  languages = range(len(config.world.shares))
  assert list(found) == [(0.0, language) for language in languages] + [(0.3, language) for language in languages[1:]]
  for records in found.values():
    np.testing.assert_array_equal([record.labels['gold'] for record in records], [record.labels['gold'] for record in found[0.0, 0]])
  assert len({records[0].prompt for records in found.values()}) >= len(languages)


@pytest.mark.parametrize(
  ('change', 'message'),
  [(('study.noise', (0.1,)), r'study.noise = \(0.1,\): it needs 0.0'), (('world.shares', (1.0, 1.0)), r'world.shares = \(1.0, 1.0\): .* 3 or more')],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_trained(change, message):
  with pytest.raises(InputError, match=message):
    languages_study.study(reproduce.arm_config(m_rewardbench.get_config(), (change,)), (0,))
