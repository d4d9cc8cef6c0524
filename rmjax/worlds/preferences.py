"""The world of preferences: real text with a known gold reward, and an annotator who prefers by it with noise and biases.

A prompt asks for something small and checkable (`preferences_tasks`). Its responses vary in four attributes that are drawn apart from one another:
is the answer right, does it leave a part out, does it open with a courtesy, how many sentences of filler come first.

Settings add what claims need: two traits that mark words tell noisily (a kind, by which preferences go round in a cycle, and a grade of any size),
annotators whose liking for length is bent or who are of two camps, and labels of coarse quality. What is off is drawn for nobody.
"""

from collections.abc import Iterable
import dataclasses
import functools
import hashlib
import itertools
import json
import math
from pathlib import Path
from random import Random
from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from rmjax.data.records import pairwise_wins, Record
from rmjax.errors import InputError
from rmjax.worlds.preferences_tasks import DEFAULT_TASKS, FILLERS, HERDS, OPENERS, SCALE, Task, TASKS, vocabulary
from rmjax.worlds.world import sigmoid, World

TOKENIZER = Path(__file__).with_name('preferences_tokenizer.json')
EVAL_SHARE = 0.1  # of all prompts, and of all responses with marks; which ones is decided by what they say


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
    fillers: numbers of filler sentences, drawn alike; a sentence comes back only where there are more than there are different ones.
    answers: whether responses answer at all; if not, they are short, none counts as right or complete, and quality lies in the marks.
    marks: how many mark words a response says of each trait in use: of its kind if `cycle` is not 0, of its grade if `grade` is not 0.
    clarity: probability that a mark of kind is an animal of the response's own herd; else it is one of another herd.
    blur: standard deviation, in places of 12, with which a mark of grade misses the grade.
    cycle: logits by which the annotator prefers kind 0 to 1, 1 to 2 and 2 to 0; gold does not know it.
    grade: gold reward of the best grade; of a part of it for a part.
    curve: 'linear', or 'hump' to bend the length that `length_bias` is for, see `felt_length`.
    bend: words at which the hump is highest.
    contested: those of the tasks on which half of the annotators want the opposite of gold.
    levels: of the label `quality`, see `quality_levels`; 0 for no such label.
    labelled: share of the training records whose quality is known; that of the eval split always is.
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
  fillers: tuple[int, ...] = (0, 0, 0, 1, 1, 2)
  answers: bool = True
  marks: int = 0
  clarity: float = 0.9
  blur: float = 1.0
  cycle: float = 0.0
  grade: float = 0.0
  curve: str = 'linear'
  bend: int = 12
  contested: tuple[str, ...] = ()
  levels: int = 0
  labelled: float = 0.0

  def __post_init__(self):
    if not self.tasks or set(self.tasks) - TASKS.keys():
      raise InputError(f'world.tasks = {self.tasks}: choose from {", ".join(TASKS)}')
    if self.responses < 2:
      raise InputError(f'world.responses = {self.responses}: a preference needs at least 2')
    if not 0 <= self.pairs <= math.comb(self.responses, 2):
      raise InputError(f'world.pairs = {self.pairs}: {self.responses} responses make {math.comb(self.responses, 2)} pairs (0 compares them all)')
    if not self.temperature > 0:
      raise InputError(f'world.temperature = {self.temperature}: it must be above 0 (0.01 is nearly without noise)')
    for name in ('correctness', 'completeness', 'courtesy', 'verbosity', 'temperature', 'length_bias', 'cycle', 'grade', 'blur'):
      if not math.isfinite(getattr(self, name)):
        raise InputError(f'world.{name} = {getattr(self, name)}: it must be a finite number')
    if not isinstance(self.fillers, tuple) or not self.fillers or not all(isinstance(n, int) and n >= 0 for n in self.fillers):
      raise InputError(f'world.fillers = {self.fillers}: give numbers of sentences, such as (0, 1, 2)')
    for name in ('marks', 'blur', 'bend'):
      if getattr(self, name) < 0:
        raise InputError(f'world.{name} = {getattr(self, name)}: it must not be below 0')
    for name in ('clarity', 'labelled'):
      if not 0 <= getattr(self, name) <= 1:
        raise InputError(f'world.{name} = {getattr(self, name)}: it must be from 0 to 1')
    for name in ('cycle', 'grade'):
      if getattr(self, name) and not self.marks:
        raise InputError(f'world.{name} = {getattr(self, name)}: nobody can read it from a response without marks; set world.marks above 0')
    if self.curve not in ('linear', 'hump'):
      raise InputError(f"world.curve = '{self.curve}': choose 'linear' or 'hump'")
    if set(self.contested) - set(self.tasks):
      raise InputError(f'world.contested = {self.contested}: choose from world.tasks, {", ".join(self.tasks)}')
    if self.levels < 0 or self.levels == 1:
      raise InputError(f'world.levels = {self.levels}: quality needs at least 2 levels (0 gives no label)')
    if self.labelled and not self.levels:
      raise InputError(f'world.labelled = {self.labelled}: there is no quality to know; set world.levels above 1')


class Response(NamedTuple):
  """A response and what is true of it.

  Attributes:
    text: what it says.
    correct: whether the answer is right, as far as it goes.
    complete: share of the answer's parts that are there.
    polite: whether it opens with a courtesy.
    fillers: sentences that say nothing.
    kind: 0, 1 or 2; -1 where kinds are not in use.
    grade: from 0 to 1; 0 where grades are not in use.
  """

  text: str
  correct: bool
  complete: float
  polite: bool
  fillers: int
  kind: int = -1
  grade: float = 0.0


class Preferences(World):
  """Records by number, each a pure function of (settings, seed, split, number).

  The splits share no prompt, whatever their seeds; and where there are marks, no response either (but in a world of too few texts to hold any out).
  """

  Settings = Settings
  tokenizer_path = TOKENIZER

  def _draw(self, rng: Random, where: str) -> Record:
    """A record.

    Its labels are `gold` [N], `length` [N] (words and punctuation marks) and `probability` [N, N], of an annotator to come preferring i to j
    (0 where they were not compared). With `cycle` there is `kind` [N]; with `contested` tasks, `contested` [] (0 or 1); with `levels`, `quality` [N]
    (-1 where it is unknown).
    """
    s = self.settings
    name = rng.choice(s.tasks)
    task = TASKS[name](rng)
    while is_held_out(task.prompt) != (self._split == 'eval'):
      task = TASKS[name](rng)
    correct = [n % 2 == 0 for n in range(s.responses)]
    rng.shuffle(correct)
    responses = [self._respond(task, ok, rng) for ok in correct]

    texts = tuple(response.text for response in responses)
    gold = np.array([gold_reward(response, s) for response in responses], np.float32)
    length = np.array([len(text.split()) for text in texts], np.float32)
    kind = np.array([response.kind for response in responses], np.int32)
    pairs = [(i, j) for i, j in itertools.combinations(range(s.responses), 2) if texts[i] != texts[j]]  # nobody can tell a text from itself
    if s.pairs:
      pairs = rng.sample(pairs, min(s.pairs, len(pairs)))
    contested = name in s.contested
    camps = [annotator_probability(wanted, length, kind, s) for wanted in ((gold, -gold) if contested else (gold,))]
    probability, own = np.mean(camps, axis=0), rng.choice(camps) if contested else camps[0]  # one annotator judges the whole record
    wins = pairwise_wins(s.responses, [(i, j, float(rng.random() < own[i, j])) for i, j in pairs])

    labels = {'gold': gold, 'length': length, 'probability': np.where(wins + wins.T > 0, probability, 0.0).astype(np.float32)}
    if s.cycle:
      labels['kind'] = kind
    if s.contested:
      labels['contested'] = np.int32(contested)
    if s.levels:  # drawn last: how many are known changes nothing else
      known = rng.random() < s.labelled or self._split == 'eval'
      labels['quality'] = quality_levels(gold, s) if known else np.full(s.responses, -1, np.int32)
    unrated = np.full(s.responses, np.nan, np.float32)
    return Record(task.prompt + '\n', texts, wins, unrated, subset=name, where=where, labels=labels)

  def _respond(self, task: Task, correct: bool, rng: Random) -> Response:
    """A response whose text belongs to this split, where responses are held out."""
    s = self.settings
    response = respond(task, correct, s, rng)
    if s.marks and (s.cycle or s.grade):
      for _ in range(300):  # misses by chance once in 10^13; without an end a world of too few texts would hang
        if is_held_out(response.text) == (self._split == 'eval'):
          break
        response = respond(task, correct, s, rng)
    return response


def respond(task: Task, correct: bool, s: Settings, rng: Random) -> Response:
  """Draws a response; all its attributes but `correct` are drawn apart from the task."""
  answer, complete = (), 0.0
  if s.answers:
    parts = task.right if correct else rng.choice(task.wrong + (task.exchanged if s.exchange else ()))
    said = len(parts) if rng.random() < 0.7 else 1
    answer, complete = parts[:said], said / len(parts)
  polite, fillers = rng.random() < 0.5, rng.choice(s.fillers)
  opening = [rng.choice(OPENERS)] if polite else []
  opening += rng.sample(FILLERS, fillers) if fillers <= len(FILLERS) else rng.choices(FILLERS, k=fillers)
  kind, grade, words = -1, 0.0, [*answer]
  if s.marks and s.cycle:
    kind = rng.randrange(3)
    words += [rng.choice(HERDS[kind if rng.random() < s.clarity else (kind + rng.randint(1, 2)) % 3]) for _ in range(s.marks)]
  if s.marks and s.grade:
    grade, top = rng.random(), len(SCALE) - 1
    words += [SCALE[min(max(round(top * grade + rng.gauss(0.0, s.blur)), 0), top)] for _ in range(s.marks)]
  text = ' '.join([*opening, *words, '.'] if words or not opening else opening)
  return Response(text, correct and s.answers, complete, polite, fillers, kind, grade)


def gold_reward(response: Response, s: Settings) -> float:
  """The weighted sum of what is true of a response."""
  answer = s.correctness * response.correct + s.completeness * response.complete
  return answer + s.courtesy * response.polite + s.verbosity * response.fillers + s.grade * response.grade


def annotator_probability(gold: Float[np.ndarray, 'N'], length: Float[np.ndarray, 'N'], kind: Int[np.ndarray, 'N'], s: Settings) -> Float[np.ndarray, 'N N']:
  """P(i preferred to j) = sigmoid((gold_i - gold_j) / temperature + length_bias * (f(length_i) - f(length_j)) + cycle * c(kind_i, kind_j)).

  f is `felt_length`; c is 1 where j's kind is the next after i's (2 is followed by 0), -1 where i's is the next after j's, else 0.
  The other camp on a contested task is the same with -gold.
  """
  gap = lambda x: x[:, None].astype(np.float64) - x[None, :]
  beats = (kind[None, :] - kind[:, None] + 1) % 3 - 1
  logits = gap(gold) / s.temperature + s.length_bias * gap(felt_length(length, s)) + s.cycle * beats
  return sigmoid(logits)


def felt_length(length: Float[np.ndarray, '*N'], s: Settings) -> Float[np.ndarray, '*N']:
  """The length that the annotator's bias is for: itself, or a 'hump', min(n, bend) - max(n - bend, 0) / 4: longer is better, and then a bit worse."""
  return length if s.curve == 'linear' else np.minimum(length, s.bend) - 0.25 * np.maximum(length - s.bend, 0)


def quality_levels(gold: Float[np.ndarray, 'N'], s: Settings) -> Int[np.ndarray, 'N']:
  """int32[N], the level from 0 to levels - 1 of each gold reward: cut so that over the world's responses each is as frequent as the other.

  Equal rewards are of equal level, so that a gold of few values (no grade) has less equal shares.
  """
  sample = _gold_sample(s)
  middle = (np.searchsorted(sample, gold, 'left') + np.searchsorted(sample, gold, 'right')) / 2
  return np.minimum(middle * s.levels / len(sample), s.levels - 1).astype(np.int32)


@functools.lru_cache(maxsize=64)
def _gold_sample(s: Settings) -> Float[np.ndarray, 'samples']:
  """Gold rewards of this world, sorted; the same for any split and seed."""
  rng = Random('quality')
  draw = lambda n: respond(TASKS[rng.choice(s.tasks)](rng), n % s.responses % 2 == 0, s, rng)
  return np.sort(np.array([gold_reward(draw(n), s) for n in range(4000)], np.float32))


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
