"""The world of reactions: a log of responses that past policies gave, and of the few that users put a heart to.

A response has a quality and a warmth, told noisily by its words as in `rmjax.worlds.traits`, and may end in a goodbye. A user u reacts with probability

  sigmoid(quality * q + warmth * w + goodbye * g - offset + c_u),  c_u ~ N(0, propensity^2) the user's own;

a few accounts react at random instead. A policy is a distribution over classes (q, w, g), see `class_probabilities`: there is room for so much in a
response, so that what is warmer says less. The splits share no user and no prompt.

Reference: the simulated log for Reinforcement Learning from User Feedback (2025), whose data are not public.

Dimensions: C classes.
"""

import dataclasses
import functools
from random import Random

from jaxtyping import Float, Num
import numpy as np

from rmjax.data.records import Record
from rmjax.errors import InputError
from rmjax.worlds import traits
from rmjax.worlds.preferences import is_held_out, TOKENIZER
from rmjax.worlds.preferences_tasks import NAMES, PLACES
from rmjax.worlds.world import sigmoid, World

LEVELS = 6  # of quality and of warmth, from 0 to 1
GOODBYE = ' here we go .'  # at a response's end alone; words that the tokenizer has
EVAL_SHARE = 0.2  # of users
SPREAD = 0.25  # standard deviation of a policy's levels
CLASSES = np.array([(q, w, g) for q in np.linspace(0, 1, LEVELS) for w in np.linspace(0, 1, LEVELS) for g in (0.0, 1.0)])  # [C, 3]


@dataclasses.dataclass(frozen=True)
class Settings:
  """What can be set in this world.

  Attributes:
    policies: (mean quality, mean warmth, probability of a goodbye) of those that wrote the log, alike often.
    quality: logit of a reaction for the best quality.
    warmth: for the greatest warmth.
    goodbye: for a goodbye.
    offset: what is taken from the logit of everybody.
    room: how strongly quality + warmth above 1 is avoided.
    users: number of users.
    propensity: standard deviation of the users' own logits.
    adversaries: share of accounts that react at random.
    eager: probability with which they do.
    keep: share of the responses without a reaction that the training log keeps.
    blind: whether the users of the training log react without having read, each as often as before: nothing can be learned.
    topics: number of topics.
    marks: words that a response says of its quality, and of its warmth.
    blur: standard deviation, in places of 12, with which a word misses.
    fillers: numbers of filler sentences, drawn alike; no user minds them.
  """

  policies: tuple[tuple[float, ...], ...] = ((0.3, 0.5, 0.05), (0.4, 0.3, 0.0), (0.5, 0.5, 0.1), (0.6, 0.2, 0.05))
  quality: float = 2.5
  warmth: float = 2.5
  goodbye: float = 2.0
  offset: float = 6.0
  room: float = 8.0
  users: int = 2000
  propensity: float = 0.5
  adversaries: float = 0.01
  eager: float = 0.3
  keep: float = 1.0
  blind: bool = False
  topics: int = 4
  marks: int = 2
  blur: float = 1.0
  fillers: tuple[int, ...] = (0, 1, 2)

  def __post_init__(self):
    if not self.policies or any(len(policy) != 3 for policy in self.policies):
      raise InputError(f'world.policies = {self.policies}: give (mean quality, mean warmth, probability of a goodbye) of each')
    for name in ('adversaries', 'eager', 'keep'):
      if not 0 <= getattr(self, name) <= 1:
        raise InputError(f'world.{name} = {getattr(self, name)}: it must be from 0 to 1')
    if not self.keep:
      raise InputError('world.keep = 0: a log of reactions alone tells nothing; keep some of the others')
    if self.users < 10:
      raise InputError(f'world.users = {self.users}: at least 10, a fifth of whom is held out')


class Reactions(World):
  """Records of a prompt and one response, rated 1 where the user reacted and 0 where not, by number; each a pure function of (settings, seed, split, number).

  Labels: `gold` [1], the reaction's logit without the user's own; `quality`, `warmth`, `goodbye`, `length` (in words) [1]; `user` [] and `adversary` [].
  """

  Settings = Settings
  tokenizer_path = TOKENIZER

  def __init__(self, **view):
    """A view of the world, as `World`'s."""
    super().__init__(**view)
    self._chances = [class_probabilities(policy, self.settings) for policy in self.settings.policies]

  def _draw(self, rng: Random, where: str) -> Record:
    s, train = self.settings, self._split == 'train'
    while True:  # a response that nobody reacted to may not be kept
      q, w, g = CLASSES[rng.choices(range(len(CLASSES)), rng.choice(self._chances))[0]]
      held = round(s.users * EVAL_SHARE)
      user = rng.randrange(held, s.users) if train else rng.randrange(held)
      own = Random(f'user {self._seed} {user}')
      adversary, propensity = own.random() < s.adversaries, own.gauss(0.0, s.propensity)
      logit = reaction_logits(np.array([[q, w, g]]), s)[0]
      if s.blind and train:
        logit = reaction_logits(CLASSES[rng.choices(range(len(CLASSES)), rng.choice(self._chances))], s)[0]
      reacted = rng.random() < (s.eager if adversary else sigmoid(logit + propensity))
      if reacted or not train or rng.random() < s.keep:
        break
    text = render((q, w, g), s, rng)
    one = lambda value: np.array([value], np.float32)
    labels = dict(
      gold=one(reaction_logits(np.array([[q, w, g]]), s)[0]), quality=one(q), warmth=one(w), goodbye=one(g), length=one(len(text.split())),
      user=np.int32(user), adversary=np.int32(adversary),
    )  # fmt: skip
    return Record(draw_prompt(self._split, s, rng), (text,), np.zeros((1, 1), np.float32), one(reacted), where=where, labels=labels)


def draw_prompt(split: str, s: Settings, rng: Random) -> str:
  """A prompt of this split."""
  while True:
    prompt = f'{rng.choice(NAMES)} asks : {traits.TOPICS[rng.randrange(s.topics)]} at the {rng.choice(PLACES)} and the {rng.choice(PLACES)} ?\n'
    if is_held_out(prompt) == (split == 'eval'):
      return prompt


def render(response: Num[np.ndarray, '3'] | tuple, s: Settings, rng: Random) -> str:
  """Text of a response of a class."""
  said = _trait_settings(s.topics, s.marks, s.blur, s.fillers)
  return traits.render([float(response[0]), float(response[1])], said, rng) + (GOODBYE if response[2] else '')


@functools.lru_cache
def _trait_settings(topics: int, marks: int, blur: float, fillers: tuple[int, ...]) -> traits.Settings:
  return traits.Settings(topics=topics, traits=2, responses=1, marks=marks, blur=blur, fillers=fillers, weights=((1.0, 1.0),))


def class_probabilities(policy: tuple[float, ...] | Float[np.ndarray, '3'], s: Settings) -> Float[np.ndarray, 'C']:
  """How often a policy (mean quality, mean warmth, probability of a goodbye) gives each of `CLASSES`."""
  q, w, g = CLASSES.T
  logits = -((q - policy[0]) ** 2 + (w - policy[1]) ** 2) / (2 * SPREAD**2) - s.room * np.maximum(q + w - 1, 0) ** 2
  chances = np.exp(logits) * np.where(g == 1, policy[2], 1 - policy[2])
  return chances / chances.sum()


def reaction_logits(classes: Float[np.ndarray, 'C 3'], s: Settings) -> Float[np.ndarray, 'C']:
  """Logits of a reaction of a user without a propensity of his own."""
  return classes @ np.array([s.quality, s.warmth, s.goodbye]) - s.offset


def reaction_rates(s: Settings) -> Float[np.ndarray, 'C']:
  """Rate of reactions to each class, over all accounts there could be: what an A/B test would find of a policy is its mean."""
  points, weights = np.polynomial.hermite_e.hermegauss(21)
  honest = sigmoid(reaction_logits(CLASSES, s)[:, None] + s.propensity * points) @ weights / weights.sum()
  return (1 - s.adversaries) * honest + s.adversaries * s.eager


def base_rate(s: Settings) -> float:
  """Rate of reactions in the log, before anything is left out."""
  return float(np.mean([class_probabilities(policy, s) for policy in s.policies], 0) @ reaction_rates(s))

