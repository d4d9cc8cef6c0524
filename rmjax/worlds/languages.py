"""The world of languages: what can be said is said in any of eight languages, of which some are written much and others hardly.

Meanings, gold and annotators are those of `rmjax.worlds.traits`, whose words are language 0. Every other language has one word for each of them, and no
two languages share a word (their scripts differ); names, sayings and punctuation are the same in all. A record of a given number means the same in every
language, so that items can be compared one by one.

Why a model that was told preferences in language 0 alone can know any in another: nothing in the words themselves tells what they mean. But a language's
own text tells which of its words go together (those of near levels), and bilinguals mix: in text of any language now and then a word is of language 0
(`switch`), in the place that its translation would have. That is all the pretraining (`Texts`) has; there are no parallel sentences and no dictionary. How
well a word is known, and where it lies beside its translation, is left to how much of it there is to read.

A translation errs: it says another word of the language in place of the right one (`noise`). Errors of a lower rate are among those of a higher.

Dimensions: L languages, N responses.
"""

import dataclasses
import functools
from random import Random

import numpy as np

from rmjax.data.records import Record
from rmjax.errors import InputError
from rmjax.worlds import traits
from rmjax.worlds.preferences import is_held_out
from rmjax.worlds.preferences_tasks import FILLERS, GRAMMAR, NAMES, OPENERS, PUNCTUATION, vocabulary

LANGUAGES = 8
TRAITS, TOPICS = 2, 2  # that there are words for in all of them
CONTENT = (*(word for scale in traits.SCALES[:TRAITS] for word in scale), *traits.TOPICS[:TOPICS])  # what is translated


@dataclasses.dataclass(frozen=True)
class Settings(traits.Settings):
  """What can be set in this world, beside the settings of traits.

  Attributes:
    language: that records of `Languages` are in.
    noise: probability that a translated word is a wrong one of its language; language 0 is the original, in which there are none.
    shares: [L], of the texts of `Texts` that are in each language, up to a factor; 0 for none.
    switch: probability that a word of such a text is said in language 0.
  """

  topics: int = TOPICS
  traits: int = TRAITS
  responses: int = 2
  marks: int = 3
  weights: tuple[tuple[float, ...], ...] = ((1.0, 1.0),)
  language: int = 0
  noise: float = 0.0
  shares: tuple[float, ...] = (24.0, 14.0, 8.0, 5.0, 3.0, 2.0, 1.0, 0.0)
  switch: float = 0.3

  def __post_init__(self):
    super().__post_init__()
    for name, most in (('topics', TOPICS), ('traits', TRAITS)):
      if getattr(self, name) > most:
        raise InputError(f'world.{name} = {getattr(self, name)}: all languages have words for 1 to {most}')
    if not 1 <= len(self.shares) <= LANGUAGES or min(self.shares) < 0 or not 0 < sum(self.shares) < np.inf:
      raise InputError(f'world.shares = {self.shares}: give those of 1 to {LANGUAGES} languages, none below 0 and one above it')
    if not 0 <= self.language < LANGUAGES:
      raise InputError(f'world.language = {self.language}: there are 0 to {LANGUAGES - 1}')
    for name in ('noise', 'switch'):
      if not 0 <= getattr(self, name) <= 1:
        raise InputError(f'world.{name} = {getattr(self, name)}: it must be from 0 to 1')


class Languages(traits.Traits):
  """Records of traits, by number, in one language. Labels, and which split a text belongs to, are those of what it means."""

  Settings = Settings

  def _draw(self, rng: Random, where: str) -> Record:
    s, record = self.settings, super()._draw(rng, where)
    errors = Random(f'{s.language} {rng.random()}')  # every language has its own; no rate changes what is drawn
    say = lambda text: translate(text, s.language, s.noise, errors)
    return dataclasses.replace(record, prompt=say(record.prompt), responses=tuple(map(say, record.responses)))

  def _prompt(self, topic: int, group: int, rng: Random) -> str:
    """A prompt of this split: three names, which are nobody's word, and the topic."""
    del group
    while True:
      prompt = f'{rng.choice(NAMES)} {rng.choice(NAMES)} {rng.choice(NAMES)} : {traits.TOPICS[topic]} ?\n'
      if is_held_out(prompt) == (self._split == 'eval'):
        return prompt


class Texts(Languages):
  """What there is to read before any preference: each record N texts, a prompt and a response to it each, in one language mixed with language 0.

  Nothing is preferred. Its one label is `language` [].
  """

  def _draw(self, rng: Random, where: str) -> Record:
    s, record = self.settings, traits.Traits._draw(self, rng, where)
    language = rng.choices(range(len(s.shares)), s.shares)[0]
    texts = tuple(mix(record.prompt + response, language, s.switch, rng) for response in record.responses)
    count = len(texts)
    nothing = np.zeros((count, count), np.float32), np.full(count, np.nan, np.float32)
    return Record('', texts, *nothing, subset=f'language_{language}', where=where, labels={'language': np.int32(language)})


@functools.cache
def words() -> tuple[tuple[str, ...], ...]:
  """[L] of the words of each language for `CONTENT`, in its order."""
  shared = {*NAMES, *GRAMMAR.split(), *PUNCTUATION.split(), *CONTENT, *(word for text in OPENERS + FILLERS for word in text.split())}
  others = [word for word in vocabulary() if word not in shared]
  dealt = Random('languages').sample(others, (LANGUAGES - 1) * len(CONTENT))
  return CONTENT, *zip(*[iter(dealt)] * len(CONTENT), strict=True)


def translate(text: str, language: int, noise: float, rng: Random) -> str:
  """A text of language 0 in another, each word of which is a wrong one with probability `noise`."""
  if not language:
    return text
  own, places = words()[language], {word: place for place, word in enumerate(CONTENT)}

  def say(word: str) -> str:
    if word not in places:
      return word
    chance, off = rng.random(), rng.randrange(1, len(CONTENT))
    return own[(places[word] + off * (chance < noise)) % len(CONTENT)]

  return _by_word(text, say)


def mix(text: str, language: int, switch: float, rng: Random) -> str:
  """A text of language 0 in another, each word of which stays with probability `switch`."""
  own = dict(zip(CONTENT, words()[language], strict=True))
  return _by_word(text, lambda word: own.get(word, word) if rng.random() >= switch else word)


def _by_word(text: str, say) -> str:
  """Each word said, the line's end of a prompt kept."""
  return '\n'.join(' '.join(map(say, line.split(' '))) for line in text.split('\n'))
