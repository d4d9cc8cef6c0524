"""The world of preferences: real text with a known gold reward, and an annotator who prefers by it with noise and biases.

A prompt asks for something small and checkable (`preferences_tasks`). Its responses vary in four attributes that are drawn apart from one another:
is the answer right, does it leave a part out, does it open with a courtesy, how many sentences of filler come first.
"""

from collections.abc import Iterable
import dataclasses
import hashlib
import itertools
import json
import math
from pathlib import Path
from random import Random
from typing import NamedTuple

from jaxtyping import Float
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from rmjax.data.records import pairwise_wins, Record
from rmjax.errors import InputError
from rmjax.worlds.preferences_tasks import DEFAULT_TASKS, FILLERS, OPENERS, Task, TASKS, vocabulary

TOKENIZER = Path(__file__).with_name('preferences_tokenizer.json')
EVAL_SHARE = 0.1  # of all prompts; which ones is decided by what they say


@dataclasses.dataclass(frozen=True)
class Settings:
  """What can be set in this world.

  With the defaults length says next to nothing of quality: what completeness adds to the longer ones, verbosity takes away.

  Attributes:
    tasks: names of `preferences_tasks.TASKS`, drawn alike.
    exchange: whether wrong answers may also be exchanged ones, which are harder to tell.
    responses: N, to a prompt; half of them (rounded up) are right.
    pairs: how many pairs of different texts are compared, drawn alike; 0 for all.
    correctness: gold reward of a right answer.
    completeness: gold reward of leaving nothing out; a part of it for a part.
    courtesy: gold reward of a polite opening.
    verbosity: gold reward of each sentence of filler; below 0 where short is good, above where long is.
    temperature: of the annotator, see `annotator_probability`.
    length_bias: the annotator's, in logits for each word of difference; gold does not know it.
  """

  tasks: tuple[str, ...] = DEFAULT_TASKS
  exchange: bool = False
  responses: int = 4
  pairs: int = 0
  correctness: float = 4.0
  completeness: float = 1.0
  courtesy: float = 0.5
  verbosity: float = -0.25
  temperature: float = 0.5
  length_bias: float = 0.0

  def __post_init__(self):
    if not self.tasks or set(self.tasks) - TASKS.keys():
      raise InputError(f'world.tasks = {self.tasks}: choose from {", ".join(TASKS)}')
    if self.responses < 2:
      raise InputError(f'world.responses = {self.responses}: a preference needs at least 2')
    if not 0 <= self.pairs <= math.comb(self.responses, 2):
      raise InputError(f'world.pairs = {self.pairs}: {self.responses} responses make {math.comb(self.responses, 2)} pairs (0 compares them all)')
    if not self.temperature > 0:
      raise InputError(f'world.temperature = {self.temperature}: it must be above 0 (0.01 is nearly without noise)')
    for name in ('correctness', 'completeness', 'courtesy', 'verbosity', 'temperature', 'length_bias'):
      if not math.isfinite(getattr(self, name)):
        raise InputError(f'world.{name} = {getattr(self, name)}: it must be a finite number')


class Response(NamedTuple):
  """A response and what is true of it.

  Attributes:
    text: what it says.
    correct: whether the answer is right, as far as it goes.
    complete: share of the answer's parts that are there.
    polite: whether it opens with a courtesy.
    fillers: sentences that say nothing.
  """

  text: str
  correct: bool
  complete: float
  polite: bool
  fillers: int


class Preferences:
  """Records by number, each a pure function of (settings, seed, split, number).

  The splits share no prompt, whatever their seeds.
  """

  tokenizer_path = TOKENIZER
  bad = ()  # no row of a world is bad

  def __init__(self, *, split: str, seed: int = 0, size: int = 10_000, **settings):
    """A view of the world.

    Args:
      split: 'train' or 'eval'.
      seed: another seed, other records.
      size: how many records there are; the first ones are the same for any size.
      **settings: fields of `Settings`.

    Raises:
      InputError: a setting or split that there is not.
    """
    if split not in ('train', 'eval'):
      raise InputError(f"split '{split}': there are 'train' and 'eval'")
    names = [field.name for field in dataclasses.fields(Settings)]
    if unknown := sorted(settings.keys() - set(names)):
      raise InputError(f'world.{unknown[0]}: there is no such setting; there are {", ".join(names)}')
    if 'tasks' in settings:
      settings['tasks'] = tuple(settings['tasks'])
    self.settings = Settings(**settings)
    self._split, self._seed, self._size = split, seed, size

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Record:
    """Record number `index`.

    Its labels are `gold` [N], `length` [N] (words and punctuation marks) and `probability` [N, N], the annotator's of preferring i to j
    (0 where they were not compared).
    """
    if not 0 <= index < self._size:
      raise IndexError(f'record {index} of {self._size}')
    s = self.settings
    rng = Random(f'{self._seed} {self._split} {index}')
    name = rng.choice(s.tasks)
    task = TASKS[name](rng)
    while is_held_out(task.prompt) != (self._split == 'eval'):
      task = TASKS[name](rng)
    correct = [n % 2 == 0 for n in range(s.responses)]
    rng.shuffle(correct)
    responses = [respond(task, ok, s, rng) for ok in correct]

    texts = tuple(response.text for response in responses)
    gold = np.array([gold_reward(response, s) for response in responses], np.float32)
    length = np.array([len(text.split()) for text in texts], np.float32)
    pairs = [(i, j) for i, j in itertools.combinations(range(s.responses), 2) if texts[i] != texts[j]]  # nobody can tell a text from itself
    if s.pairs:
      pairs = rng.sample(pairs, min(s.pairs, len(pairs)))
    probability = annotator_probability(gold, length, s)
    wins = pairwise_wins(s.responses, [(i, j, float(rng.random() < probability[i, j])) for i, j in pairs])
    labels = {'gold': gold, 'length': length, 'probability': np.where(wins + wins.T > 0, probability, 0.0).astype(np.float32)}
    unrated = np.full(s.responses, np.nan, np.float32)
    return Record(task.prompt + '\n', texts, wins, unrated, subset=name, where=f'{self._split}:{index}', labels=labels)


def respond(task: Task, correct: bool, s: Settings, rng: Random) -> Response:
  """Draws a response; all its attributes but `correct` are drawn apart from the task."""
  parts = task.right if correct else rng.choice(task.wrong + (task.exchanged if s.exchange else ()))
  said = len(parts) if rng.random() < 0.7 else 1
  polite, fillers = rng.random() < 0.5, rng.choice((0, 0, 0, 1, 1, 2))
  text = ' '.join([*([rng.choice(OPENERS)] if polite else []), *rng.sample(FILLERS, fillers), *parts[:said], '.'])
  return Response(text, correct, said / len(parts), polite, fillers)


def gold_reward(response: Response, s: Settings) -> float:
  """The weighted sum of what is true of a response."""
  return s.correctness * response.correct + s.completeness * response.complete + s.courtesy * response.polite + s.verbosity * response.fillers


def annotator_probability(gold: Float[np.ndarray, 'N'], length: Float[np.ndarray, 'N'], s: Settings) -> Float[np.ndarray, 'N N']:
  """P(i preferred to j) = sigmoid((gold_i - gold_j) / temperature + length_bias * (length_i - length_j))."""
  gap = lambda x: x[:, None].astype(np.float64) - x[None, :]
  return 0.5 + 0.5 * np.tanh((gap(gold) / s.temperature + s.length_bias * gap(length)) / 2)  # a sigmoid that cannot overflow


def is_held_out(prompt: str) -> bool:
  """Whether a prompt belongs to the eval split."""
  digest = hashlib.blake2b(prompt.encode(), digest_size=4).digest()
  return int.from_bytes(digest, 'big') < EVAL_SHARE * 2**32


def bayes_rate(records: Iterable[Record]) -> float:
  """Share of the annotator's choices that the best predictor gets right: the mean over compared pairs of max(p, 1 - p)."""
  right, pairs = 0.0, 0
  for record in records:
    compared = np.triu(record.wins + record.wins.T, 1) > 0
    p = record.labels['probability'][compared]
    right, pairs = right + float(np.maximum(p, 1 - p).sum()), pairs + p.size
  return right / pairs


def build_tokenizer() -> str:
  """The JSON of the world's tokenizer: one token a word, BOS before every text. `python -m rmjax.worlds.preferences` writes it."""
  special = ['<pad>', '<bos>', '<eos>', '<unk>']
  backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *vocabulary()])}, unk_token='<unk>'))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  backend.post_processor = processors.TemplateProcessing(single='<bos> $A', special_tokens=[('<bos>', special.index('<bos>'))])
  backend.add_special_tokens(special)
  return json.dumps(json.loads(backend.to_str()), indent=1) + '\n'


if __name__ == '__main__':
  TOKENIZER.write_text(build_tokenizer())
