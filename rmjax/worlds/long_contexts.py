"""The world of long contexts: somebody is said to have something, once, among up to thousands of words about others; is a claim of it faithful?

Text. A context is chunks of facts, 'kate has lamp .'; one chunk, at any place, has the fact that the question is about. A response claims it, or
something else of the same owner. No other fact is of that owner or of the thing that the owner has. All words are of the preferences
world, whose tokenizer this is.

Labels. By the critical chunk alone, which is never wrong (short-to-long); or by a judge who reads the whole context and errs the more the longer it
is (`reach`). Gold is 1 for a faithful claim, else 0.

Dimensions: N responses.
"""

import dataclasses
import math
from random import Random

import numpy as np

from rmjax.data.records import pairwise_wins, Record
from rmjax.data.short_to_long import short_to_long
from rmjax.errors import InputError
from rmjax.worlds.preferences import is_held_out, TOKENIZER
from rmjax.worlds.preferences_tasks import ANIMALS, NAMES, THINGS, WORDS
from rmjax.worlds.world import World

OWNERS = (*NAMES, *ANIMALS)
VALUES = (*THINGS, *WORDS)
FACT = 4  # words of one


@dataclasses.dataclass(frozen=True)
class Settings:
  """What can be set in this world.

  Attributes:
    lengths: words of a context, at most; one of them is drawn for each record, all alike. A record's `subset` is what was drawn.
    responses: N; one is faithful.
    chunk: facts of a chunk.
    values: how many different things there are to have.
    wrong: what an unfaithful claim says: 'absent', a thing of which the context knows nothing, or 'elsewhere', one that it says another owner has, so
      that it is not enough to know what is mentioned.
    reach: words in which the judge's attention falls to 1 / e, see `judge_error`; 0 for labels by the critical chunk.
  """

  lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
  responses: int = 2
  chunk: int = 2
  values: int = 64
  wrong: str = 'elsewhere'
  reach: float = 0.0

  def __post_init__(self):
    if self.chunk < 1:
      raise InputError(f'world.chunk = {self.chunk}: a chunk has a fact or more')
    shortest = FACT * self.chunk * 2
    if not self.lengths or min(self.lengths) < shortest:
      raise InputError(f'world.lengths = {self.lengths}: give lengths of at least {shortest} words, a critical chunk and another')
    if self.wrong not in ('absent', 'elsewhere'):
      raise InputError(f"world.wrong = '{self.wrong}': choose 'absent' or 'elsewhere'")
    if self.responses < 2:
      raise InputError(f'world.responses = {self.responses}: a preference needs at least 2')
    if not self.responses + 2 <= self.values <= len(VALUES):
      raise InputError(f'world.values = {self.values}: from {self.responses + 2} to {len(VALUES)}')
    if self.wrong == 'elsewhere' and self.responses - 1 > distractor_facts(min(self.lengths), self.chunk):
      raise InputError(f'world.responses = {self.responses}: a context of {min(self.lengths)} words has no room for what the unfaithful ones say')
    if not 0 <= self.reach < math.inf:
      raise InputError(f'world.reach = {self.reach}: it must be a number, 0 or more')


class LongContexts(World):
  """Records by number, each a pure function of (settings, seed, split, number). The splits share no fact that is asked for."""

  Settings = Settings
  tokenizer_path = TOKENIZER

  def _draw(self, rng: Random, where: str) -> Record:
    """A record.

    Its labels are `gold` [N], `probability` [N, N] (of the judge preferring i to j; 0 where they are not compared: two unfaithful claims are not), and
    `place` [], where in the context the critical chunk begins, from 0 to below 1.
    """
    s = self.settings
    length = rng.choice(s.lengths)
    owner, values = rng.choice(OWNERS), rng.sample(VALUES[: s.values], s.responses)
    while is_held_out(f'{owner} has {values[0]}') != (self._split == 'eval'):
      owner, values = rng.choice(OWNERS), rng.sample(VALUES[: s.values], s.responses)
    critical, distractors = self._chunks(owner, values, length, rng)
    chunks = short_to_long(critical, distractors, length, rng)
    texts = [f'{owner} has {value} .' for value in values]
    order = rng.sample(range(s.responses), s.responses)

    faithful, error = order.index(0), judge_error(length, s.reach)
    others = [n for n in range(s.responses) if n != faithful]
    wins = pairwise_wins(s.responses, [(faithful, n, float(rng.random() >= error)) for n in others])
    labels = dict(
      gold=np.array([float(n == 0) for n in order], np.float32),
      probability=pairwise_wins(s.responses, [(faithful, n, 1 - error) for n in others]),
      place=np.float32(chunks.index(critical[0]) / len(chunks)),
    )
    return Record(
      f'{" ".join(chunks)} what has {owner} ?\n', tuple(texts[n] for n in order), wins, np.full(s.responses, np.nan, np.float32),
      subset=str(length), where=where, labels=labels,
    )  # fmt: skip

  def _chunks(self, owner: str, values: list[str], length: int, rng: Random) -> tuple[list[str], list[str]]:
    """The critical chunk, and distractors enough: none has the owner or what is asked for."""
    s = self.settings
    owners = [name for name in OWNERS if name != owner]
    unsaid = set(values) if s.wrong == 'absent' else {values[0]}
    things = [value for value in VALUES[: s.values] if value not in unsaid]
    facts = [f'{rng.choice(owners)} has {rng.choice(things)} .' for _ in range(-(-length // FACT))]
    if s.wrong == 'elsewhere':  # among those that are used, and shuffled below
      facts[: len(values) - 1] = [f'{rng.choice(owners)} has {value} .' for value in values[1:]]
    used = distractor_facts(length, s.chunk)
    padding = facts[:used]
    rng.shuffle(padding)
    own = [f'{owner} has {values[0]} .', *facts[used : used + s.chunk - 1]]
    rng.shuffle(own)
    return [' '.join(own)], [' '.join(padding[k : k + s.chunk]) for k in range(0, used, s.chunk)]


def distractor_facts(length: int, chunk: int) -> int:
  """Facts in the distractors of a context of so many words, one chunk of whose is critical."""
  return (length // (FACT * chunk) - 1) * chunk


def judge_error(length: int, reach: float) -> float:
  """How often a judge errs who reads a context of so many words: (1 - exp(-length / reach)) / 2, at most half the time; never without a reach."""
  return (1 - math.exp(-length / reach)) / 2 if reach else 0.0


def context_of(record: Record) -> str:
  """The context of a record of this world, its question left out."""
  return record.prompt[: record.prompt.index(' what has ')]
