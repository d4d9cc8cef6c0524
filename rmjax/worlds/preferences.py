"""The world of preferences: real text with a known gold reward, and annotators who prefer by it with noise and biases.

A prompt asks for something small and checkable (`preferences_tasks`). Its responses vary in four attributes that are drawn apart from
one another: is the answer right, does it leave out a part, does it open with a courtesy, how many sentences of filler come first. So
length says nothing of quality, unless a setting makes it.
"""

from collections.abc import Iterable
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from random import Random

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

  Attributes:
    tasks: names of `preferences_tasks.TASKS`, drawn alike.
    responses: N, to a prompt; all pairs of different texts are compared.
    correctness: gold reward of a right answer.
    completeness: gold reward of leaving nothing out.
    courtesy: gold reward of a polite opening.
    verbosity: gold reward of each sentence of filler; below 0 where short is good, above where long is.
    temperature: of the annotator: i is preferred to j with probability sigmoid((gold_i - gold_j) / temperature + bias).
    length_bias: the annotator's bias per word of difference in length, in logits; gold does not know it.
  """

  tasks: tuple[str, ...] = DEFAULT_TASKS
  responses: int = 6
  correctness: float = 4.0
  completeness: float = 1.0
  courtesy: float = 0.5
  verbosity: float = -0.25
  temperature: float = 0.5
  length_bias: float = 0.0

  def __post_init__(self):
    unknown = [task for task in self.tasks if task not in TASKS]
    if unknown or not self.tasks:
      raise InputError(f'world.tasks = {self.tasks}: choose from {", ".join(TASKS)}')
    if self.responses < 2:
      raise InputError(f'world.responses = {self.responses}: a preference needs at least 2')
    if self.temperature <= 0:
      raise InputError(f'world.temperature = {self.temperature}: it must be above 0 (0.01 is nearly without noise)')


class Preferences:
  """Records by number, each a pure function of (settings, seed, split, number).

  The splits share no prompt.
  """

  tokenizer_path = TOKENIZER
  bad = ()  # no row of a world is bad

  def __init__(self, split: str = 'train', *, seed: int = 0, size: int = 10_000, **settings):
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
    try:
      self.settings = Settings(**{name: tuple(value) if name == 'tasks' else value for name, value in settings.items()})
    except TypeError as e:
      raise InputError(f'world: {e}; settings are {", ".join(field.name for field in dataclasses.fields(Settings))}') from e
    self._split, self._seed, self._size = split, seed, size

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Record:
    s = self.settings
    rng = Random(f'{self._seed} {self._split} {index}')
    name = rng.choice(s.tasks)
    task = TASKS[name](rng)
    while _held_out(task.prompt) != (self._split == 'eval'):
      task = TASKS[name](rng)
    right = [n % 2 == 0 for n in range(s.responses)]
    rng.shuffle(right)
    manners = _manners(s, rng)
    texts, gold = zip(*(_respond(task, ok, manner, s, rng) for ok, manner in zip(right, manners, strict=True)), strict=True)
    gold, length = np.array(gold, np.float32), np.array([len(text.split()) for text in texts], np.float32)
    gap = lambda x: x[:, None] - x[None, :]
    probability = 1 / (1 + np.exp(-gap(gold) / s.temperature - s.length_bias * gap(length)))
    pairs = [(i, j) for i, j in itertools.combinations(range(s.responses), 2) if texts[i] != texts[j]]  # nobody can tell a text from itself
    wins = pairwise_wins(s.responses, [(i, j, float(rng.random() < probability[i, j])) for i, j in pairs])
    labels = {'gold': gold, 'length': length, 'probability': np.where(wins + wins.T > 0, probability, 0.0).astype(np.float32)}
    where = f'{self._split}:{index}'
    return Record(task.prompt + '\n', texts, wins, np.full(s.responses, np.nan, np.float32), subset=name, where=where, labels=labels)


def _manners(s, rng):
  found = {}
  while len(found) < s.responses:
    whole, polite, filler = rng.random() < 0.6, rng.random() < 0.4, rng.choice((0, 0, 0, 1, 1, 2))
    manner = whole, tuple(rng.sample(OPENERS, polite)), tuple(rng.sample(FILLERS, filler))
    found[manner] = None
  return list(found)


def _respond(task: Task, right: bool, manner, s: Settings, rng: Random) -> tuple[str, float]:
  """A response and its gold reward."""
  whole, opening, filler = manner
  parts = task.right if right else rng.choice(task.wrong)
  text = ' '.join([*opening, *filler, *(parts if whole else parts[:1]), '.'])
  return text, s.correctness * right + s.completeness * whole + s.courtesy * len(opening) + s.verbosity * len(filler)


def _held_out(prompt: str) -> bool:
  digest = hashlib.blake2b(prompt.encode(), digest_size=4).digest()
  return int.from_bytes(digest, 'big') < EVAL_SHARE * 2**32


def bayes_rate(records: Iterable[Record]) -> float:
  """Share of the annotator's choices that the best predictor gets right: the mean over compared pairs of max(p, 1 - p)."""
  right = pairs = 0.0
  for record in records:
    compared = np.triu(record.wins + record.wins.T, 1) > 0
    p = record.labels['probability'][compared]
    right, pairs = right + np.maximum(p, 1 - p).sum(), pairs + compared.sum()
  return float(right / pairs)


def build_tokenizer() -> str:
  """The JSON of the world's tokenizer: one token a word, BOS before every text."""
  special = ['<pad>', '<bos>', '<eos>', '<unk>']
  backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *vocabulary()])}, unk_token='<unk>'))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  backend.post_processor = processors.TemplateProcessing(single='<bos> $A', special_tokens=[('<bos>', 1)])
  backend.add_special_tokens(special)
  return json.dumps(json.loads(backend.to_str()), indent=1) + '\n'


if __name__ == '__main__':
  TOKENIZER.write_text(build_tokenizer())
