"""The world of sequences: prompts and answers of about twelve words, of which two features are rewarded too simply by proxies and rightly by gold.

Text. A prompt names two topics. An answer is words, mostly of these topics (`Settings.focus`): the first half of the first, the second of the second.

Features. Every word has two planted weights. Over the words of each topic both have mean 0 and standard deviation 1, and their correlation is
`Settings.correlation`, exactly: the weights on a are normal draws, the same whatever the correlation rho, and those on b are rho times these plus
sqrt(1 - rho^2) times others that are orthogonal to them. A feature of an answer is the sum of its words' weights over `Settings.length`, so that a
policy trained on the text has features of mean 0, and one that is driven along a moves along b by about rho as much.

Rewards. Proxy a is saturation * tanh(a / saturation), proxy b is b; more is always better. Gold has its optimum in the middle:
  gold = a - a^2 / (2 A) + b - b^2 / (2 B) - coupling |a - A| |b - B|, with A, B = best_a, best_b.
A proxy is worth following up to its proxy point, what it is where a = A and b = B.

Small spaces with everything exact are in `sequences_exact`.

Dimensions: R rows, S slots, N responses, W words.
"""

import dataclasses
import functools
import json
import math
from pathlib import Path
from random import Random

import jax.numpy as jnp
from jaxtyping import Float
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from rmjax.data.records import Record
from rmjax.errors import InputError
from rmjax.trees import Array, response_sums, Trees
from rmjax.worlds.preferences_tasks import PLACES, WORDS
from rmjax.worlds.world import World

TOKENIZER = Path(__file__).with_name('sequences_tokenizer.json')
SPECIAL = ('<pad>', '<bos>', '<eos>', '<unk>')
VOCABULARY = (*PLACES, *WORDS[:96], 'and', ':')  # topics are places, so that no word of an answer is in a prompt


@dataclasses.dataclass(frozen=True)
class Settings:
  """What can be set in this world.

  Attributes:
    topics: number of topics.
    words: words of each topic.
    length: words of an answer, on average; what sums of weights are divided by.
    spread: by how many words an answer may be longer or shorter, all alike.
    focus: probability that a word is of the topic whose turn it is; else it is any word.
    planting: another number, other weights.
    correlation: rho, of the two weights over the words of each topic.
    saturation: largest value of proxy a.
    best_a: A, feature a at gold's optimum.
    best_b: B, feature b there.
    coupling: of the two in gold.
  """

  topics: int = 8
  words: int = 8
  length: int = 12
  spread: int = 2
  focus: float = 0.5
  planting: int = 0
  correlation: float = 0.0
  saturation: float = 1.0
  best_a: float = 0.6
  best_b: float = 0.6
  coupling: float = 0.5

  def __post_init__(self):
    if not 2 <= self.topics <= len(PLACES):
      raise InputError(f'world.topics = {self.topics}: from 2 to {len(PLACES)}')
    if self.words < 4 or self.topics * self.words > len(VOCABULARY) - len(PLACES) - 2:
      raise InputError(f'world.words = {self.words}: at least 4, and with {self.topics} topics at most {(len(VOCABULARY) - len(PLACES) - 2) // self.topics}')
    if not 0 <= self.spread < self.length:
      raise InputError(f'world.spread = {self.spread}: from 0 to below world.length = {self.length}')
    if not 0 <= self.focus <= 1:
      raise InputError(f'world.focus = {self.focus}: it must be from 0 to 1')
    if not -1 <= self.correlation <= 1:
      raise InputError(f'world.correlation = {self.correlation}: it must be from -1 to 1')
    for name in ('saturation', 'best_a', 'best_b'):
      if not 0 < getattr(self, name) < math.inf:
        raise InputError(f'world.{name} = {getattr(self, name)}: it must be a number above 0')
    if not 0 <= self.coupling * math.sqrt(self.best_a * self.best_b) < 1:
      raise InputError(f'world.coupling = {self.coupling}: from 0 to below 1 / sqrt(best_a best_b), or gold is highest at an edge')


class Sequences(World):
  """Records of a prompt and one answer, by number, each a pure function of (settings, seed, split, number): the text to pretrain a policy on.

  The splits share no prompt. Labels are the answer's `gold`, `a` and `b`, [1] each.
  """

  Settings = Settings
  tokenizer_path = TOKENIZER

  def __init__(self, **view):
    """A view of the world, as `World`'s; another seed leaves the words' weights."""
    super().__init__(**view)
    self._pairs = topic_pairs(self.settings, self._split)

  def _draw(self, rng: Random, where: str) -> Record:
    s = self.settings
    pair = rng.choice(self._pairs)
    text = ' '.join(_answer(pair, s, rng))
    a, b = features(text, s)
    labels = {name: np.array([value], np.float32) for name, value in dict(gold=gold_of(a, b, s), a=a, b=b).items()}
    one = np.zeros((1, 1), np.float32), np.full(1, np.nan, np.float32)
    return Record(prompt_text(*pair), (text,), *one, where=where, labels=labels)


def topic_pairs(s: Settings, split: str) -> list[tuple[int, int]]:
  """All pairs of topics that prompts of a split name. In those held out each topic comes first once, and second once."""
  pairs = [(i, j) for i in range(s.topics) for j in range(s.topics)]
  return [(i, j) for i, j in pairs if ((j - i) % s.topics == s.topics // 2) == (split == 'eval')]


def prompt_text(first: int, second: int) -> str:
  """The prompt that names two topics."""
  return f'{PLACES[first]} and {PLACES[second]} :\n'


def topic_words(topic: int, s: Settings) -> tuple[str, ...]:
  """Words of a topic."""
  return tuple(WORDS[topic * s.words : (topic + 1) * s.words])


def _answer(pair: tuple[int, int], s: Settings, rng: Random) -> list[str]:
  count = s.length + rng.randint(-s.spread, s.spread)
  own = [topic_words(pair[2 * k >= count], s) if rng.random() < s.focus else WORDS[: s.topics * s.words] for k in range(count)]
  return [rng.choice(words) for words in own]


@functools.lru_cache(maxsize=64)
def _weights(topics: int, words: int, planting: int, correlation: float) -> Float[np.ndarray, 'W 2']:
  """Weights of each word on a and b, as the module's docstring has them."""
  drawn = np.random.default_rng([planting, topics, words]).normal(size=(topics, words, 2))
  a, other = np.moveaxis(drawn - drawn.mean(1, keepdims=True), -1, 0)
  a /= np.sqrt(np.mean(a**2, 1, keepdims=True))
  other -= np.mean(a * other, 1, keepdims=True) * a
  other /= np.sqrt(np.mean(other**2, 1, keepdims=True))
  b = correlation * a + math.sqrt(1 - correlation**2) * other
  return np.stack([a, b], -1).reshape(-1, 2).astype(np.float32)


def word_weights(s: Settings) -> Float[np.ndarray, 'W 2']:
  """Weights on a and b of WORDS[:W], topic by topic."""
  return _weights(s.topics, s.words, s.planting, s.correlation)


def features(text: str, s: Settings) -> tuple[float, float]:
  """(a, b) of an answer; words that have no weight count for nothing."""
  weights = dict(zip(WORDS, word_weights(s), strict=False))
  a, b = sum((weights[word].astype(float) for word in text.split() if word in weights), np.zeros(2)) / s.length
  return float(a), float(b)


def gold_of(a: Array | float, b: Array | float, s: Settings) -> Array | float:
  """Gold reward of features; at its best (best_a + best_b) / 2."""
  return a - a**2 / (2 * s.best_a) + b - b**2 / (2 * s.best_b) - s.coupling * abs(a - s.best_a) * abs(b - s.best_b)


def proxy_points(s: Settings) -> tuple[float, float]:
  """Proxies a and b where gold is at its best."""
  return s.saturation * math.tanh(s.best_a / s.saturation), s.best_b


# Rewards on the device, to be named in a config: of a rollout and of those settings that they depend on.


def proxy_a(
  batch: Trees, *, topics: int = 8, words: int = 8, length: int = 12, planting: int = 0, correlation: float = 0.0, saturation: float = 1.0
) -> Float[Array, 'R S N']:
  """Saturation * tanh(a / saturation) of each response; 0 where absent. The options are those of `Settings`."""
  s = Settings(topics=topics, words=words, length=length, spread=0, planting=planting, correlation=correlation, saturation=saturation)
  return saturation * jnp.tanh(feature_sums(batch, s)[0] / saturation)


def proxy_b(batch: Trees, *, topics: int = 8, words: int = 8, length: int = 12, planting: int = 0, correlation: float = 0.0) -> Float[Array, 'R S N']:
  """B of each response; 0 where absent. The options are those of `Settings`."""
  return feature_sums(batch, Settings(topics=topics, words=words, length=length, spread=0, planting=planting, correlation=correlation))[1]


def gold(
  batch: Trees,
  *,
  topics: int = 8,
  words: int = 8,
  length: int = 12,
  planting: int = 0,
  correlation: float = 0.0,
  best_a: float = 0.6,
  best_b: float = 0.6,
  coupling: float = 0.5,
) -> Float[Array, 'R S N']:
  """Gold reward of each response; 0 where absent. The options are those of `Settings`."""
  known = dict(topics=topics, words=words, length=length, planting=planting, correlation=correlation)
  s = Settings(**known, spread=0, best_a=best_a, best_b=best_b, coupling=coupling)
  return jnp.where(batch.response_ends >= 0, gold_of(*feature_sums(batch, s), s), 0.0)


def feature_sums(batch: Trees, s: Settings) -> tuple[Float[Array, 'R S N'], Float[Array, 'R S N']]:
  """(a, b) of each response, from the world's own tokens; 0 where absent."""
  table = np.zeros((len(SPECIAL) + len(VOCABULARY), 2), np.float32)
  first = len(SPECIAL) + VOCABULARY.index(WORDS[0])
  weights = word_weights(s)
  table[first : first + len(weights)] = weights
  a, b = jnp.moveaxis(jnp.asarray(table)[batch.tokens], -1, 0)
  return response_sums(a, batch) / s.length, response_sums(b, batch) / s.length


def build_tokenizer() -> str:
  """The JSON of the world's tokenizer: one token a word, BOS before every text. `python -m rmjax.worlds.sequences` writes it."""
  backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate((*SPECIAL, *VOCABULARY))}, unk_token='<unk>'))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  backend.post_processor = processors.TemplateProcessing(single='<bos> $A', special_tokens=[('<bos>', SPECIAL.index('<bos>'))])
  backend.add_special_tokens(list(SPECIAL))
  return json.dumps(json.loads(backend.to_str()), indent=1) + '\n'


if __name__ == '__main__':
  TOKENIZER.write_text(build_tokenizer())
