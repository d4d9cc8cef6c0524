"""Nelder and Mead's simplex search as a coroutine that asks for values: thresholds searched within a single run, by few gold evaluations.

scipy's `minimize(method='Nelder-Mead')` takes the same steps (the tests hold the two together), but it calls, and here the training must be the
caller: many seeds' searches go on side by side under one vmapped program, a run that has spent its steps just asks no more, and the value of a
vertex may grow stale, since the policy goes on moving, and be asked for again.

Dimensions: C thresholds.
"""

from collections.abc import Callable, Generator, Sequence
import dataclasses

from jaxtyping import Float
import numpy as np

from rmjax.errors import InputError

REFLECT, EXPAND, CONTRACT, SHRINK = 1.0, 2.0, 0.5, 0.5

Search = Generator[Float[np.ndarray, 'C'], float, None]
"""Yields points; is sent the value of each, which it minimises. Returns when its vertices agree."""


@dataclasses.dataclass(frozen=True)
class Found:
  """What a search came to.

  Attributes:
    thresholds: the best point evaluated, by its newest value.
    gold: its value.
    queries: gold evaluations made; every method's are to be reported, since thresholds taken from gold are a form of gold supervision.
    trace: (thresholds, gold) of each evaluation, in order.
  """

  thresholds: Float[np.ndarray, 'C']
  gold: float
  queries: int
  trace: tuple[tuple[Float[np.ndarray, 'C'], float], ...]


def initial_simplex(low: Float[np.ndarray, 'C'], high: Float[np.ndarray, 'C'], seed: int) -> Float[np.ndarray, 'V C']:
  """C + 1 vertices drawn uniformly between what the initial policy has of each reward and the most that was seen.

  Args:
    low: one corner.
    high: the other.
    seed: of the draw.

  Raises:
    InputError: a side of the box is not above 0, so that the search could not move along it.

  Reference: Moskovitz et al. (2023), code (`NelderMeadTrainer`).
  """
  low, high = np.asarray(low, float), np.asarray(high, float)
  if not np.all(high > low):
    raise InputError(f'search: thresholds from {low.tolist()} to {high.tolist()}: each needs room above its lowest')
  return np.random.default_rng(seed).uniform(low, high, (len(low) + 1, len(low)))


def nelder_mead(simplex: Float[np.ndarray, 'V C'], *, tolerance: float = 0.01, lifetime: int = 0) -> Search:
  """Asks for the vertices' values, then moves the worst vertex again and again.

  Args:
    simplex: C + 1 vertices.
    tolerance: it ends where the values' standard deviation is below this; 0 for never.
    lifetime: values from more than this many questions ago are asked for again before a step is decided by them; 0 lets them live for ever, which
      is right where a point's value does not depend on when it is asked for.

  Yields:
    A point; send it its value. The first `next` gives the first point.

  Raises:
    InputError: not C + 1 vertices of C numbers.

  Reference: Nelder & Mead (1965) with the rules of Lagarias et al. (1998), scipy's. The code of Moskovitz et al. (2023) has no outside
    contraction, takes an expansion that is better than the best vertex even if the reflection is better still, looks at its tolerance
    after a shrink alone, and never asks again.
  """
  points = np.array(simplex, float)
  if points.ndim != 2 or len(points) != points.shape[1] + 1 or not np.isfinite(points).all():
    raise InputError(f'search: a simplex of shape {points.shape}: it takes C + 1 finite vertices of C thresholds')
  asked = 0
  values, times = np.empty(len(points)), np.empty(len(points), int)

  def ask(point):
    nonlocal asked
    value = yield point.copy()
    asked += 1
    return value, asked

  for i, point in enumerate(points):
    values[i], times[i] = yield from ask(point)
  while True:
    for i, point in enumerate(points):
      if lifetime and asked - times[i] >= lifetime:
        values[i], times[i] = yield from ask(point)
    order = np.argsort(values, kind='stable')
    points, values, times = points[order], values[order], times[order]
    if values.std() < tolerance:
      return
    centre = points[:-1].mean(0)
    at = lambda step, centre=centre, worst=points[-1]: centre + step * (centre - worst)
    reflected = (at(REFLECT), *(yield from ask(at(REFLECT))))
    taken = reflected
    if reflected[1] < values[0]:
      expanded = (at(EXPAND), *(yield from ask(at(EXPAND))))
      taken = min(reflected, expanded, key=lambda vertex: vertex[1])
    elif reflected[1] >= values[-2]:
      outside = reflected[1] < values[-1]
      contracted = (at(CONTRACT if outside else -CONTRACT), *(yield from ask(at(CONTRACT if outside else -CONTRACT))))
      taken = contracted if (contracted[1] <= reflected[1] if outside else contracted[1] < values[-1]) else None
    if taken is not None:
      points[-1], values[-1], times[-1] = taken
      continue
    for i in range(1, len(points)):
      points[i] = points[0] + SHRINK * (points[i] - points[0])
      values[i], times[i] = yield from ask(points[i])


class Searcher:
  """One search, stepped from outside: `thresholds` is what to try next, `tell` takes the gold evaluation of it.

  Attributes:
    thresholds: the point that waits for its value; None when the search is over.
  """

  def __init__(
    self,
    simplex: Float[np.ndarray, 'V C'],
    *,
    tolerance: float = 0.01,
    lifetime: int = 0,
    same: float = 5e-3,
    low: Float[np.ndarray, 'C'] | None = None,
    high: Float[np.ndarray, 'C'] | None = None,
  ):
    """Starts a search for the thresholds of the HIGHEST gold.

    Args:
      simplex: see `nelder_mead`.
      tolerance: see `nelder_mead`.
      lifetime: see `nelder_mead`; a value older than this is not reused either.
      same: a point within this of an evaluated one in all coordinates has its value, and costs no query.
      low: points are moved up to this, where given.
      high: and down to this.
    """
    self._search = nelder_mead(simplex, tolerance=tolerance, lifetime=lifetime)
    self._same, self._lifetime = same, lifetime
    self._low, self._high = (np.inf * sign if limit is None else limit for sign, limit in ((-1, low), (1, high)))
    self._trace: list[tuple[np.ndarray, float]] = []
    self.thresholds = self._advance(None)

  def tell(self, gold: float) -> None:
    """Takes the gold evaluation of `thresholds`, and finds what to try next.

    Raises:
      InputError: it is not finite, or nothing was asked.
    """
    if self.thresholds is None:
      raise InputError('search: it is over; there is nothing to evaluate')
    if not np.isfinite(gold):
      raise InputError(f'search: gold evaluation {gold} of thresholds {self.thresholds.tolist()}: it must be finite')
    self._trace.append((self.thresholds, float(gold)))
    self.thresholds = self._advance(-float(gold))

  def _advance(self, value: float | None) -> Float[np.ndarray, 'C'] | None:
    """Sends values until a point comes that has none; those that are known are answered from the trace.

    A simplex that has shrunk to less than `same`, or lies wholly on the bounds, may go round in known points for ever: then it is over.
    """
    try:
      point = next(self._search) if value is None else self._search.send(value)
      for _ in range(10 * (len(point) + 1)):
        point = np.clip(point, self._low, self._high)
        if (known := self._known(point)) is None:
          return point
        point = self._search.send(-known)
    except StopIteration:
      pass
    return None

  def _known(self, point: Float[np.ndarray, 'C']) -> float | None:
    young = self._trace[-self._lifetime :] if self._lifetime else self._trace
    return next((gold for at, gold in reversed(young) if np.all(np.abs(at - point) <= self._same)), None)

  def found(self) -> Found:
    """The best point so far.

    Raises:
      InputError: nothing has been evaluated.
    """
    if not self._trace:
      raise InputError('search: nothing has been evaluated; give it more steps')
    newest: list[tuple[np.ndarray, float]] = []  # one of each point, its newest value
    for at, gold in reversed(self._trace):
      if not any(np.all(np.abs(at - other) <= self._same) for other, _ in newest):
        newest.append((at, gold))
    thresholds, gold = max(newest, key=lambda vertex: vertex[1])
    return Found(thresholds, gold, len(self._trace), tuple(self._trace))


def search_together(
  evaluate: Callable[[Float[np.ndarray, 'K C']], Sequence[float] | Float[np.ndarray, 'K']], searchers: Sequence[Searcher], *, rounds: int
) -> list[Found]:
  """Runs K searches in step: in each round all of them have one point evaluated.

  Args:
    evaluate: thresholds of each search -> gold of each, after some further training of each one's policy under its thresholds, from where it
      stands and not from the start.
    searchers: the searches; one that is over goes on training under its best thresholds, and its gold is not asked for.
    rounds: evaluations at most.

  Returns:
    What each found.
  """
  for _ in range(rounds):
    asking = [searcher.thresholds is not None for searcher in searchers]
    if not any(asking):
      break
    points = [searcher.thresholds if on else searcher.found().thresholds for searcher, on in zip(searchers, asking, strict=True)]
    for searcher, on, gold in zip(searchers, asking, evaluate(np.stack(points)), strict=True):
      if on:
        searcher.tell(float(gold))
  return [searcher.found() for searcher in searchers]
