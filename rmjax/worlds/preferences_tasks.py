"""Small checkable tasks in plain words: each draws a prompt, the parts of its right answer, and wrong answers.

Nothing in a response alone tells right from wrong: over all prompts, every answer is as likely to be the one as the other.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

NAMES = 'anna ben clara david emma felix grace henry iris jack kate leo mary noah olga paul'.split()
THINGS = 'box cup hat key book lamp chair ball coat shoe bag ring clock plate spoon knife'.split()
ANIMALS = 'dog cat bird fish horse cow sheep goat duck mouse frog bear'.split()
PLACES = 'river forest garden kitchen school market beach station tower bridge village castle'.split()
VERBS = 'sleeps sings plays waits works eats hides rests runs walks jumps swims'.split()
NUMBERS = 'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty'.split()
WORDS = (
  'apple arm autumn baby bacon basket blanket bottle bread brother brush butter button cabbage cake camera candle carpet ceiling cheese circle cloud '
  'corner cousin curtain dance desert dinner doctor dream east egg engine evening family farm father feather field finger flower fork friday fruit gate '
  'ghost glass glove gold grandmother grape hammer hand heart hill holiday honey house ice ink island jacket jewel joke journey jungle king kite ladder '
  'lake leaf lemon letter lion lunch machine magnet marble meat milk mirror monday moon mother mountain music nail name needle nest night nut ocean '
  'office onion orange oven page paint paper pepper picture pillow pocket potato queen quilt rain ribbon rice road rocket roof rope salt sand shadow '
  'sister snow soup square star stone sugar summer table tea teacher ticket tree tunnel uncle valley violin voice wall water wave week window winter wood '
  'year yesterday zebra'
).split()
GRAMMAR = (
  'alphabet and asks at count end first friend from has have how in is it largest last minus next of often order plus put repeat smallest that the then times '
  'to what who with write'
)
PUNCTUATION = '. , : ?'

OPENERS = ('gladly .', 'sure .', 'certainly .', 'of course .')
FILLERS = ('i see .', 'well .', 'one moment .', 'you know .', 'good question .', 'here we go .')

# What marks say (`preferences.Settings.marks`), in words that no task uses, so that they tell nothing but what they mark.
HERDS = tuple(tuple(ANIMALS[k : k + 4]) for k in (0, 4, 8))  # one for each kind
SCALE = tuple(PLACES)  # from the worst grade to the best


def vocabulary() -> list[str]:
  """Every word that a text of this world can hold, sorted."""
  lists = (NAMES, THINGS, ANIMALS, PLACES, VERBS, NUMBERS, WORDS, GRAMMAR.split(), PUNCTUATION.split())
  return sorted({word for words in lists for word in words} | {word for text in OPENERS + FILLERS for word in text.split()})


class Task(NamedTuple):
  """A prompt and what can be said to it.

  Attributes:
    prompt: the question.
    right: the parts of the full right answer, in order; leaving out the last ones makes it incomplete.
    wrong: full wrong answers, each in as many parts, and wrong in every one.
    exchanged: further ones that have the right words in the wrong places, so that it is not enough to know what the prompt mentions.
  """

  prompt: str
  right: tuple[str, ...]
  wrong: tuple[tuple[str, ...], ...]
  exchanged: tuple[tuple[str, ...], ...] = ()


def copy(rng: Random) -> Task:
  """Four words to repeat; a wrong answer has other words, an exchanged one the same in reverse."""
  words = rng.sample(THINGS, 8)
  say = lambda a, b, c, d: (f'{a} {b}', f'{c} {d}')
  return Task(f'repeat : {" ".join(words[:4])}', say(*words[:4]), (say(*words[4:]),), (say(*words[3::-1]),))


def form(rng: Random) -> Task:
  """A sentence about something that has to end with a given word; a wrong answer has other words."""
  (one, other, end, other_end), verbs = rng.sample(WORDS, 4), rng.sample(VERBS, 2)
  say = lambda subject, verb, place: (f'the {subject} {verb}', f'at the {place}')
  return Task(f'write that the {one} {verbs[0]} and end with {end}', say(one, verbs[0], end), (say(other, verbs[1], other_end),))


def lookup(rng: Random) -> Task:
  """What two of three people have; a wrong answer gives things of nobody, an exchanged one each the other's."""
  people, things = rng.sample(NAMES, 3), rng.sample(THINGS, 5)
  i, j = rng.sample(range(3), 2)
  facts = ' , '.join(f'{name} has {thing}' for name, thing in zip(people, things, strict=False))
  say = lambda a, b: (f'{people[i]} has {things[a]}', f', {people[j]} has {things[b]}')
  return Task(f'{facts} . what have {people[i]} and {people[j]} ?', say(i, j), (say(3, 4),), (say(j, i),))


def order(rng: Random) -> Task:
  """Who stands next to somebody in a line; a wrong answer names strangers, an exchanged one has them the other way round."""
  line = rng.sample(NAMES, 6)
  i = rng.randint(1, 2)
  say = lambda before, after: (f'{before} then {line[i]}', f'then {after}')
  right = line[i - 1], line[i + 1]
  return Task(f'{" then ".join(line[:4])} . who is next to {line[i]} ?', say(*right), (say(*line[4:]),), (say(*right[::-1]),))


def count(rng: Random) -> Task:
  """Four numbers to count, up or down; a wrong answer starts elsewhere, an exchanged one goes the other way."""
  start, way = rng.randrange(18), rng.choice((1, -1))
  other = (start + rng.randint(4, 14)) % 18  # round a circle, so that no start is wrong more often than right; and no number is shared
  say = lambda start, way: tuple(' '.join(NUMBERS[start : start + 4][::way][half]) for half in (slice(2), slice(2, None)))
  first, last = (start, start + 3)[::way]
  return Task(f'count from {NUMBERS[first]} to {NUMBERS[last]}', say(start, way), (say(other, way),), (say(start, -way),))


def tally(rng: Random) -> Task:
  """How often two words stand in a list, from zero to three times; a wrong answer is two off."""
  kinds, numbers = rng.sample(THINGS, 3), [rng.randint(0, 3), rng.randint(0, 3), 1]
  items = [kind for kind, number in zip(kinds, numbers, strict=True) for _ in range(number)]
  rng.shuffle(items)
  say = lambda off: tuple(f'{", " * k}{NUMBERS[(numbers[k] + off) % 4]} times {kinds[k]}' for k in range(2))
  return Task(f'how often : {" ".join(items)}', say(0), (say(2),))


def arithmetic(rng: Random) -> Task:
  """A sum or a difference; a wrong answer is one or two off, twenty-one numbers round a circle."""
  result = rng.randint(0, 20)
  if rng.random() < 0.5:
    a = rng.randint(0, result)
    question = f'{NUMBERS[a]} plus {NUMBERS[result - a]}'
  else:
    b = rng.randint(0, 20 - result)
    question = f'{NUMBERS[result + b]} minus {NUMBERS[b]}'
  say = lambda off: (f'it is {NUMBERS[(result + off) % 21]}',)
  return Task(f'{rng.choice(NAMES)} asks what is {question} ?', say(0), tuple(say(off) for off in (-2, -1, 1, 2)))


def sort(rng: Random) -> Task:
  """Three numbers to put in order, from the smallest or from the largest; a wrong answer goes the other way."""
  return _ordered(rng, NUMBERS, ('smallest first', 'largest first'))


def alphabet(rng: Random) -> Task:
  """Three words to put in alphabetical order, or its reverse; a wrong answer goes the other way."""
  return _ordered(rng, WORDS, ('of the alphabet', 'of the alphabet , last first'))


def _ordered(rng: Random, words: list[str], ways: tuple[str, str]) -> Task:
  drawn = rng.sample(range(len(words)), 3)
  way = rng.randrange(2)
  say = lambda reverse: (' '.join(words[k] for k in sorted(drawn, reverse=reverse)),)
  return Task(f'put {" ".join(words[k] for k in drawn)} in order {ways[way]}', say(bool(way)), (say(not way),))


def two_hop(rng: Random) -> Task:
  """What somebody's friend has: a lookup in the result of a lookup; a wrong answer gives what another's friend has."""
  people, things = rng.sample(NAMES, 4), rng.sample(THINGS, 2)
  swap, asked = rng.randrange(2), rng.randrange(2)
  friends = ' , '.join(f'the friend of {people[k]} is {people[2 + k]}' for k in range(2))
  owners = ' , '.join(f'{people[2 + k]} has {things[k]}' for k in (swap, 1 - swap))
  say = lambda k: (f'it is {things[k]}',)
  return Task(f'{friends} . {owners} . what has the friend of {people[asked]} ?', say(asked), (say(1 - asked),))


DEFAULT_TASKS = ('copy', 'form', 'lookup', 'order', 'count')  # learned from scratch in minutes by a million parameters; the others are harder
TASKS: dict[str, Callable[[Random], Task]] = {task.__name__: task for task in (copy, form, lookup, order, count, tally, arithmetic, sort, alphabet, two_hop)}
