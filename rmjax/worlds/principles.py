"""The world of principles: annotators say in words of their own what is good or bad about a response, and somebody asks later by other words.

A response has J attributes, each there or not, which its words tell noisily as in `rmjax.worlds.traits`; that world's hidden weights of them make the
overall preference. An annotator names one to three of those attributes that strike people about this response, by two of the attribute's six
synonyms, and says whether the response has it, now and then wrongly. Attributes come in kin whose words have near embeddings. All of this is
balanced: whatever the principle, half of the responses satisfy it.

Reference: the simulated feedback for RLBFF (2025), whose annotations are of people.

Dimensions: J attributes, P principles.
"""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
from random import Random

from jaxtyping import Float
import numpy as np

from rmjax.data.records import Record
from rmjax.errors import InputError
from rmjax.worlds import traits
from rmjax.worlds.preferences import is_held_out
from rmjax.worlds.preferences_tasks import NAMES, PLACES

ATTRIBUTES = 8
SYNONYMS = tuple(zip(*[iter(word for scale in traits.SCALES[ATTRIBUTES:] for word in scale)] * 6, strict=True))  # [J] of 6 words, none a mark's
END = ' ?'  # what `data.suffix` closes a question with
APPENDED = ('own', 'other', 'none')
SIZE = 64  # of an embedding
_KIN, _OWN = 0.85, 0.35  # shares of the length of a word's vector (squared) that kin have in common, of an attribute's; and that are its own


def _phrases(held_out: bool) -> tuple[tuple[str, ...], ...]:
  """Of each attribute, the texts of the principle: two different synonyms. Each synonym is in one pair that is held out."""
  pairs = [(a, b) for a, b in itertools.permutations(range(6), 2) if (a + b == 5) == held_out]
  return tuple(tuple(f'{words[a]} {words[b]}' for a, b in pairs) for words in SYNONYMS)


SEEN, UNSEEN = _phrases(False), _phrases(True)  # 24 and 6 of each attribute


@dataclasses.dataclass(frozen=True)
class Settings(traits.Settings):
  """What can be set in this world, beside the settings of traits.

  Attributes:
    annotators: of each response; 0 for overall preferences among `responses` in place of principles, with traits' own records.
    mentions: numbers of principles that an annotator names, drawn alike.
    salient: how many of the attributes strike people about a response; they name no others.
    asked: attributes that annotators are asked about; () for all.
    error: probability that an annotator's verdict is wrong.
    appended: what follows a response in the text: its 'own' principle, one of an 'other' attribute (the control), or 'none'.
  """

  topics: int = 16
  traits: int = ATTRIBUTES
  values: int = 2
  weights: tuple[tuple[float, ...], ...] = ((4.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5),)
  blur: float = 4.0
  annotators: int = 3
  mentions: tuple[int, ...] = (1, 2, 3)
  salient: int = 4
  asked: tuple[int, ...] = ()
  error: float = 0.2
  appended: str = 'own'

  def __post_init__(self):
    if not 2 <= self.traits <= ATTRIBUTES:
      raise InputError(f'world.traits = {self.traits}: there are principles for 2 to {ATTRIBUTES}')
    super().__post_init__()
    if self.values != 2:
      raise InputError(f'world.values = {self.values}: an attribute is there or not: leave it at 2')
    if self.annotators < 0:
      raise InputError(f'world.annotators = {self.annotators}: it must not be below 0')
    if any(not 0 <= j < self.traits for j in self.asked) or len(set(self.asked)) < len(self.asked):
      raise InputError(f'world.asked = {self.asked}: choose different ones of 0 to {self.traits - 1}')
    if not 1 <= self.salient <= self.traits:
      raise InputError(f'world.salient = {self.salient}: it must be from 1 to {self.traits}')
    if not self.mentions or min(self.mentions) < 1 or max(self.mentions) > min(self.salient, len(self.asked) or self.traits):
      raise InputError(f'world.mentions = {self.mentions}: an annotator names at least 1 attribute, and at most those that are asked about and salient')
    if not 0 <= self.error <= 0.5:
      raise InputError(f'world.error = {self.error}: it must be from 0 to 0.5')
    if self.appended not in APPENDED:
      raise InputError(f"world.appended = '{self.appended}': choose one of {', '.join(APPENDED)}")


class Principles(traits.Traits):
  """Records of a prompt and one response, once for each principle that was named of it, rated 1 or 0; by number, as traits'.

  The record's prompt is prompt and response, which are read once for all principles; its responses are questions, which `END` closes. The text of each
  is what [prompt; response; principle] is where a user asks one question of many responses. `columns['principles']` are the principles' texts.
  Labels: `annotator` [N] who named it; `attribute` [N] which it is; `truth` [N], the response's own level of that.
  """

  Settings = Settings

  def _draw(self, rng: Random, where: str) -> Record:
    s = self.settings
    if not s.annotators:
      return super()._draw(rng, where)
    topic = rng.randrange(s.topics)
    prompt = self._prompt(topic, 0, rng)
    text, levels = self._respond(0.5, rng)
    striking = rng.sample(s.asked or range(s.traits), min(s.salient, len(s.asked) or s.traits))
    named = [(who, j) for who in range(s.annotators) for j in rng.sample(striking, rng.choice(s.mentions))]
    ratings = [1.0 - levels[j] if rng.random() < s.error else levels[j] for _, j in named]
    phrases = tuple(rng.choice(SEEN[j]) for _, j in named)
    told = phrases
    if s.appended == 'other':
      told = tuple(rng.choice(SEEN[(j + rng.randrange(1, s.traits)) % s.traits]) for _, j in named)
    if s.appended == 'none':
      told = ('',) * len(named)
    count = len(named)
    labels = {
      'annotator': np.array([who for who, _ in named], np.int32),
      'attribute': np.array([j for _, j in named], np.int32),
      'truth': np.array([levels[j] for _, j in named], np.float32),
    }
    return Record(
      prompt + text,
      tuple(question(principle) for principle in told),
      np.zeros((count, count), np.float32),
      np.array(ratings, np.float32),
      subset=traits.TOPICS[topic],
      where=where,
      labels=labels,
      columns={'principles': phrases},
    )

  def _prompt(self, topic: int, group: int, rng: Random) -> str:
    """A prompt of this split, of few words: all the rest of a text is to be read."""
    del group  # one weighs all
    while True:
      prompt = f'{rng.choice(NAMES)} : {traits.TOPICS[topic]} {rng.choice(PLACES)} ?\n'
      if is_held_out(prompt) == (self._split == 'eval'):
        return prompt


def question(principle: str) -> str:
  """What follows a response, but for `END`."""
  return f' is it {principle}'.rstrip()


def embed(principles: Sequence[str]) -> Float[np.ndarray, 'P D']:
  """What a sentence encoder would make of principles: the mean of their words' vectors.

  Two principles of one attribute have a cosine of about 0.79 where they share no word and 0.89 where they share one; those of kin are at 0.67 and
  0.04 more or less by chance; others at 0.

  Raises:
    InputError: a word that is no principle's.
  """
  vectors = _vectors()
  if unknown := [word for text in principles for word in text.split() if word not in vectors]:
    raise InputError(f"principle word '{unknown[0]}': choose from {', '.join(vectors)}")
  return np.stack([np.mean([vectors[word] for word in text.split()], 0) for text in principles])


@functools.lru_cache
def _vectors() -> dict[str, np.ndarray]:
  """Of each synonym: a direction of its kin, one of its attribute, and one of its own."""
  rng = np.random.default_rng(0)
  directions = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
  found = {}
  for j, words in enumerate(SYNONYMS):
    meaning = _KIN**0.5 * directions[j // 2] + (1 - _KIN) ** 0.5 * directions[ATTRIBUTES + j]
    for word in words:
      own = rng.normal(size=SIZE)
      found[word] = (1 - _OWN) ** 0.5 * meaning + _OWN**0.5 * own / np.linalg.norm(own)
  return found
