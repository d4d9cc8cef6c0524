"""Benchmarks against figures that others' models made: scores that real data sets carry, counted again in plain Python."""

import gzip
import json
import math

import numpy as np
import pytest

from experiments import evaluate, inference
from rmjax.evaluation import items, processbench
from rmjax.evaluation.benchmarks import BENCHMARKS


def rows_of(path):
  with gzip.open(path, 'rt') as file:
    return [json.loads(line) for line in file]


def run(name, spec, function):
  scorer = inference.Scorer(inference.encode_words, lambda records, encode: inference.score_texts('f', function, records, encode), 'Custom Classifier')
  return evaluate.run_benchmark(scorer, BENCHMARKS[name], items.read(BENCHMARKS[name], str(spec))[0]).figures


def test_judgebench_gives_the_accuracies_of_five_public_reward_models(real_data):
  path = real_data / 'judgebench' / 'judgebench_gpt-4o-2024-05-13.jsonl.gz'
  rows = rows_of(path)
  models = list(rows[0]['rm_scores_AB'])
  assert len(models) == 5
  for model in models:

    def stored(completions, rm_scores_AB, response_A, model=model, **kwargs):
      return [scores[model][0 if text == first else 1] for text, scores, first in zip(completions, rm_scores_AB, response_A, strict=True)]

    figures = run('judgebench', path, stored)
    sign = lambda row, model=model: (row['rm_scores_AB'][model][0] - row['rm_scores_AB'][model][1]) * (1 if row['label'] == 'A>B' else -1)
    right = [sign(row) > 0 for row in rows]
    assert figures['accuracy'] == pytest.approx(sum(right) / len(rows))
    assert figures['num_score_ties'] == sum(sign(row) == 0 for row in rows)
    reasoning = [ok for ok, row in zip(right, rows, strict=True) if row['source'] == 'livebench-reasoning']
    assert figures['accuracy/Reasoning'] == pytest.approx(sum(reasoning) / len(reasoning))
    assert 0.45 < figures['accuracy'] < 0.8 and figures['accuracy_low'] < figures['accuracy'] < figures['accuracy_high']


def test_best_of_eight_of_a_real_reward_model(real_data):
  path = real_data / 'qwen_math_bon8' / 'math_cot_100.jsonl.gz'

  def stored(completions, response, pred_score, **kwargs):
    return [scores[texts.index(text)][0] for text, texts, scores in zip(completions, response, pred_score, strict=True)]

  figures, rows = run('best_of_n', path, stored), rows_of(path)
  best = 0.0
  for row in rows:
    highest = [right for right, (score,) in zip(row['score'], row['pred_score'], strict=True) if score == max(s for (s,) in row['pred_score'])]
    best += sum(highest) / len(highest)
  assert figures['best_of_n'] == pytest.approx(best / len(rows))
  assert figures['random'] == pytest.approx(np.mean([row['score'] for row in rows])) and figures['most'] == np.mean([any(row['score']) for row in rows])
  assert figures['random'] < figures['best_of_n'] < figures['most']


def test_win_rates_of_a_real_judge(real_data, tmp_path):
  """AlpacaEval's win rate is the mean of the judge's probability, which a reward of its logit against 0 for the baseline gives back."""
  judged = {row['idx']: row['pref_vs_gpt4_1106_weighted_gpt4_turbo'] for row in rows_of(real_data / 'alpaca_eval' / 'preference_matrix.jsonl.gz')}
  rows = []
  for row in rows_of(real_data / 'alpaca_eval' / 'model_outputs.jsonl.gz'):
    known = [name for name in row['outputs'] if name in judged[row['idx']] and (row['outputs'][name] or '').strip()][:6]
    rows.append(dict(row, outputs={name: row['outputs'][name] for name in [*known, 'gpt4_1106_preview']}))
  path = tmp_path / 'outputs.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))

  def judge(prompts, completions, idx, outputs):
    found, seen = [], {}
    for number, systems in zip(idx, outputs, strict=True):
      place = seen[number] = seen.get(number, -1) + 1
      p = min(max(judged[number].get(list(systems)[place], 0.5), 1e-6), 1 - 1e-6)
      found.append(0.0 if list(systems)[place] == 'gpt4_1106_preview' else math.log(p / (1 - p)))
    return found

  figures = run('alpaca_eval', path, judge)
  for system in {name for row in rows for name in row['outputs']} - {'gpt4_1106_preview'}:
    mean = np.mean([judged[row['idx']][system] for row in rows if system in row['outputs']])
    assert figures[f'win_rate/{system}'] == pytest.approx(mean, abs=1e-5)


def test_rm_bench_and_llmbar_read_all_rows(real_data):
  longer = lambda completions, **kwargs: [float(len(text)) for text in completions]
  paths = sorted((real_data / 'rm_bench').glob('*.jsonl.gz'))
  figures, rows = run('rm_bench', ','.join(map(str, paths)), longer), [row for path in paths for row in rows_of(path)]
  assert figures['num_items'] == len(rows) == 394
  kinds = {'bigcode/humanevalpack': 'code', 'alpacaeval': 'chat', 'xstest-should-respond': 'respond'}
  by_domain = {}
  for row in rows:
    by_domain.setdefault(kinds.get(row['subset'], 'refuse'), []).append([[len(a) > len(b) for b in row['rejected']] for a in row['chosen']])
  cells = {name: np.mean(matrices, 0) for name, matrices in by_domain.items()}
  matrix = (cells['chat'] + cells['code'] + (cells['respond'] + cells['refuse']) / 2) / 3
  assert figures['hard'] == pytest.approx((matrix[0, 1] + matrix[0, 2] + matrix[1, 2]) / 3) and figures['score'] == pytest.approx(matrix.mean())
  assert figures['easy'] == pytest.approx((matrix[1, 0] + matrix[2, 0] + matrix[2, 1]) / 3)
  assert figures['hard/chat'] == pytest.approx((cells['chat'][0, 1] + cells['chat'][0, 2] + cells['chat'][1, 2]) / 3)
  figures = run('llmbar', real_data / 'llmbar' / 'llmbar.jsonl.gz', longer)
  assert figures['num_items'] == 448  # one row has two equal outputs
  rows = rows_of(real_data / 'llmbar' / 'llmbar.jsonl.gz')
  right = {}
  for row in rows:
    right.setdefault(row['subset'], []).append(
      (len(row['output_1']) > len(row['output_2'])) if row['label'] == 1 else (len(row['output_2']) > len(row['output_1']))
    )
  names = [f'LLMBar/{name}' for name in ('Natural', *(f'Adversarial/{x}' for x in ('Neighbor', 'GPTInst', 'GPTOut', 'Manual')))]
  assert figures['score'] == pytest.approx(np.mean([np.mean(right[name]) for name in names]))


def test_processbench_reads_all_rows(real_data):
  """A scorer that knows the label of every other solution and never finds an error in the rest."""
  paths = sorted((real_data / 'processbench').glob('*.jsonl.gz'))

  def oracle(prompts, completions, id, steps, label):
    prefix = lambda text, parts: next(n for n in range(len(parts)) if '\n\n'.join(parts[: n + 1]) == text)
    knows = lambda name: int(name.rsplit('-', 1)[1]) % 2 == 0
    return [float(not knows(n) or first < 0 or prefix(t, p) < first) for t, n, p, first in zip(completions, id, steps, label, strict=True)]

  records = items.read(BENCHMARKS['processbench'], ','.join(map(str, paths)))[0]
  scorer = inference.Scorer(inference.encode_words, lambda records, encode: inference.score_texts('f', oracle, records, encode), '')
  figures = evaluate.run_benchmark(scorer, processbench.at(0.5), records).figures
  expected = []
  for path in paths:
    known = [int(row['id'].rsplit('-', 1)[1]) % 2 == 0 for row in rows_of(path) if row['label'] >= 0]
    accuracy = np.mean(known)
    expected.append(2 * accuracy / (1 + accuracy))
  assert figures['num_items'] == 1710 and figures['f1'] == pytest.approx(np.mean(expected))
