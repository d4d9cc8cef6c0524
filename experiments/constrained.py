"""Methods of constrained RLHF and their baselines, seeds side by side: `study` is the `runner` of configs/constrained_rlhf.py.

Every method starts from the same policies, one a seed, pretrained on the world's text. Every few iterations each policy answers held-out prompts twice:
the first answers are what a method may ask gold about (a query), the second what it is judged by, so that choosing by gold does not flatter.

Dimensions: K lanes (policies trained side by side), E evaluations, C constraints, W signals.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import sft
from experiments import policy_claims
from experiments.policy_claims import advance, Lanes
from experiments.reproduce import arm_config
from rmjax import trees
from rmjax.errors import InputError
from rmjax.evaluation.overoptimization import Curves, fit_proxy_point, overoptimization, ProxyPoint
from rmjax.policy import nelder_mead
from rmjax.training.step import TrainState
from rmjax.worlds import sequences

PROXIES = ('a', 'b')
WINDOW = 3  # evaluations that curves are averaged over where their peak is sought


class Evaluated(NamedTuple):
  """What policies answer to held-out prompts.

  Attributes:
    gold: [K].
    proxies: [K, 2].
    kl: [K], nats a response.
  """

  gold: np.ndarray
  proxies: np.ndarray
  kl: np.ndarray


class Run(NamedTuple):
  """Evaluations of a training run, before the first iteration and after every few.

  Attributes:
    steps: [E].
    asked: [E, K] of gold, what a method may choose by.
    judged: figures that it is judged by, each with a leading [E].
    lanes: where the run ended.
  """

  steps: np.ndarray
  asked: np.ndarray
  judged: Evaluated
  lanes: Lanes

  def curves(self, lane: int) -> Curves:
    """Of one lane, as it is judged."""
    return Curves(self.steps, self.judged.gold[:, lane], self.judged.proxies[:, lane], self.judged.kl[:, lane])


def study(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """Runs the config's `study.method` on each seed.

  Methods:
    'fixed': one run, with the config's weights or constraints.
    'best_weights': one run for each of `choices`; that with the highest gold at the end is taken (a query each).
    'best_kl': the same over `coefficients`.
    'early_stopped': as 'best_weights', but gold is asked for along the runs, as often as the fit of the thresholds does; the best policy on the way is
      taken.
    'search': thresholds are searched for within the run (NM-PPO), and held for its last part.
    'explore': one run for each of `explored`, without constraint or KL penalty; see `explore_figures`.

  Returns:
    Of each seed (but for 'explore'): `gold`, `a`, `b` and `kl`, means over the last part of the run (of the stopped policy for 'early_stopped'); `area`, mean
    gold over the run; `queries`, of gold; and with thresholds `missed`, the largest distance of a mean return from its threshold, as a part of that,
    `violated`, the same where only what lies on the wrong side counts, `threshold_a`, `threshold_b` and `capped`, whether a multiplier ended at its cap.

  Raises:
    InputError: another method.
  """
  method = config.study.method
  if method == 'explore':
    explored = _explored(config, seeds)
    return [explore_figures(config, explored, lane) for lane in range(len(seeds))]
  if method in ('best_weights', 'best_kl', 'early_stopped'):
    return _choose(config, seeds, method)
  if method == 'search':
    return _search(config, seeds)
  if method != 'fixed':
    raise InputError(f"study.method = '{method}': choose explore, fixed, best_weights, best_kl, early_stopped or search")
  thresholds, queries = _thresholds(config, seeds)
  run = _train(config, seeds, thresholds=thresholds)
  return [_last(config, run, lane, thresholds) | dict(queries=queries) for lane in range(len(seeds))]


# Step A


class Explored(NamedTuple):
  """Step A.

  Attributes:
    runs: a run for each of `explored`, its lanes the seeds.
    points: a fitted proxy point for each seed.
    queries: gold evaluations that each has cost.
  """

  runs: list[Run]
  points: list[ProxyPoint]
  queries: int


def explore_figures(config: ml_collections.ConfigDict, explored: Explored, lane: int) -> dict[str, float]:
  """Of a seed: `<run>_<figure>` of `overoptimization` for the runs `a`, `b` and `sum`, the fitted and the true proxy point, and `regret`, gold between them."""
  names = {(True, False): 'a', (False, True): 'b', (True, True): 'sum'}
  figures = {}
  for choice, run in zip(config.study.explored, explored.runs, strict=True):
    found = overoptimization(run.curves(lane), names=PROXIES, window=WINDOW)
    figures |= {f'{names[choice[0] > 0, choice[1] > 0]}_{name}': value for name, value in found.items()}
  settings, point = _settings(config), explored.points[lane]
  true = sequences.proxy_points(settings)
  a = settings.saturation * np.arctanh(np.clip(point.point[0] / settings.saturation, -0.999, 0.999))
  regret = sequences.gold_of(settings.best_a, settings.best_b, settings) - sequences.gold_of(float(a), float(point.point[1]), settings)
  figures |= {f'fit_{name}': float(value) for name, value in zip(PROXIES, point.point, strict=True)}
  figures |= {f'true_{name}': value for name, value in zip(PROXIES, true, strict=True)}
  return figures | dict(fit_inside=float(point.inside), fit_error=point.error, regret=float(regret), queries=float(explored.queries))


def _explored(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> Explored:
  """Step A in the config's world, kept for the arms that read it: what differs between these is set to one value."""
  changes = {
    **{f'constraints.{name}': () for name in ('names', 'senses', 'thresholds')},
    **{'constraints.form': 'squashed', 'algorithm.kl': 'none', 'kl_coefficient': 0.0, 'rewards.a.weight': 1.0, 'rewards.b.weight': 1.0},
    **{'study.method': 'explore', 'study.thresholds': 'none', 'study.coefficients': (), 'study.choices': config.study.explored},
    'train.steps': config.study.exploration,
  }
  plain = arm_config(config, tuple(changes.items()))
  plain.arms, plain.claims = {}, ()
  return _explore(ml_collections.FrozenConfigDict(plain), tuple(seeds))


@functools.lru_cache(maxsize=4)
def _explore(config: ml_collections.FrozenConfigDict, seeds: tuple[int, ...]) -> Explored:
  config, choices = _thawed(config), config.study.choices
  lanes = len(choices) * len(seeds)
  run = _train(config, seeds * len(choices), weights=_each(choices, len(seeds)))
  parts = [_some(run, slice(k, k + len(seeds))) for k in range(0, lanes, len(seeds))]
  points = []
  for lane in range(len(seeds)):
    seen = [np.concatenate([part.judged.proxies[:, lane] for part in parts]), np.concatenate([part.asked[:, lane] for part in parts])]
    points.append(fit_proxy_point(*seen))
  return Explored(parts, points, len(choices) * len(run.steps))


# Step B


def _thresholds(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> tuple[np.ndarray | None, float]:
  """Thresholds [K, C] of the config's constraints, and the gold queries that they have cost."""
  if config.study.thresholds == 'none':
    return None, 0.0
  if config.study.thresholds == 'oracle':
    return np.tile(sequences.proxy_points(_settings(config)), (len(seeds), 1)), 0.0
  explored = _explored(config, seeds)
  points = np.stack([point.point for point in explored.points])
  if 'kl' in config.constraints.names:  # as far from the reference as the run on the sum was when it was nearest to the point
    run = explored.runs[-1]
    nearest = np.argmin(np.linalg.norm(run.judged.proxies - points, axis=-1), 0)
    points = np.concatenate([points, -run.judged.kl[nearest, np.arange(len(seeds))][:, None]], 1)
  return points, float(explored.queries)


@functools.lru_cache(maxsize=2)
def _tried(config: ml_collections.FrozenConfigDict, seeds: tuple[int, ...]) -> Run:
  """A run of every choice, or of every coefficient, for each seed; kept for the method that stops the same runs early."""
  options = config.study.coefficients or config.study.choices
  name = 'kl_coefficient' if config.study.coefficients else 'weights'
  return _train(_thawed(config), seeds * len(options), **{name: _each(options, len(seeds))})


def _choose(config: ml_collections.ConfigDict, seeds: Sequence[int], method: str) -> list[dict[str, float]]:
  """The best of several runs of each seed, by gold."""
  changes = {'study.method': '', 'study.choices' if method == 'best_kl' else 'study.coefficients': ()}
  plain = arm_config(config, tuple(changes.items()))
  plain.arms, plain.claims = {}, ()
  options = config.study.coefficients if method == 'best_kl' else config.study.choices
  run = _tried(ml_collections.FrozenConfigDict(plain), tuple(seeds))
  lanes = np.arange(len(options) * len(seeds)).reshape(len(options), len(seeds))
  if method != 'early_stopped':
    best = lanes[np.argmax(run.asked[-1][lanes], 0), np.arange(len(seeds))]
    return [_last(config, run, lane) | dict(queries=float(len(options)), choice=float(lane // len(seeds))) for lane in best]
  # As many questions as the fit of thresholds, spread over the runs.
  explored = _explored(config, seeds)
  times = np.unique(np.linspace(0, len(run.steps) - 1, max(explored.queries // len(options), 1)).round().astype(int))
  figures = []
  for seed in range(len(seeds)):
    asked = run.asked[np.ix_(times, lanes[:, seed])]
    time, option = np.unravel_index(np.argmax(asked), asked.shape)
    stop, lane = times[time], lanes[option, seed]
    curves = run.curves(lane)
    held = Curves(curves.steps, *(np.concatenate([x[:stop], np.repeat(x[[stop]], len(x) - stop, 0)]) for x in curves[1:]))
    found = dict(gold=held.gold[-1], a=held.proxies[-1, 0], b=held.proxies[-1, 1], kl=held.kl[-1], area=overoptimization(held)['gold_area'])
    found = {name: float(value) for name, value in found.items()}
    figures.append(found | dict(queries=float(asked.size), choice=float(option), stopped=float(run.steps[stop])))
  return figures


def _search(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """NM-PPO: Nelder-Mead over the thresholds, which asks for gold after `period` iterations under each, from where the policy stands."""
  lanes, evaluate = _start(config, seeds)
  first, most = evaluate(lanes.state, 0)[0], np.max([part.judged.proxies.max(0) for part in _explored(config, seeds).runs], 0)  # proxies cost no gold
  searchers = [
    nelder_mead.Searcher(nelder_mead.initial_simplex(low, high, seed), low=low, high=high)
    for seed, low, high in zip(seeds, first.proxies, np.maximum(most, first.proxies + 1e-3), strict=True)
  ]
  steps, judged = [0], [evaluate(lanes.state, 0)[1]]

  def try_out(thresholds: np.ndarray, iterations: int = config.study.period) -> np.ndarray:
    nonlocal lanes
    lanes, _ = advance(_with(lanes, thresholds=thresholds), iterations)
    asked, seen = evaluate(lanes.state, steps[-1] + iterations)
    steps.append(steps[-1] + iterations)
    judged.append(seen)
    return asked.gold

  rounds = int((1 - config.study.tail) * config.train.steps) // config.study.period
  found = nelder_mead.search_together(try_out, searchers, rounds=rounds)
  thresholds = np.stack([each.thresholds for each in found])
  while steps[-1] < config.train.steps:
    try_out(thresholds, min(config.study.every, config.train.steps - steps[-1]))
  run = Run(np.array(steps, float), np.zeros((len(steps), len(seeds))), _stack(judged), lanes)
  return [_last(config, run, lane, thresholds) | dict(queries=float(found[lane].queries)) for lane in range(len(seeds))]


def _last(config: ml_collections.ConfigDict, run: Run, lane: int, thresholds: np.ndarray | None = None) -> dict[str, float]:
  """Figures of the last part of a run; see `study`."""
  curves = run.curves(lane)
  part = curves.steps > curves.steps[-1] * (1 - config.study.tail)
  gold, kl, (a, b) = curves.gold[part].mean(), curves.kl[part].mean(), curves.proxies[part].mean(0)
  figures = dict(gold=gold, a=a, b=b, kl=kl, area=overoptimization(curves)['gold_area'])
  if thresholds is not None:
    wanted, senses = thresholds[lane], config.constraints.senses
    returns = dict(a=a, b=b, kl=-kl)
    gaps = np.array([returns[name] for name in config.constraints.names]) - wanted
    wrong = [-gap if sense == '>=' else gap if sense == '<=' else abs(gap) for gap, sense in zip(gaps, senses, strict=True)]
    figures |= dict(missed=np.max(np.abs(gaps / wanted)), violated=max(0.0, np.max(wrong / np.abs(wanted))), threshold_a=wanted[0], threshold_b=wanted[1])
    if config.constraints.form != 'satisfaction':
      figures['capped'] = np.max(np.abs(run.lanes.state.params['multipliers'][lane])) > 0.999 * config.constraints.cap
  return {name: float(value) for name, value in figures.items()}


# Training and evaluation


def _train(config: ml_collections.ConfigDict, seeds: Sequence[int], **scalars: Any) -> Run:
  """Trains a lane for each seed, all with the config's method, and evaluates them on the way; for the scalars see `_with`."""
  lanes, evaluate = _start(config, seeds)
  lanes = _with(lanes, **scalars)
  steps, found = [0], [evaluate(lanes.state, 0)]
  while steps[-1] < config.train.steps:
    lanes, _ = advance(lanes, min(config.study.every, config.train.steps - steps[-1]))
    steps.append(min(steps[-1] + config.study.every, config.train.steps))
    found.append(evaluate(lanes.state, steps[-1]))
  asked, judged = zip(*found, strict=True)
  return Run(np.array(steps, float), np.stack([each.gold for each in asked]), _stack(judged), lanes)


def _start(config: ml_collections.ConfigDict, seeds: Sequence[int]):
  """(lanes before training, (state, step) -> (what may be asked, what is judged))."""
  unique = tuple(dict.fromkeys(seeds))
  policies = _pretrained(config, unique)
  policies = jax.tree.map(lambda x: x[np.array([unique.index(seed) for seed in seeds])], policies)
  lanes = policy_claims.start(config, seeds, policies=policies)
  run = lanes.run
  rows = [[run.encode(run.eval_source[i % len(run.eval_source)])] for i in range(config.study.rows)]
  prompts = trees.pack(rows, length=run.shape['length'], slots=1, responses=1)
  prompts = dataclasses.replace(prompts, labels={'index': np.zeros_like(prompts.prompt_ends)})

  def answer(params, key):
    rollout = run.sample(params, prompts, key)
    signals = run.score(params, rollout)
    return run.measure(params, rollout, signals)

  both = jax.jit(jax.vmap(lambda params, key, step: jax.vmap(lambda k: answer(params, jax.random.fold_in(key, 2 * step + k)))(jnp.arange(2)), (0, 0, None)))
  keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 2**31 - 1))(np.array(seeds))
  figures = ('rewards/gold/mean', *(f'rewards/{name}/mean' for name in PROXIES), 'objective/kl')

  def evaluate(state: TrainState, step: int) -> tuple[Evaluated, Evaluated]:
    measured = jax.device_get(both(state.params, keys, step))
    gold, a, b, kl = (measured[name][0] / measured[name][1] for name in figures)
    return tuple(Evaluated(gold[:, k], np.stack([a, b], -1)[:, k], kl[:, k]) for k in range(2))

  return lanes, evaluate


def _pretrained(config: ml_collections.ConfigDict, seeds: tuple[int, ...]) -> Any:
  """Policies that are trained on the world's text, in which what gold and the proxies want has no part."""
  text = sft.get_config()
  text.world = {**config.world.to_dict(), 'correlation': 0.0}
  text.model.decoder = config.model.decoder.to_dict()
  text.data.max_length = config.data.max_length + config.sampling.max_new_tokens
  text.train.update(steps=config.study.pretraining, rows=8, length=128, slots=6, responses=1)
  return _pretrain(ml_collections.FrozenConfigDict(text), seeds)


@functools.lru_cache(maxsize=2)
def _pretrain(config: ml_collections.FrozenConfigDict, seeds: tuple[int, ...]) -> Any:
  return policy_claims.pretrain(_thawed(config), seeds)


def _thawed(config: ml_collections.FrozenConfigDict) -> ml_collections.ConfigDict:
  """A config that was frozen to be the key of a cache."""
  return ml_collections.ConfigDict(config.to_dict())


def _with(lanes: Lanes, **scalars: Any) -> Lanes:
  """The lanes with other values of what is traced: `thresholds` [K, C], `weights` of a and b [K, 2], `kl_coefficient` [K]; None leaves one as it is."""
  given = {name: jnp.asarray(value, jnp.float32) for name, value in scalars.items() if value is not None}
  if 'weights' in given:  # gold, the last signal, is never optimized
    given['weights'] = jnp.pad(given['weights'], ((0, 0), (0, 1)))
  params = {**lanes.state.params, 'scalars': lanes.state.params['scalars'] | given}
  return lanes._replace(state=dataclasses.replace(lanes.state, params=params))


def _each(options: Sequence[Any], seeds: int) -> np.ndarray:
  """Every option for every seed, seeds fastest."""
  return np.repeat(np.array(options, np.float32), seeds, 0)


def _some(run: Run, lanes: slice) -> Run:
  return run._replace(asked=run.asked[:, lanes], judged=Evaluated(*(values[:, lanes] for values in run.judged)))


def _stack(found: Sequence[Evaluated]) -> Evaluated:
  return Evaluated(*(np.stack(values) for values in zip(*found, strict=True)))


def _settings(config: ml_collections.ConfigDict) -> sequences.Settings:
  world = config.world.to_dict()
  return sequences.Settings(**{name: value for name, value in world.items() if name not in ('name', 'train_size', 'eval_size', 'eval')})
