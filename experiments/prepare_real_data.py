"""Turns public preference data into training and evaluation files, and the stories260K checkpoint into a Hugging Face directory.

  python -m experiments.prepare_real_data --source=$RMJAX_DATA --output=DIR

Writes DIR/<set>.{train,eval}.jsonl for
  alpaca_eval      pairs by a judge: 58 models on one instruction
  pandalm          pairs with three people's votes
  fine_grained_qa  four answers each, with all six comparisons, ties too
  mlqe_pairs       pairs of rated translations, with a quality level of each
  mlqe_pe          rated translations one by one
and DIR/bpe (a tokenizer of the first four's training texts) and DIR/stories260K (weights and tokenizer). See `experiments.real_data`.
"""

from collections.abc import Iterable, Iterator
import json
from pathlib import Path
import shutil
from typing import Any

from absl import flags
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from experiments import cli, real_data
from rmjax.data import llama2c
from rmjax.data.tokenizer import Tokenizer

_SOURCE = flags.DEFINE_string('source', None, 'Directory with alpaca_eval, fine_grained_qa_feedback, mlqe_pe, pandalm_human and checkpoints.', required=True)
_OUTPUT = flags.DEFINE_string('output', None, 'Directory to write.', required=True)
_PAIRS = flags.DEFINE_integer('pairs', 16, 'Pairs of models drawn for each instruction of alpaca_eval.')

VOCABULARY = 4096
MOST = 2_000_000  # characters of one set that the tokenizer is trained on: alpaca_eval has ten times the text of the others together


def build_tokenizer(texts: Iterable[str], directory: Path) -> None:
  """Trains a byte-level BPE of `VOCABULARY` tokens, with BOS before every text, and writes it as a Hugging Face directory."""
  special = ['<pad>', '<bos>', '<eos>', '<unk>']
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
  )
  backend.train_from_iterator(texts, trainer)
  backend.post_processor = processors.TemplateProcessing(single='<bos> $A', special_tokens=[('<bos>', special.index('<bos>'))])
  directory.mkdir(exist_ok=True)
  backend.save(str(directory / 'tokenizer.json'))
  Tokenizer.load(directory / 'tokenizer.json').save(directory)  # says which tokens are special


def texts_of(row: dict[str, Any]) -> Iterator[str]:
  """Prompt and responses."""
  yield row['prompt']
  yield from row['responses'] if 'responses' in row else (row['chosen'], row['rejected'])


def write(rows: real_data.Rows, path: Path) -> list[str]:
  """Writes PATH.train.jsonl and PATH.eval.jsonl; returns the training part's lines."""
  lines: dict[bool, list[str]] = {False: [], True: []}
  for held_out, row in rows:
    lines[held_out].append(json.dumps(row, ensure_ascii=False))
  for held_out, part in ((False, 'train'), (True, 'eval')):
    path.with_name(f'{path.name}.{part}.jsonl').write_text(''.join(line + '\n' for line in lines[held_out]), encoding='utf-8')
  print(f'{path.name}: {len(lines[False])} training rows, {len(lines[True])} held out')
  return lines[False]


def some_texts(lines: Iterable[str]) -> list[str]:
  """Different texts of the rows, in their order, up to `MOST` characters."""
  chosen, size = {}, 0
  for line in lines:
    for text in texts_of(json.loads(line)):
      if text not in chosen and size < MOST:
        chosen[text] = None
        size += len(text)
  return list(chosen)


def main() -> None:
  """Writes everything."""
  source, output = Path(_SOURCE.value), Path(_OUTPUT.value)
  output.mkdir(parents=True, exist_ok=True)
  texts = []
  for name, rows in (
    ('alpaca_eval', real_data.alpaca_pairs(source / 'alpaca_eval', _PAIRS.value)),
    ('pandalm', real_data.pandalm_votes(source / 'pandalm_human')),
    ('fine_grained_qa', real_data.fine_grained_answers(source / 'fine_grained_qa_feedback')),
    ('mlqe_pairs', real_data.mlqe_pairs(source / 'mlqe_pe')),
  ):
    texts += some_texts(write(rows, output / name))
  build_tokenizer(texts, output / 'bpe')
  print(f'bpe: {output / "bpe"}')
  write(real_data.mlqe_ratings(source / 'mlqe_pe'), output / 'mlqe_pe')
  checkpoint = source / 'checkpoints' / 'stories260K'
  (output / 'stories260K').mkdir(exist_ok=True)
  for file in (checkpoint / 'hf').iterdir():
    shutil.copyfile(file, output / 'stories260K' / file.name)  # without the source's permissions
  llama2c.convert(checkpoint / 'tok512.bin', output / 'stories260K')
  print(f'stories260K: {output / "stories260K"}')


if __name__ == '__main__':
  cli.run(main)
