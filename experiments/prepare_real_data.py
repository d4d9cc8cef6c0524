"""Turns public preference data into training and evaluation files, and the stories260K checkpoint into a Hugging Face directory.

  python -m experiments.prepare_real_data --source=$RMJAX_DATA --output=DIR

Writes DIR/alpaca_eval.{train,eval}.jsonl (pairs), DIR/mlqe_pe.{train,eval}.jsonl (ratings) and DIR/stories260K (weights and tokenizer).
"""

from collections.abc import Iterator
import gzip
import json
from pathlib import Path
import shutil
from typing import Any

from absl import flags
import numpy as np

from experiments import cli
from rmjax.data import llama2c

_SOURCE = flags.DEFINE_string('source', None, 'Directory with alpaca_eval, mlqe_pe and checkpoints.', required=True)
_OUTPUT = flags.DEFINE_string('output', None, 'Directory to write.', required=True)
_PAIRS = flags.DEFINE_integer('pairs', 16, 'Pairs of models drawn for each instruction of alpaca_eval.')

JUDGE = 'pref_vs_gpt4_1106_weighted_gpt4_turbo'
BASELINE = 'gpt4_1106_preview'


def read(path: Path) -> list[dict[str, Any]]:
  """Rows of a gzipped JSON Lines file."""
  with gzip.open(path, 'rt', encoding='utf-8') as f:
    return [json.loads(line) for line in f]


def alpaca_pairs(source: Path, pairs: int) -> Iterator[tuple[bool, dict[str, Any]]]:
  """(held out, pair): two models' answers, chosen by the judge's win probability against the common baseline, split by instruction.

  Of two models whose probabilities differ by less than 0.1 the judge has no preference, and no pair is made.
  """
  rng = np.random.default_rng(0)
  for row, judged in zip(read(source / 'model_outputs.jsonl.gz'), read(source / 'preference_matrix.jsonl.gz'), strict=True):
    scores = {**judged[JUDGE], BASELINE: 0.5}
    models = sorted(name for name, text in row['outputs'].items() if text and scores.get(name) is not None)
    held_out = row['idx'] % 5 == 0
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


def mlqe_ratings(source: Path) -> Iterator[tuple[bool, dict[str, Any]]]:
  """(held out, rated translation). No source has two translations, so there are no pairs to make; z-scored ratings are regressed."""
  for language in ('en-de', 'en-zh', 'ro-en'):
    for part in ('train', 'dev'):
      for row in read(source / f'{language}.{part}.jsonl.gz'):
        yield part == 'dev', {'prompt': row['original'] + '\n', 'response': row['translation'], 'rating': row['z_mean'], 'subset': language}


def main() -> None:
  """Writes everything."""
  source, output = Path(_SOURCE.value), Path(_OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  for name, rows in (('alpaca_eval', alpaca_pairs(source / 'alpaca_eval', _PAIRS.value)), ('mlqe_pe', mlqe_ratings(source / 'mlqe_pe'))):
    with (output / f'{name}.train.jsonl').open('w') as train, (output / f'{name}.eval.jsonl').open('w') as held:
      counts = [0, 0]
      for held_out, row in rows:
        counts[held_out] += 1
        (held if held_out else train).write(json.dumps(row, ensure_ascii=False) + '\n')
    print(f'{name}: {counts[0]} training rows, {counts[1]} held out')
  checkpoint = source / 'checkpoints' / 'stories260K'
  (output / 'stories260K').mkdir(exist_ok=True)
  for file in (checkpoint / 'hf').iterdir():
    shutil.copyfile(file, output / 'stories260K' / file.name)  # without the source's permissions
  llama2c.convert(checkpoint / 'tok512.bin', output / 'stories260K')
  print(f'stories260K: {output / "stories260K"}')


if __name__ == '__main__':
  cli.run(main)
