"""Small checkable tasks in plain words: each draws a prompt, the parts of its right answer, and wrong answers.

Nothing in a response alone tells right from wrong: seen without its prompt, every answer is as likely to be the one as the other.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

NAMES = 'anna ben clara david emma felix grace henry iris jack kate leo mary noah olga paul'.split()
COLOURS = 'red blue green yellow black white orange purple brown pink grey golden'.split()
THINGS = 'box cup hat key book lamp chair ball coat shoe bag ring clock plate spoon knife'.split()
ANIMALS = 'dog cat bird fish horse cow sheep goat duck mouse frog bear wolf fox lion owl'.split()
JOINERS = 'and or then plus'.split()
NUMBERS = (
  'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty'
).split()
GRAMMAR = 'row two a are what colour the count in say from next to repeat join with . , : ? is minus has who more less backwards friend of'.split()

OPENERS = ('gladly .', 'sure .', 'certainly .', 'of course .')
FILLERS = ('i see .', 'well .', 'one moment .', 'you know .', 'good question .', 'here we go .')


def vocabulary() -> list[str]:
  """Every word that a text of this world can hold, sorted."""
  lists = (NAMES, COLOURS, THINGS, ANIMALS, JOINERS, NUMBERS, GRAMMAR)
  return sorted({word for words in lists for word in words} | {word for text in OPENERS + FILLERS for word in text.split()})


class Task(NamedTuple):
  """A prompt and what can be said to it.

  Attributes:
    prompt: the question.
    right: the parts of the full right answer, in order; leaving out the last ones makes it incomplete.
    wrong: full wrong answers, with the same parts.
  """

  prompt: str
  right: tuple[str, ...]
  wrong: tuple[tuple[str, ...], ...]


def lookup(rng: Random) -> Task:
  """What colour two of three things are; a wrong answer exchanges their colours, or names colours of nothing."""
  colours, things = rng.sample(COLOURS, 5), rng.sample(THINGS, 3)
  i, j = rng.sample(range(3), 2)
  listed = ' , '.join(f'{colour} {thing}' for colour, thing in zip(colours, things, strict=False))
  say = lambda a, b: (f'{colours[a]} {things[i]}', f', {colours[b]} {things[j]}')
  return Task(f'{listed} . what colour are {things[i]} and {things[j]} ?', say(i, j), (say(j, i), say(3, 4)))


def count(rng: Random) -> Task:
  """How often two words stand in a list of four."""
  (a, b), n = rng.sample(ANIMALS, 2), rng.randint(1, 3)
  items = [a] * n + [b] * (4 - n)
  rng.shuffle(items)
  say = lambda n: (f'{NUMBERS[n]} {a}', f', {NUMBERS[4 - n]} {b}')
  return Task(f'count {a} and {b} in {" ".join(items)}', say(n), tuple(say(m) for m in (1, 2, 3) if m != n))


def order(rng: Random) -> Task:
  """What comes next in a row."""
  row = rng.sample(ANIMALS, 6)
  i = rng.randint(0, 1)
  say = lambda x, y: (f'{row[i]} {x}', y)
  return Task(f'row : {" ".join(row[:4])} . say {row[i]} and the next two', say(row[i + 1], row[i + 2]), (say(row[i + 2], row[i + 1]), say(*row[4:])))


def copy(rng: Random) -> Task:
  """Four words to repeat; a wrong answer has other words, or exchanges neighbours."""
  words = rng.sample(THINGS, 8)
  say = lambda a, b, c, d: (f'{a} {b}', f'{c} {d}')
  a, b, c, d, *others = words
  return Task(f'repeat : {a} {b} {c} {d}', say(a, b, c, d), (say(*others), say(b, a, d, c)))


def form(rng: Random) -> Task:
  """Words to join with another between them."""
  (a, b, c), (right, *others) = rng.sample(THINGS, 3), rng.sample(JOINERS, 4)
  say = lambda joiner: (f'{a} {joiner} {b}', f'{joiner} {c}')
  return Task(f'join {a} {b} {c} with {right} .', say(right), tuple(map(say, others)))


TASKS: dict[str, Callable[[Random], Task]] = dict(lookup=lookup, count=count, order=order, form=form, copy=copy)
DEFAULT_TASKS = ('lookup', 'count', 'order', 'form', 'copy')
