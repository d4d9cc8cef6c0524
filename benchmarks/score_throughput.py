"""Scoring a best-of-four benchmark beside Hugging Face transformers: the same model, the same texts, tokens a second.

  python -m benchmarks.score_throughput [--rounds=5] [--items=32] [--hf_python=PYTHON] [--cores=1]

One JSON line an implementation. A Llama of 25M parameters in float32 with a reward head, made by transformers and read by both; prompts of lognormal
lengths (median 120 words, sigma 0.8) with four responses each (median 220, sigma 0.6), cut at 1,024. rmjax runs what `experiments.evaluate` runs,
tokenisation included: packed trees, each prompt once. transformers runs batches of eight sequences in the order of the data, padded on the right
to the longest, as reward-bench's scripts do. Each is a process of its own, in turns; a token is one of a prompt with its response, not of padding,
so that both count the same. Prints the largest difference of two scores as well. PYTHON is an interpreter that has torch and transformers; by
default this one, if it has them.
"""

from collections.abc import Iterator
import functools
import importlib.util
import os
from pathlib import Path
import sys
import tempfile

from benchmarks import peers
from benchmarks.peers import HEADS, LAYERS, LLAMA, measure, Measured

MAKE = 'make'
MOST, BATCH, ROWS, LENGTH = 1024, 8, 1, 8192
EOS = 2


def texts(items: int, turn: int) -> list[tuple[str, list[str]]]:
  """Prompts and their four responses, the same in both processes."""
  import numpy as np

  rng = np.random.default_rng(turn)
  words = lambda median, sigma, most: [f'w{i}' for i in rng.integers(3, LLAMA['vocab_size'], int(np.clip(rng.lognormal(np.log(median), sigma), 8, most)))]
  found = []
  for _ in range(items):
    prompt = words(120, 0.8, MOST // 2)
    found.append((' '.join(prompt) + ' ', [' '.join(words(220, 0.6, MOST // 2 - 2)) for _ in range(4)]))
  return found


def lengths(items: int, turn: int) -> peers.Lengths:
  """Tokens of each prompt and of its responses, the end of text included."""
  return [(len(prompt.split()), [len(response.split()) + 1 for response in responses]) for prompt, responses in texts(items, turn)]


def make(directory: str) -> None:
  """Writes the model and its tokenizer, in an interpreter with torch."""
  from tokenizers import models, pre_tokenizers, Tokenizer
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    **LLAMA, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=2048, num_labels=1, pad_token_id=0,
    bos_token_id=1, eos_token_id=EOS,
  )  # fmt: skip
  transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
  vocabulary = {'<pad>': 0, '<s>': 1, '</s>': EOS, **{f'w{i}': i for i in range(3, LLAMA['vocab_size'])}}
  words = Tokenizer(models.WordLevel(vocabulary, unk_token='<pad>'))
  words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token='<pad>', bos_token='<s>', eos_token='</s>')
  tokenizer.save_pretrained(directory)


def hugging_face(directory: str, items: int) -> Iterator[Measured]:
  """Rounds of transformers, another set of texts in each; the scores of the first are written."""
  import numpy as np
  import torch
  import transformers

  model = transformers.AutoModelForSequenceClassification.from_pretrained(directory).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory, padding_side='right')

  @torch.no_grad()
  def run(turn):
    found, sequences = [], [prompt + response + ' </s>' for prompt, responses in texts(items, turn) for response in responses]
    for start in range(0, len(sequences), BATCH):
      batch = tokenizer(sequences[start : start + BATCH], padding=True, return_tensors='pt', add_special_tokens=False)
      found.append(model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, 0].numpy())
    return np.concatenate(found)

  yield from _rounds(run, Path(directory) / 'hugging_face.npy')


def ours(directory: str, items: int) -> Iterator[Measured]:
  """Rounds of rmjax, another set of texts in each; the first compiles, and its scores are written."""
  import numpy as np

  from experiments import inference
  from rmjax.data.records import Record

  scorer = inference.load(directory, rows=ROWS, length=LENGTH)
  nothing = (np.zeros((4, 4), np.float32), np.full(4, np.nan, np.float32))

  def run(turn):
    records = (Record(prompt, tuple(responses), *nothing) for prompt, responses in texts(items, turn))
    return np.concatenate([scored.rewards for scored in scorer.score(records, scorer.encode)])

  yield from _rounds(run, Path(directory) / 'rmjax.npy')


def _rounds(run, path: Path) -> Iterator[Measured]:
  import numpy as np

  yield measure(lambda: np.save(path, run(0)))
  turn = 1
  while True:
    yield measure(functools.partial(run, turn))
    turn += 1


IMPLEMENTATIONS = {'rmjax': ours, 'hugging_face': hugging_face}


def main(_: list[str]) -> None:
  """Runs what the flags say."""
  import subprocess

  import numpy as np

  if flags.FLAGS.cores:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.FLAGS.cores])  # other processes inherit it
  here = all(importlib.util.find_spec(name) for name in ('torch', 'transformers'))
  python = flags.FLAGS.hf_python or (sys.executable if here else '')
  if not python:
    raise app.UsageError('torch and transformers make the model: give an interpreter that has them with --hf_python')
  items, rounds = flags.FLAGS.items, flags.FLAGS.rounds
  with tempfile.TemporaryDirectory() as directory:
    subprocess.run([python, '-m', 'benchmarks.score_throughput', MAKE, directory], check=True, cwd=Path(__file__).parents[1])
    pythons = {'rmjax': sys.executable, 'hugging_face': python}
    runs = {name: peers.elsewhere(python, 'benchmarks.score_throughput', name, directory, str(items)) for name, python in pythons.items()}
    first = {name: dict(first_round_s=next(run).seconds) for name, run in runs.items()}
    products = peers.elsewhere(sys.executable, 'benchmarks.peers')
    measured = peers.take_turns({**runs, 'matmul': products}, rounds)
    of_rounds = [lengths(items, 1 + turn) for turn in range(rounds)]
    flop = [peers.forward_flop(of_round, logits=False) for of_round in of_rounds]
    first['rmjax'] |= peers.part_of_peak(flop, measured['rmjax'], measured.pop('matmul'))
    # Rounds differ in their texts: the medians are of seconds for the mean number of tokens.
    count = [sum(prompt + response for prompt, responses in of_round for response in responses) for of_round in of_rounds]
    scaled = {
      name: [m._replace(seconds=m.seconds * np.mean(count) / n, cpu_seconds=m.cpu_seconds * np.mean(count) / n) for m, n in zip(runs_, count, strict=True)]
      for name, runs_ in measured.items()
    }
    peers.compare('best_of_four', float(np.mean(count)), scaled, **first)
    scores = [np.load(Path(directory) / f'{name}.npy') for name in pythons]
    peers.report(case='best_of_four', largest_difference=f'{np.abs(scores[0] - scores[1]).max():.1e}', spread=float(scores[1].std()))
    for run in (*runs.values(), products):
      run.close()


if __name__ == '__main__':
  if sys.argv[1:2] == [peers.SERVE]:
    peers.serve(IMPLEMENTATIONS[sys.argv[2]](sys.argv[3], int(sys.argv[4])))
  elif sys.argv[1:2] == [MAKE]:
    make(sys.argv[2])
  else:
    from absl import app, flags

    flags.DEFINE_integer('rounds', 5, 'Times that each is run.')
    flags.DEFINE_integer('items', 32, 'Prompts of a round.')
    flags.DEFINE_integer('cores', 0, 'How many to use; 0 for all.')
    flags.DEFINE_string('hf_python', '', 'An interpreter with torch and transformers.')
    app.run(main)
