"""The world of traits: responses with any number of latent traits that words tell noisily, judged by groups of annotators who weigh them differently.

Where `preferences` has answers that are right or wrong, here quality is a weighing: by topic, by who judges, with interactions, or against what the other
responses to the prompt say. What claims of that kind need are settings of this one world: mixtures of annotators, skills, label noise that is not
alike everywhere, biases that gold does not know.

Dimensions: N responses, J traits, G groups.
"""

import dataclasses
import itertools
import math
from random import Random

from jaxtyping import Float
import numpy as np

from rmjax.data.records import pairwise_wins, Record
from rmjax.errors import InputError
from rmjax.worlds.preferences import is_held_out, TOKENIZER
from rmjax.worlds.preferences_tasks import FILLERS, NAMES, PLACES, THINGS, WORDS
from rmjax.worlds.world import sigmoid, World

PLACES_OF_A_SCALE = 12  # words that tell a trait's level, from the lowest to the highest
SCALES = tuple(tuple(WORDS[k : k + PLACES_OF_A_SCALE]) for k in range(0, len(WORDS) - PLACES_OF_A_SCALE + 1, PLACES_OF_A_SCALE))  # one for each trait
TOPICS = tuple(THINGS)


@dataclasses.dataclass(frozen=True)
class Settings:
  """What can be set in this world.

  The gold reward of a response to a prompt about topic t, for group g, is

    sum_j weights[g][j] * scope[t][j] * z_j + sum over (j, k, w) of interactions, w * (2 z_j - 1) * (2 z_k - 1) - closeness * |z_0 - c|

  with z_j in [0, 1] the levels of its traits and c the prompt's centre, which no text tells; with a spread the responses' levels z_0 lie around it.

  Attributes:
    topics: number of topics, drawn alike; the prompt names its own.
    traits: J.
    responses: N, to a prompt.
    pairs: how many pairs of different texts are compared, drawn alike; 0 for all.
    values: different levels a trait can have, from 0 to 1; 0 for any. Not of z_0 where there is a spread.
    marks: words that a response says of each trait.
    blur: standard deviation, in places of 12, with which a mark misses the level.
    fillers: numbers of filler sentences, drawn alike.
    weights: [G][J], of each group.
    mix: [topics][G], how often each group judges a topic; () for all alike.
    scope: [topics][J], factors of the weights; () for ones.
    interactions: (j, k, weight) of pairs of traits.
    closeness: gold reward lost by a distance of one from the centre.
    spread: standard deviation of z_0 around the centre (cut off at 0 and 1); 0 draws z_0 like the others, and nothing tells where the centre is.
    temperature: annotators prefer i to j with probability sigmoid((gold_i - gold_j) / temperature).
    bias: [J], what is added to everybody's weights and gold does not know; () for none.
    flips: [topics], probability that a comparison is turned around in the data; () for none. The eval split has none.
    named: whether the prompt names the group that judges it.
  """

  topics: int = 4
  traits: int = 3
  responses: int = 4
  pairs: int = 0
  values: int = 0
  marks: int = 2
  blur: float = 1.0
  fillers: tuple[int, ...] = (0,)
  weights: tuple[tuple[float, ...], ...] = ((1.0, 1.0, 1.0),)
  mix: tuple[tuple[float, ...], ...] = ()
  scope: tuple[tuple[float, ...], ...] = ()
  interactions: tuple[tuple[float, ...], ...] = ()
  closeness: float = 0.0
  spread: float = 0.0
  temperature: float = 0.25
  bias: tuple[float, ...] = ()
  flips: tuple[float, ...] = ()
  named: bool = False

  def __post_init__(self):
    if not 1 <= self.topics <= len(TOPICS):
      raise InputError(f'world.topics = {self.topics}: there are 1 to {len(TOPICS)}')
    if not 1 <= self.traits <= len(SCALES):
      raise InputError(f'world.traits = {self.traits}: there are words for 1 to {len(SCALES)}')
    if self.responses < 1:
      raise InputError(f'world.responses = {self.responses}: give at least 1')
    if not 0 <= self.pairs <= math.comb(self.responses, 2):
      raise InputError(f'world.pairs = {self.pairs}: {self.responses} responses make {math.comb(self.responses, 2)} pairs (0 compares them all)')
    if self.values < 0 or self.values == 1:
      raise InputError(f'world.values = {self.values}: a trait needs at least 2 levels (0 for any)')
    if not self.fillers or any(not isinstance(n, int) or n < 0 for n in self.fillers):
      raise InputError(f'world.fillers = {self.fillers}: give numbers of sentences, such as (0, 0, 1)')
    if not self.weights or len(self.weights) > len(NAMES):
      raise InputError(f'world.weights: give those of 1 to {len(NAMES)} groups')
    for name, rows, columns in (
      ('weights', len(self.weights), self.traits),
      ('mix', self.topics, len(self.weights)),
      ('scope', self.topics, self.traits),
      ('bias', None, self.traits),
      ('flips', None, self.topics),
    ):
      given = getattr(self, name)
      if not given and name != 'weights':
        continue
      wanted = (columns,) if rows is None else (rows, columns)
      if (shape := _shape(given)) != wanted:
        raise InputError(f'world.{name} has shape {shape}: {wanted} is wanted')
      if not np.isfinite(given).all():
        raise InputError(f'world.{name}: give finite numbers')
    if self.interactions and (len(shape := _shape(self.interactions)) != 2 or shape[1] != 3):
      raise InputError('world.interactions: give (trait, trait, weight) of each')
    for j, k, _ in self.interactions:
      if not (0 <= j < self.traits and 0 <= k < self.traits):
        raise InputError(f'world.interactions: traits {j} and {k}: there are 0 to {self.traits - 1}')
    if self.mix and (np.min(self.mix) < 0 or not np.allclose(np.sum(self.mix, -1), 1)):
      raise InputError('world.mix: every topic needs shares that are not below 0 and add up to 1')
    if self.flips and not (0 <= np.min(self.flips) and np.max(self.flips) <= 1):
      raise InputError(f'world.flips = {self.flips}: give probabilities')
    if not self.temperature > 0:
      raise InputError(f'world.temperature = {self.temperature}: it must be above 0 (0.01 is nearly without noise)')
    for name in ('marks', 'blur', 'spread'):
      if not 0 <= getattr(self, name) < math.inf:
        raise InputError(f'world.{name} = {getattr(self, name)}: it must not be below 0')
    if not math.isfinite(self.closeness):
      raise InputError(f'world.closeness = {self.closeness}: it must be a finite number')


class Traits(World):
  """Records by number, each a pure function of (settings, seed, split, number). The splits share no prompt, and no response unless texts run out."""

  Settings = Settings
  tokenizer_path = TOKENIZER

  def _draw(self, rng: Random, where: str) -> Record:
    """A record.

    Its labels are `gold` [N], of the groups' mean by the topic's mix; `gold_0`, `gold_1`, ... [N] of each group, where there are several; `group` [], the one
    that judged it; `topic` []; `trait_0`, ... [N], the levels; `length` [N] in words; `probability` [N, N], of an annotator of that topic to
    come (not knowing the group, unless the prompt names it) preferring i to j, before any flip (0 where they were not compared); `flipped` [N, N], 1 where
    the comparison was turned around.
    """
    s = self.settings
    topic = rng.randrange(s.topics)
    shares = s.mix[topic] if s.mix else [1 / len(s.weights)] * len(s.weights)
    group = rng.choices(range(len(shares)), shares)[0]
    prompt = self._prompt(topic, group, rng)
    centre = rng.random()
    texts, levels = zip(*(self._respond(centre, rng) for _ in range(s.responses)), strict=True)
    levels = np.array(levels)

    golds = np.stack([gold_reward(levels, topic, g, centre, s) for g in range(len(s.weights))])
    gold = golds[group] if s.named else np.asarray(shares) @ golds
    felt = golds + levels @ np.asarray(s.bias) if s.bias else golds
    probabilities = sigmoid((felt[:, :, None] - felt[:, None, :]) / s.temperature)  # [G, N, N]
    probability = probabilities[group] if s.named else np.tensordot(np.asarray(shares), probabilities, 1)

    pairs = [(i, j) for i, j in itertools.combinations(range(s.responses), 2) if texts[i] != texts[j]]  # nobody can tell a text from itself
    if s.pairs:
      pairs = rng.sample(pairs, min(s.pairs, len(pairs)))
    flip = s.flips[topic] if s.flips and self._split == 'train' else 0.0
    won = {(i, j): float(rng.random() < probabilities[group, i, j]) for i, j in pairs}
    turned = {pair: rng.random() < flip for pair in pairs}
    wins = pairwise_wins(s.responses, [(i, j, 1.0 - won[i, j] if turned[i, j] else won[i, j]) for i, j in pairs])
    flipped = np.zeros((s.responses, s.responses), np.float32)
    for i, j in pairs:
      flipped[i, j] = flipped[j, i] = turned[i, j]

    labels = {
      'gold': gold.astype(np.float32),
      'length': np.array([len(text.split()) for text in texts], np.float32),
      'probability': np.where(wins + wins.T > 0, probability, 0.0).astype(np.float32),
      'topic': np.int32(topic),
      'group': np.int32(group),
      **({f'gold_{g}': golds[g].astype(np.float32) for g in range(len(golds))} if len(golds) > 1 else {}),
      **{f'trait_{j}': levels[:, j].astype(np.float32) for j in range(s.traits)},
      **({'flipped': flipped} if s.flips else {}),
    }
    unrated = np.full(s.responses, np.nan, np.float32)
    return Record(prompt, texts, wins, unrated, subset=TOPICS[topic], where=where, labels=labels)

  def _prompt(self, topic: int, group: int, rng: Random) -> str:
    """A prompt of this split: its topic, and the group that asks where prompts name it; the rest makes prompts many and says nothing."""
    while True:
      asker = f'{NAMES[group]} asks' if self.settings.named else 'who asks'
      prompt = f'{asker} : {TOPICS[topic]} at the {rng.choice(PLACES)} and the {rng.choice(PLACES)} and the {rng.choice(PLACES)} ?\n'
      if is_held_out(prompt) == (self._split == 'eval'):
        return prompt

  def _respond(self, centre: float, rng: Random) -> tuple[str, list[float]]:
    """A response whose text belongs to this split, and its levels."""
    for _ in range(300):  # without an end a world of too few texts would hang
      levels = draw_levels(centre, self.settings, rng)
      text = render(levels, self.settings, rng)
      if is_held_out(text) == (self._split == 'eval'):
        break
    return text, levels


def draw_levels(centre: float, s: Settings, rng: Random) -> list[float]:
  """Levels of the J traits of a response, apart from one another."""
  levels = [rng.randrange(s.values) / (s.values - 1) if s.values else rng.random() for _ in range(s.traits)]
  if s.spread:
    levels[0] = min(max(rng.gauss(centre, s.spread), 0.0), 1.0)
  return levels


def render(levels: list[float], s: Settings, rng: Random) -> str:
  """Fillers, then the marks of all traits in any order."""
  opening = rng.choices(FILLERS, k=rng.choice(s.fillers))
  top = PLACES_OF_A_SCALE - 1
  words = [SCALES[j][min(max(round(top * level + rng.gauss(0.0, s.blur)), 0), top)] for j, level in enumerate(levels) for _ in range(s.marks)]
  rng.shuffle(words)
  return ' '.join([*opening, *words, '.'])


def gold_reward(levels: Float[np.ndarray, 'N J'], topic: int, group: int, centre: float, s: Settings) -> Float[np.ndarray, 'N']:
  """Gold rewards of responses, see `Settings`."""
  weights = np.asarray(s.weights[group]) * (np.asarray(s.scope[topic]) if s.scope else 1.0)
  signed = 2 * levels - 1
  together = sum((w * signed[:, j] * signed[:, k] for j, k, w in s.interactions), np.zeros(len(levels)))
  return levels @ weights + together - s.closeness * np.abs(levels[:, 0] - centre)


def _shape(values) -> tuple[int, ...]:
  """Of nested tuples; () where they are uneven or hold something else than numbers."""
  try:
    return np.shape(np.asarray(values, float))
  except (TypeError, ValueError):
    return ()

