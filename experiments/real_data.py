"""Rows for training and evaluation out of public preference data; what `experiments.prepare_real_data` writes.

Each set is a generator of (held out, row); rows are in the formats of `rmjax.data.formats`.
"""

from collections.abc import Iterator
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

Rows = Iterator[tuple[bool, dict[str, Any]]]

JUDGE = 'pref_vs_gpt4_1106_weighted_gpt4_turbo'
BASELINE = 'gpt4_1106_preview'
LANGUAGES = ('en-de', 'en-zh', 'ro-en')
VOTES = {0: 0.5, 1: 1.0, 2: 0.0}  # how much a label prefers the first: 0 is a tie, 1 and 2 a response
EVERY = 5  # one prompt in so many is held out
APART = 0.5  # least difference of two z-scored ratings that makes a pair: half a rater's standard deviation


def read(path: Path) -> list[dict[str, Any]]:
  """Rows of a gzipped JSON Lines file."""
  with gzip.open(path, 'rt', encoding='utf-8') as f:
    return [json.loads(line) for line in f]


def alpaca_pairs(source: Path, pairs: int) -> Rows:
  """Two models' answers, chosen by the judge's win probability against the common baseline, split by instruction.

  Of two models whose probabilities differ by less than 0.1 the judge has no preference, and no pair is made.
  """
  rng = np.random.default_rng(0)
  for row, judged in zip(read(source / 'model_outputs.jsonl.gz'), read(source / 'preference_matrix.jsonl.gz'), strict=True):
    scores = {**judged[JUDGE], BASELINE: 0.5}
    models = sorted(name for name, text in row['outputs'].items() if text and scores.get(name) is not None)
    held_out = row['idx'] % EVERY == 0
    made = 0
    for _ in range(20 * pairs):
      better, worse = sorted(rng.choice(models, 2, replace=False), key=scores.get, reverse=True)
      if scores[better] - scores[worse] < 0.1 or row['outputs'][better].strip() == row['outputs'][worse].strip():
        continue
      yield held_out, {
        'prompt': row['instruction'] + '\n\n', 'chosen': row['outputs'][better], 'rejected': row['outputs'][worse], 'subset': row['dataset'],
        'id': f'{row["idx"]}:{better}:{worse}',
      }  # fmt: skip
      made += 1
      if made == pairs:
        break


def mlqe_ratings(source: Path) -> Rows:
  """Rated translations. No source has two translations, so there are no pairs to make; z-scored ratings are regressed."""
  for language in LANGUAGES:
    for part in ('train', 'dev'):
      for row in read(source / f'{language}.{part}.jsonl.gz'):
        yield part == 'dev', {'prompt': row['original'] + '\n', 'response': row['translation'], 'rating': row['z_mean'], 'subset': language}


def mlqe_pairs(source: Path, train: int = 4000, held_out: int = 1000) -> Rows:
  """Two rated translations of DIFFERENT sources, of one language pair: which of the two is the better translation.

  The prompt is empty and a response is 'source ||| translation'. The higher rating wins, by at least `APART`. `labels.quality` is the third
  of the training part's ratings, of all languages, that a rating falls into: 0 bad, 1 normal, 2 good.
  """
  rows = {(language, part): read(source / f'{language}.{part}.jsonl.gz') for language in LANGUAGES for part in ('train', 'dev')}
  thirds = np.quantile([row['z_mean'] for (_, part), rated in rows.items() if part == 'train' for row in rated], (1 / 3, 2 / 3))
  rng = np.random.default_rng(0)
  for (language, part), rated in rows.items():
    made, wanted = 0, -(-(train if part == 'train' else held_out) // len(LANGUAGES))
    while made < wanted:
      pair = [rated[i] for i in rng.integers(0, len(rated), 2)]
      ratings = [row['z_mean'] for row in pair]
      if abs(ratings[0] - ratings[1]) < APART:
        continue
      made += 1
      yield part == 'dev', {
        'prompt': '', 'responses': [f'{row["original"]} ||| {row["translation"]}' for row in pair], 'ratings': ratings,  # these decide who wins
        'labels': {'quality': np.searchsorted(thirds, ratings, side='right').tolist()}, 'subset': language,
      }  # fmt: skip


def pandalm_votes(source: Path) -> Rows:
  """Two models' answers with three people's votes, whose mean is the label; split by instruction.

  An empty answer, and one that the data holds as a truth value instead of text, is no response: those rows are left out.
  """
  seen: dict[str, int] = {}
  for row in read(source / 'testset_v1.jsonl.gz'):
    responses = [row['response1'], row['response2']]
    if not all(isinstance(text, str) and text.strip() for text in responses):
      continue
    prompt = '\n\n'.join(filter(None, (row['instruction'], row['input']))) + '\n\n'
    held_out = seen.setdefault(prompt, len(seen)) % EVERY == 0
    first = vote_share(row)
    yield held_out, {'prompt': prompt, 'responses': responses, 'wins': [[0, first], [1 - first, 0]], 'id': f'{row["idx"]}:{row["cmp_key"]}'}


def vote_share(row: dict[str, Any]) -> float:
  """How much PandaLM's annotators prefer the first response."""
  return sum(VOTES[row[f'annotator{n}']] for n in (1, 2, 3)) / 3


def fine_grained_wins(row: dict[str, Any]) -> np.ndarray:
  """Wins [4, 4] of a question's four answers: all six pairs were judged, ties are 0.5."""
  wins = np.zeros((4, 4))
  for (i, j), label in zip(row['pair_order'], row['preference'], strict=True):
    wins[i, j], wins[j, i] = VOTES[label], 1 - VOTES[label]
  return wins


def fine_grained_answers(source: Path) -> Rows:
  """Four answers to a question, split by question.

  The passages that the answers were written from are left out, though people judged with them: they are about 2,800 characters on average and
  would fill a row by themselves. What is left to learn is how a good answer reads.
  """
  for number, row in enumerate(read(source / 'dev_feedback.jsonl.gz')):
    held_out = number % EVERY == 0
    yield held_out, {'prompt': row['question'] + '\n\n', 'responses': row['predictions'], 'wins': fine_grained_wins(row).tolist(), 'id': str(number)}
