"""Small checkable tasks in plain words: each draws a prompt, its right answer and wrong ones.

Wrong answers are made so that nothing in a response alone tells them from right ones: only the prompt does.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

NAMES = 'anna ben clara david emma felix grace henry iris jack kate leo mary noah olga paul rosa sam tina victor'.split()
COLORS = 'red blue green yellow black white orange purple brown pink grey golden'.split()
THINGS = (
  'box cup hat key book lamp chair ball coat shoe bag ring clock plate spoon knife drum flag kite rope bell boat coin comb desk door fork glass glove map'
).split()
ANIMALS = 'dog cat bird fish horse cow sheep goat duck mouse frog bear wolf fox lion tiger rabbit snake bee whale'.split()
FOODS = 'apple bread cheese rice soup cake milk honey salad pear plum grape lemon onion carrot bean corn egg butter salt'.split()
PLACES = 'river forest garden kitchen school market beach station tower bridge village castle island field harbor street'.split()
VERBS = 'sees likes finds wants needs paints hides sells buys brings keeps follows'.split()
NUMBERS = 'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty'.split()
GRAMMAR = 'about and at count do end first friend give has have in is it largest minus of order plus put repeat smallest the there what with write'.split()
PUNCTUATION = '. , : ?'.split()

OPENERS = ('gladly .', 'sure , happy to help .', 'good day .', 'with pleasure .')
FILLERS = ('let me think .', 'a hard question .', 'many people ask this .', 'we should look carefully .', 'there is much to learn .', 'i read every word .')


def vocabulary() -> list[str]:
  """Every word that a text of this world can hold, sorted."""
  lists = (NAMES, COLORS, THINGS, ANIMALS, FOODS, PLACES, VERBS, NUMBERS, GRAMMAR, PUNCTUATION)
  return sorted({word for words in lists for word in words} | {word for text in OPENERS + FILLERS for word in text.split()})


class Task(NamedTuple):
  """A prompt and what can be said to it.

  Attributes:
    prompt: the question.
    right: parts of the full right answer; leaving out the later ones makes it incomplete.
    wrong: parts of a full wrong answer, drawn as often as a right one among all prompts.
  """

  prompt: str
  right: tuple[str, ...]
  wrong: tuple[str, ...]


def lookup(rng: np.random.Generator) -> Task:
  """Who has what, for two people; a wrong answer gives each the other's thing."""
  people = rng.permutation(NAMES)[:2]
  goods = [f'{color} {thing}' for color, thing in zip(rng.permutation(COLORS)[:2], rng.permutation(THINGS)[:2], strict=True)]
  facts = ' and '.join(f'{name} has the {good}' for name, good in zip(people, goods, strict=True))
  asked = rng.permutation(2)
  say = lambda other: tuple(f'{people[i]} has the {goods[i ^ other]}' for i in asked)
  return Task(f'{facts} . what do {people[asked[0]]} and {people[asked[1]]} have ?', say(0), say(1))


def count(rng: np.random.Generator) -> Task:
  """How often a word stands in a list."""
  kinds = rng.permutation(ANIMALS)[:3]
  right = int(rng.integers(1, 5))
  others = rng.choice(kinds[1:], 6 - right)
  items = rng.permutation([kinds[0]] * right + list(others))
  wrong = int(rng.choice([n for n in range(1, 5) if n != right]))
  say = lambda number: (f'the count of {kinds[0]} is {NUMBERS[number]}',)
  return Task(f'give the count of {kinds[0]} in : {" ".join(items)}', say(right), say(wrong))


def order(rng: np.random.Generator) -> Task:
  """Three numbers from the smallest, or from the largest; a wrong answer goes the other way."""
  numbers = sorted(rng.choice(13, 3, replace=False))
  largest = bool(rng.integers(2))
  ways = [' '.join(NUMBERS[n] for n in way) for way in (numbers, numbers[::-1])]
  listed = ' '.join(NUMBERS[n] for n in rng.permutation(numbers))
  return Task(f'put {listed} in order , {"largest" if largest else "smallest"} first', (ways[largest],), (ways[not largest],))


def form(rng: np.random.Generator) -> Task:
  """A sentence that has to end with a given word; a wrong answer ends with another."""
  ending, other = rng.permutation(PLACES)[:2]
  animal, food, verb = rng.choice(ANIMALS), rng.choice(FOODS), rng.choice(VERBS)
  say = lambda end: (f'the {animal} {verb} the {food} at the {end}',)
  return Task(f'write about the {animal} and end with {ending}', say(ending), say(other))


def copy(rng: np.random.Generator) -> Task:
  """A list to repeat in two parts; a wrong answer has two neighbours changed about in its first part."""
  words = list(rng.permutation(FOODS)[:5])
  place = int(rng.integers(2))
  swapped = words.copy()
  swapped[place], swapped[place + 1] = words[place + 1], words[place]
  parts = lambda items: (' '.join(items[:3]), ' '.join(items[3:]))
  return Task(f'repeat : {" ".join(words)}', parts(words), parts(swapped))


def arithmetic(rng: np.random.Generator) -> Task:
  """A sum or a difference up to twenty."""
  a, b = (int(n) for n in rng.integers(0, 11, 2))
  minus = bool(rng.integers(2)) and a >= b
  right = a - b if minus else a + b
  wrong = int(rng.choice([n for n in range(max(right - 3, 0), min(right + 4, 21)) if n != right]))
  sign = 'minus' if minus else 'plus'
  say = lambda number: (f'it is {NUMBERS[number]}',)
  return Task(f'what is {NUMBERS[a]} {sign} {NUMBERS[b]} ?', say(right), say(wrong))


def two_hop(rng: np.random.Generator) -> Task:
  """What the friend of somebody has: a lookup in the result of a lookup."""
  people = rng.permutation(NAMES)[:4]
  goods = rng.permutation(THINGS)[:2]
  swap = int(rng.integers(2))
  friends = f'the friend of {people[0]} is {people[2]} and the friend of {people[1]} is {people[3]}'
  owners = f'{people[2 + swap]} has the {goods[swap]} and {people[3 - swap]} has the {goods[1 - swap]}'
  asked = int(rng.integers(2))
  say = lambda i: (f'it is the {goods[i]}',)
  return Task(f'{friends} . {owners} . what has the friend of {people[asked]} ?', say(asked), say(1 - asked))


TASKS: dict[str, Callable[[np.random.Generator], Task]] = dict(
  lookup=lookup, count=count, order=order, form=form, copy=copy, arithmetic=arithmetic, two_hop=two_hop
)
DEFAULT_TASKS = ('lookup', 'count', 'order', 'form', 'copy')
