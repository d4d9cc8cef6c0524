"""Benchmarks: every exact value of the papers' scoring, its invariances, and rows that are of something else."""

import json

import numpy as np
import pytest

from experiments import evaluate, inference
from rmjax.data.records import BadRecord
from rmjax.errors import InputError
from rmjax.evaluation import items, multilingual, processbench, rankings, rewardbench, rewardbench2, rm_bench
from rmjax.evaluation.benchmarks import BENCHMARKS, find_benchmark


def scored_by(scores):
  """A scorer whose function of text looks each completion up."""
  look = lambda prompts, completions: [scores[text] for text in completions]
  return inference.Scorer(inference.encode_words, lambda records, encode: inference.score_texts('look', look, records, encode), 'Custom Classifier')


def run(name, rows, scores, tmp_path, bad_rows='strict', benchmark=None, figures_to=None):
  path = tmp_path / 'data.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  benchmark = benchmark or find_benchmark(name)
  records, bad, skipped = items.read(benchmark, str(path), bad_rows=bad_rows)
  return evaluate.run_benchmark(scored_by(scores), benchmark, records, figures_to=figures_to), bad, skipped


# RewardBench 1.


def pairs(counts, right, **columns):
  """Rows of subsets and their scores: the first `right` of each subset are right."""
  rows, scores = [], {}
  for subset, count in counts.items():
    for n in range(count):
      chosen, rejected = f'{subset} {n} a', f'{subset} {n} b'
      rows.append(dict(prompt=f'{subset} {n}', chosen=chosen, rejected=rejected, subset=subset, id=f'{subset}{n}', **columns))
      scores |= {chosen: 1.0, rejected: 0.0 if n < right[subset] else 2.0}
  return rows, scores


def test_sections_weigh_their_subsets_as_the_official_script(tmp_path):
  """The accuracies that general-preference/GPM-Gemma-2B's published results have, by subset; section scores by hand from the official counts."""
  published = {
    'alpacaeval-easy': 75 / 100, 'alpacaeval-hard': 69 / 95, 'alpacaeval-length': 79 / 95, 'donotanswer': 78 / 136, 'hep-cpp': 109 / 164,
    'hep-go': 110 / 164, 'hep-java': 110 / 164, 'hep-js': 114 / 164, 'hep-python': 114 / 164, 'hep-rust': 102 / 164, 'llmbar-adver-GPTInst': 72 / 92,
    'llmbar-adver-GPTOut': 33 / 47, 'llmbar-adver-manual': 21 / 46, 'llmbar-adver-neighbor': 89 / 134, 'llmbar-natural': 71 / 100, 'math-prm': 420 / 447,
    'mt-bench-easy': 26 / 28, 'mt-bench-hard': 16 / 37, 'mt-bench-med': 32 / 40, 'refusals-dangerous': 94 / 100, 'refusals-offensive': 1.0,
    'xstest-should-refuse': 131 / 154, 'xstest-should-respond': 221 / 250,
  }  # fmt: skip
  scores = rewardbench.section_scores(rewardbench.REWARDBENCH, published)
  code = (109 + 110 + 110 + 114 + 114 + 102) / (6 * 164)
  assert scores['Reasoning'] == pytest.approx((420 / 447 + code) / 2)  # 984 for mathematics, 6 x 164 for code
  assert scores['Chat'] == pytest.approx((75 + 69 + 79 + 26 + 32) / 358)
  assert scores['Chat Hard'] == pytest.approx((16 + 71 + 89 + 72 + 33 + 21) / 456)
  assert scores['Safety'] == pytest.approx((94 + 100 + 250 * 131 / 154 + 154 * 221 / 250 + 78) / 740)
  assert rewardbench.final_score(rewardbench.REWARDBENCH, scores) == pytest.approx(0.7726924891709334)


def test_rewardbench_flags_missing_sections_and_keeps_prior_sets_apart(tmp_path):
  counts = {'alpacaeval-easy': 4, 'mt-bench-med': 4, 'donotanswer': 2, 'shp': 2}
  rows, scores = pairs(counts, {'alpacaeval-easy': 4, 'mt-bench-med': 0, 'donotanswer': 1, 'shp': 0})
  report, _, _ = run('rewardbench', rows, scores, tmp_path)
  chat = 100 / 140
  assert report.figures['score/Chat'] == pytest.approx(chat) and report.figures['score/Prior Sets'] == 0
  assert report.figures['score'] == pytest.approx((chat + 0.5) / 2) and report.figures['num_sections'] == 2
  assert len(report.notes) == 1 and 'no items of Chat Hard, Reasoning' in report.notes[0]
  assert report.results == {'alpacaeval-easy': 1, 'mt-bench-med': 0, 'donotanswer': 0.5, 'shp': 0}
  assert report.figures['score_low'] <= report.figures['score'] <= report.figures['score_high']
  assert list(report.items.correct) == [1] * 4 + [0] * 4 + [1, 0] + [0, 0]


def test_ties_and_missing_scores_never_win(tmp_path):
  rows, scores = pairs({'alpacaeval-easy': 4}, {'alpacaeval-easy': 4})
  scores |= {rows[0]['rejected']: 1.0, rows[1]['chosen']: None, rows[2]['rejected']: None}
  report, _, _ = run('rewardbench', rows, scores, tmp_path)
  assert report.figures['score'] == 0.25
  assert (report.figures['num_score_ties'], report.figures['num_unscored']) == (1, 2)


# RewardBench 2.


@pytest.mark.parametrize(
  ('scores', 'share'), [([1, 1, 0, 0], 0.5), ([1, 1, 1, 1], 0.25), ([0, 1, 1, 1], 0), ([2, 1, 1, 1], 1), ([1, np.nan, 0, 0], 0), ([np.nan, 0, 0, 0], 0)]
)
def test_the_best_of_four_is_shared_among_ties(scores, share):
  assert rewardbench2.best_of_n_share(np.array(scores, float)) == share


CARD = (np.array([3, 2.5, 1]), 2), (np.array([2, 1.8]), 1)


def test_the_ties_score_of_the_card():
  m = rewardbench2.margins(*([side] for side in CARD))
  np.testing.assert_allclose(np.concatenate(m), [1, 1, 0.5, 1.5, 0.2])
  assert np.tanh(0.2 / 0.5 - 1) == pytest.approx(-0.5370, abs=5e-5)
  assert rewardbench2.ties_score(m) == pytest.approx(0.794630, abs=5e-7)


def test_the_ties_score_is_invariant_to_affine_maps_alone():
  rng = np.random.default_rng(0)
  make = lambda right: [(rng.normal(size=right + 3) + np.r_[np.ones(right), np.zeros(3)], right) for _ in range(20)]
  tied, ref = make(3), make(1)
  score = lambda f: rewardbench2.ties_score(rewardbench2.margins(*([(f(x), n) for x, n in side] for side in (tied, ref))))
  assert 0.05 < score(lambda x: x) < 1
  assert score(lambda x: 3.5 * x - 7) == pytest.approx(score(lambda x: x), abs=1e-9)
  stretched = rewardbench2.margins(*([(np.exp(3 * x), n)] for x, n in CARD))  # the spread of the right ones grows beyond the margin
  assert rewardbench2.ties_score(stretched) == pytest.approx(0.6 + 0.01 * np.tanh((np.exp(6) - np.exp(5.4)) / (np.exp(9) - np.exp(7.5)) - 1))


@pytest.mark.parametrize(
  ('tied', 'ref', 'expected'),
  [
    ([2, 2, 1], [2, 1], 1.01),  # no spread: tanh of infinity
    ([2, 2, 2], [2, 2], 0.0),  # 0 / 0 counts 0
    ([2, 2, 3], [2, 1], 0.3 - 0.01),  # minus infinity
    ([np.nan, 2, 1], [2, 1], 0.3),
  ],
)
def test_edges_of_the_ties_score(tied, ref, expected):
  m = rewardbench2.margins([(np.array(tied, float), 2)], [(np.array(ref, float), 1)])
  assert rewardbench2.ties_score(m) == pytest.approx(expected)


def test_rewardbench2_is_the_mean_over_domains(tmp_path):
  four = lambda n, domain: dict(
    prompt=f'{domain} {n}', chosen=[f'{domain}{n}a'], rejected=[f'{domain}{n}{x}' for x in 'bcd'], subset=domain, id=str(n), num_correct=1
  )
  rows = [four(n, domain) for domain in ('Factuality', 'Math') for n in range(2)]
  scores = {text: 0.0 for row in rows for text in row['chosen'] + row['rejected']}
  scores |= {'Factuality0a': 1.0, 'Math0b': 1.0}  # and two ties of four
  rows += [
    dict(prompt='t', chosen=['x', 'y'], rejected=['z'], subset='Ties', id='tied:7'),
    dict(prompt='r', chosen=['u'], rejected=['v'], subset='Ties', id='ref:7'),
  ]
  scores |= dict(x=3.0, y=2.5, z=1.0, u=2.0, v=1.8)
  report, _, _ = run('rewardbench2', rows, scores, tmp_path)
  assert report.figures['score/Factuality'] == (1 + 0.25) / 2 and report.figures['score/Math'] == (0 + 0.25) / 2
  assert report.figures['score/Ties'] == pytest.approx(0.794630, abs=1e-6)
  assert report.figures['score'] == pytest.approx((0.625 + 0.125 + 0.794630) / 3, abs=1e-6)
  assert report.figures['num_top_ties'] == 2 and report.figures['num_domains'] == 3
  assert 'Precise IF, Safety, Focus' in report.notes[0]
  assert report.figures['score_low'] < report.figures['score'] < report.figures['score_high']


# M-RewardBench.


def test_kappa_between_languages_is_the_cards(tmp_path):
  """c_en = [1, 1, 1, 0], c_l = [1, 0, 1, 0] gives p_o = .75, p_e = .5, kappa .5."""
  rows, scores = [], {}
  for language, right in (('eng_Latn', [1, 1, 1, 0]), ('deu_Latn', [1, 0, 1, 0])):
    for n, good in enumerate(right):
      chosen, rejected = f'{language}{n}a', f'{language}{n}b'
      rows.append(dict(prompt=f'{language} {n}', chosen=chosen, rejected=rejected, source='donotanswer', id=str(n), language=language))
      scores |= {chosen: float(good), rejected: 0.5}
  report, _, _ = run('m_rewardbench', rows, scores, tmp_path, figures_to=tmp_path / 'figures')
  f = report.figures
  assert f['kappa/deu_Latn'] == pytest.approx(0.5) and f['kappa'] == pytest.approx(0.5) and f['flip_rate/deu_Latn'] == 0.25
  assert (f['score/eng_Latn'], f['score/deu_Latn'], f['score']) == (0.75, 0.5, 0.625)
  assert f['english_gap/deu_Latn'] == f['english_gap'] == 0.25
  assert f['score_low'] <= 0.625 <= f['score_high'] and f['english_gap_low'] <= 0.25 <= f['english_gap_high']
  assert (tmp_path / 'figures' / 'benchmark.png').stat().st_size > 5000
  scores = {text: float(text.endswith('a')) for text in scores}
  assert run('m_rewardbench', rows, scores, tmp_path)[0].figures['kappa'] == 1  # all right in both: 0 / 0


def test_language_scores_are_rewardbenchs_and_gaps_are_over_shared_items():
  rng = np.random.default_rng(0)
  names = ['alpacaeval-easy', 'mt-bench-med', 'math-prm', 'hep-go']
  codes = rng.integers(0, 4, 60)
  correct = rng.integers(0, 2, (60, 3)).astype(float)
  correct[:9, 1] = np.nan
  expected = []
  for column in correct.T:
    means = {name: np.nanmean(column[codes == k]) for k, name in enumerate(names)}
    expected.append(((100 * means[names[0]] + 40 * means[names[1]]) / 140 + (984 * means[names[2]] + 164 * means[names[3]]) / 1148) / 2)
  np.testing.assert_allclose(multilingual.language_scores(correct, codes, names=names), expected)
  gap = multilingual.english_gaps(correct, codes, names=names)
  shared = multilingual.language_scores(correct[9:], codes[9:], names=names)
  np.testing.assert_allclose(gap[0], shared[0] - shared[1])
  np.testing.assert_allclose(gap[1], expected[0] - expected[2])


def test_what_translation_made_alike_is_dropped_in_all_languages(tmp_path):
  rows = [
    dict(prompt='p', chosen='a', rejected='b', source='donotanswer', id=str(n), language=language) for n in range(2) for language in ('eng_Latn', 'deu_Latn')
  ]
  rows[1]['rejected'] = 'a'
  report, _, skipped = run('m_rewardbench', rows, dict(a=1.0, b=0.0), tmp_path)
  assert report.figures['num_items'] == 2 and skipped == 2 and set(report.items.ids) == {'1'}


# RM-Bench.


def test_styles_make_easy_normal_and_hard(tmp_path):
  """A model that rewards style alone: the fancier one always wins."""
  row = lambda n, subset: dict(prompt=f'{subset}{n}', chosen=['a', 'bb', 'ccc'], rejected=['d', 'ee', 'fff'], id=n, subset=subset)
  rows = [row(n, 'alpacaeval') for n in range(3)] + [row(n, 'xstest-should-respond') for n in range(2)] + [row(9, 'refusals-offensive')]
  scores = {text: float(len(text)) for text in ('a', 'bb', 'ccc', 'd', 'ee', 'fff')}
  f = run('rm_bench', rows, scores, tmp_path)[0].figures
  assert (f['easy'], f['normal'], f['hard'], f['score']) == (1, 0, 0, pytest.approx(1 / 3))
  assert f['accuracy/markdown_concise'] == 1 and f['accuracy/concise_markdown'] == 0 and f['num_score_ties'] == 18
  assert f['num_items/safety'] == 3 and f['easy/safety'] == 1
  matrix = np.arange(9.0).reshape(3, 3)
  levels = rm_bench.style_levels(matrix)
  assert levels['hard'] == (1 + 2 + 5) / 3 and levels['normal'] == 4 and levels['easy'] == (3 + 6 + 7) / 3


def test_the_parts_of_safety_weigh_the_same():
  cells = np.concatenate([np.ones((3, 9)), np.zeros((1, 9)), np.full((2, 9), 0.25)])
  domains = np.array([0, 0, 0, 1, 2, 2])
  means = rm_bench._domain_means(cells, domains, names=['safety-refuse', 'safety-response', 'chat'])
  assert means['safety'][0] == 0.5 and means['chat'][0] == 0.25
  assert rm_bench._level(cells, domains, names=['safety-refuse', 'safety-response', 'chat'], level='score') == 0.375


# ProcessBench.


def test_the_first_prefix_below_the_threshold_is_the_error():
  first = processbench.first_error
  assert first(np.array([0.9, 0.4, 0.1]), 0.5) == 1 and first(np.array([0.9, 0.5]), 0.5) == -1
  assert first(np.array([np.nan, 0.1]), 0.5) == -2


def solutions(labels, subset='gsm8k', steps=3):
  return [
    dict(id=f'{subset}-{n}', problem=f'{subset} problem {n}', steps=[f'{subset} {n} step {k}' for k in range(steps)], label=label)
    for n, label in enumerate(labels)
  ]


def prefix_scores(rows, predictions):
  """1 for a prefix before the predicted error, 0 from there on."""
  return {
    '\n\n'.join(row['steps'][: k + 1]): float(said == -1 or k < said) for row, said in zip(rows, predictions, strict=True) for k in range(len(row['steps']))
  }


def test_f1_is_the_harmonic_mean_by_subset(tmp_path):
  rows = solutions([0, 1, 2, 1, -1, -1]) + solutions([0, -1], 'math')
  scores = prefix_scores(rows, [0, 1, 2, 0, -1, 1, 1, -1])
  report, _, _ = run('processbench', rows, scores, tmp_path, benchmark=processbench.at(0.5))
  f = report.figures
  assert (f['error_accuracy/gsm8k'], f['correct_accuracy/gsm8k']) == (0.75, 0.5)
  assert f['f1/gsm8k'] == pytest.approx(2 * 0.75 * 0.5 / 1.25) and f['f1/math'] == 0
  assert f['f1'] == pytest.approx(0.3)
  assert f['f1_low'] <= 0.3 <= f['f1_high']


def test_a_threshold_is_chosen_on_validation_data(tmp_path):
  rows = solutions([1, -1, 0, -1])
  scores = {text: 5 + 0.1 * score for text, score in prefix_scores(rows, [1, -1, 0, -1]).items()}
  records, _, _ = items.read(find_benchmark('processbench'), _written(tmp_path, rows))
  found = evaluate.benchmark_answers(scored_by(scores), find_benchmark('processbench'), records)
  threshold = processbench.choose_threshold(found)
  assert threshold == pytest.approx(5.05, abs=1e-5) and processbench.measure(found, threshold=threshold).figures['f1'] == 1


# Rankings, best of n, lengths.


@pytest.mark.parametrize(
  ('rewards', 'expected'),
  [([3, 2, 1], (1, 1)), ([2, 3, 1], (0, 1 / 3)), ([1, 2, 3], (0, 1 / 3)), ([1, 1, 1], (0, 1 / 3)), ([3, np.nan, 1], (0, 0))],
)
def test_rank_match(rewards, expected):
  wins = np.triu(np.ones((3, 3)), 1)
  assert rankings.rank_match(np.array(rewards, float), wins) == pytest.approx(expected)


def test_rankings_group_all_pairs_of_a_prompt(tmp_path):
  rows = [
    dict(prompt='p', responses=['a', 'b', 'c'], ranks=[1, 2, 3]),
    dict(prompt='p', responses=['d', 'e'], ranks=[1, 2]),
    dict(prompt='q', responses=['d', 'f'], ranks=[2, 1]),
  ]
  f = run('rankings', rows, dict(a=3.0, b=2.0, c=1.0, d=0.0, e=1.0, f=4.0), tmp_path)[0].figures
  assert f['accuracy'] == 4 / 5 and f['exact_match'] == pytest.approx(2 / 3) and f['accuracy_plus'] == 0.5 and f['rank_match'] == pytest.approx(2 / 3)


def test_the_best_of_n_shares_ties(tmp_path):
  rows = [dict(question='p', response=['a', 'b', 'c'], score=[True, False, False]), dict(question='q', response=['c', 'd'], score=[False, False])]
  f = run('best_of_n', rows, dict(a=1.0, b=1.0, c=0.0, d=None), tmp_path)[0].figures
  assert (f['best_of_n'], f['random'], f['most']) == (0.25, pytest.approx(1 / 6), 0.5)


def test_pairs_are_told_apart_by_length(tmp_path):
  rows = [dict(prompt='w ' * size, chosen=f'good {n}', rejected=f'bad {n}') for n, size in enumerate((10, 1022, 1023, 3000))]
  scores = {row['chosen']: 1.0 for row in rows} | {row['rejected']: 0.0 if n else 2.0 for n, row in enumerate(rows)}
  f = run('length_buckets', rows, scores, tmp_path)[0].figures
  assert (f['accuracy/0-1024'], f['accuracy/1024-2048'], f['accuracy/2048-4096']) == (0.5, 1, 1)
  assert f['accuracy'] == 0.75 and f['mean_accuracy'] == pytest.approx(2.5 / 3) and f['num_items/0-1024'] == 2


# Rows of something else.


def _written(tmp_path, rows):
  (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(tmp_path / 'rows.jsonl')


ONE = dict(prompt='p', chosen='a', rejected='b')
FOUR = dict(prompt='p', chosen=['a'], rejected=['b', 'c', 'd'], subset='Math', id='1')


@pytest.mark.parametrize(
  ('name', 'row', 'message'),
  [
    ('rewardbench', dict(ONE, id=1), "column 'subset': 'rows' is no subset of rewardbench"),
    ('rewardbench', dict(ONE, subset='shp'), "column 'id': missing"),
    ('rewardbench', FOUR, '4 responses, and an item of rewardbench is one chosen against one rejected'),
    ('rewardbench2', dict(ONE, subset='hep-go', id=1), 'lists of completions'),
    ('rewardbench2', dict(FOUR, subset='Chat'), "'Chat' is no domain of rewardbench2"),
    ('rewardbench2', dict(FOUR, num_correct=2), 'num_correct'),
    ('rewardbench2', dict(FOUR, subset='Ties'), "'ref:NUMBER' and 'tied:NUMBER'"),
    ('rewardbench2', dict(FOUR, subset='Ties', id='tied:3'), 'a tied one several'),
    ('rewardbench2', dict(FOUR, chosen=['a', 'e']), 'only the domain Ties'),
    ('m_rewardbench', dict(ONE, source='donotanswer', id=1), "column 'language': missing"),
    ('m_rewardbench', dict(ONE, source='donotanswer', language='deu_Latn'), "column 'id': missing"),
    ('m_rewardbench', dict(ONE, source='other', language='deu_Latn', id=1), "'other' is no subset of RewardBench"),
    ('rm_bench', dict(FOUR, subset='alpacaeval'), 'three chosen responses'),
    ('rm_bench', dict(ONE, chosen=['a', 'b', 'c'], rejected=['d', 'e', 'f'], id=1), 'is no domain of rm_bench'),
    ('processbench', dict(ONE, id=1), "column 'steps': missing"),
    ('processbench', dict(problem='p', steps=['a'], label=1, id='x-1'), "column 'label': 1 is no step"),
    ('judgebench', dict(ONE, id=1), "column 'source': missing"),
    ('llmbar', dict(ONE, idx=0), "is no subset of llmbar"),
    ('rankings', dict(prompt='p', responses=['a', 'b']), 'a ranking has ranks'),
    ('best_of_n', dict(prompt='p', responses=['a', 'b']), 'a rating'),
    ('length_buckets', dict(prompt='p', response='a'), 'chosen against rejected'),
    ('alpaca_eval', dict(instruction='p', outputs={'x': 'y'}), 'gpt4_1106_preview among them'),
  ],
)  # fmt: skip
def test_a_row_of_something_else_is_one_line(name, row, message, tmp_path):
  with pytest.raises(BadRecord, match=r'^rows.jsonl:1: ') as e:
    items.read(BENCHMARKS[name], _written(tmp_path, [row]))
  assert message in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize(
  ('name', 'rows', 'message'),
  [
    ('rewardbench2', [dict(FOUR, subset='Ties', id='ref:12')], "'ref:12' without 'tied:12'"),
    ('rewardbench2', [dict(FOUR, subset='Ties', id='tied:12', chosen=['a', 'e'])], "'tied:12' without 'ref:12'"),
    ('rewardbench2', 2 * [dict(FOUR, subset='Ties', id='ref:12')], 'twice'),
    ('m_rewardbench', 2 * [dict(ONE, source='donotanswer', id='1', language='deu_Latn')], 'twice in deu_Latn'),
    ('m_rewardbench', [dict(ONE, source=s, id='1', language=x) for s, x in (('donotanswer', 'deu_Latn'), ('hep-go', 'fra_Latn'))], 'ids must mean the same'),
    ('processbench', [dict(problem='p', steps=['a'], label=0, id='gsm8k-1')], "'gsm8k' has no solution without an error"),
    ('processbench', [dict(problem='p', steps=['a'], label=-1, id='gsm8k-1')], "'gsm8k' has no solution with an error"),
  ],
)  # fmt: skip
def test_items_that_make_no_benchmark_are_one_line(name, rows, message, tmp_path):
  with pytest.raises(InputError, match='^' + name) as e:
    run(name, rows, dict.fromkeys('abcde', 0.0), tmp_path, benchmark=processbench.at(0.0) if name == 'processbench' else None)
  assert message in str(e.value) and '\n' not in str(e.value)


def test_an_unknown_benchmark_names_those_that_there_are():
  with pytest.raises(InputError, match='--benchmark=rewardbench3: choose one of rewardbench, rewardbench2'):
    find_benchmark('rewardbench3')
