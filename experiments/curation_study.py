"""Curation of a pool with bad labels at one budget of human labels: the arms of configs/skywork_v2.py.

`study` is the `runner`. For each seed there is a pool of pairs, of which `study.seed_labels` get a human's label (gold's) at once, half of them to train
on and half to validate on. Further labels, `study.budget` in all, are asked at random or where the model errs. Language models' labels are those of
annotators who know gold, a bias that all of them share, and errors of their own: no text is shown to them, so the examples in the prompt of the paper
have no counterpart here. All models start from scratch and see as many pairs as each other.

What is cheap to share is: the pool, the rounds, and the models that filter are made once for all arms of a process.

Dimensions: P pairs of the pool, M annotators, S samples of one, Q validation items.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
import json
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from experiments import reproduce
from experiments.setup import open_world, Setup, setup
from rmjax.data import curation
from rmjax.data.curation import Choice, Curated
from rmjax.data.records import Record
from rmjax.errors import InputError
from rmjax.evaluation.accuracy import agreement
from rmjax.evaluation.scored import compared_pairs, Scored
from rmjax.evaluation.scoring import score_records
from rmjax.training.mesh import one_device_mesh

METHODS = ('seed', 'random', 'raw', 'annotators', 'retrieval', 'full', 'recycled', 'self_confirmed')
FLIPPED = 0.5  # topics with more flips than this are the noisy ones


class Pool(NamedTuple):
  """One seed's pool.

  Attributes:
    records: pairs.
    given: how much the first response is preferred by the label in the data [P].
    gold: the same by gold.
    voted: the same by the annotators' vote.
    embeddings: of prompt and topic [P, D].
  """

  records: list[Record]
  given: np.ndarray
  gold: np.ndarray
  voted: np.ndarray
  embeddings: np.ndarray


class Stages(NamedTuple):
  """What stage 1 made of one pool.

  Attributes:
    human: items with a human's label.
    silver: items with the annotators', fetched beyond the budget.
  """

  human: list[int]
  silver: list[int]


def study(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """Figures of the arm that `config.study.method` names, a dict for each seed.

  Returns:
    `gold_accuracy` of the evaluation's pairs, `gold_accuracy_<topic>`, and of the noisy topics and the others together; `precision`, share of
    the labels trained on that agree with gold; `pairs`, their number; `human`, how many a human gave. Where a filter was at work: `kept`, `recycled`,
    shares of the pool; `precision_kept` and `precision_recycled`; and its `rmjax.data.curation.margins`.

  Raises:
    InputError: there is no such method.
  """
  method = config.study.method
  if method not in METHODS:
    raise InputError(f"study.method = '{method}': choose one of {', '.join(METHODS)}")
  shared = json.dumps({**config.to_dict(), 'study': {**config.study.to_dict(), 'method': '', 'coin': False}, 'arms': None, 'claims': None})
  seeds = tuple(seeds)
  pools, chosen, figures = _pools(shared, seeds), [], []
  for number, pool in enumerate(pools):
    given = _coins(pool, seeds[number]) if config.study.coin else pool.given
    choices, found = _choose(method, shared, seeds, number, pool, given, config.study)
    labels = np.array([_label(choice, given) for choice in choices])
    gold = pool.gold[[choice.index for choice in choices]]
    human = sum(choice.origin == 'human' for choice in choices)
    figures.append(found | dict(precision=float(np.mean(labels == gold)), pairs=float(len(choices)), human=float(human)))
    # The given label is written out: coins are not in the records.
    chosen.append([choice._replace(first=float(label)) for choice, label in zip(choices, labels, strict=True)])
  sources = [Curated(pool.records, choices) for pool, choices in zip(pools, chosen, strict=True)]
  noisy = {t for t, flips in enumerate(config.world.flips) if flips > FLIPPED}
  for found, (run, params) in zip(figures, _fit(shared, seeds, sources), strict=True):
    records = [run.eval_source[i] for i in range(len(run.eval_source))]
    found |= _accuracies(_score(run, params, records), noisy)
  return figures


def _choose(method: str, shared: str, seeds: tuple[int, ...], number: int, pool: Pool, given: np.ndarray, settings: Any) -> tuple[list[Choice], dict]:
  """What an arm trains on, and figures of how it was chosen; nothing in it knows gold but by the labels of humans."""
  rest = lambda taken: sorted(set(range(len(pool.records))) - set(taken))
  human = lambda items: [Choice(i, 'human', float(pool.gold[i])) for i in items]
  voted = lambda items: [Choice(i, 'annotators', float(pool.voted[i])) for i in items if pool.voted[i] != 0.5]
  if method == 'seed':
    return human(range(settings.seed_labels)), {}
  if method in ('random', 'raw', 'annotators'):  # the pool has no order: its first ones are as good as drawn
    items = range(settings.budget)
    more = dict(random=[], raw=[Choice(i) for i in rest(items)], annotators=voted(rest(items)))[method]
    return human(items) + more, {}
  stages = _stage_1(shared, seeds)[number]
  if method == 'retrieval':
    return human(stages.human), {}
  wild = np.array(rest(stages.human + stages.silver))
  p_gold, p_best = (p[number][wild] for p in _judges(shared, seeds, method == 'self_confirmed'))
  right = lambda p: np.where(given[wild] == 1, p, 1 - p)
  p_gold, p_best = right(p_gold), right(p_best)
  asked = np.where(p_best > 0.5, np.nan, np.where(pool.voted[wild] == 0.5, 0.5, pool.voted[wild] == given[wild]))  # only where the best model disagrees
  kept = curation.consistency_filter(p_best, p_gold, asked)
  agreed = given[wild] == pool.gold[wild]
  found = dict(kept=float(kept.mean()), **curation.margins(p_best, kept))
  found |= {'precision_kept': float(agreed[kept].mean())} if kept.any() else {}
  choices = human(stages.human) + voted(stages.silver) + [Choice(int(i)) for i in wild[kept]]
  if method == 'recycled':
    rejected = curation.both_reject(p_best, p_gold, settings.confidence)
    found |= dict(recycled=float(rejected.mean()), **({'precision_recycled': float(1 - agreed[rejected].mean())} if rejected.any() else {}))
    choices += [Choice(int(i), 'recycled') for i in wild[rejected]]
  return choices, found


def _label(choice: Choice, given: np.ndarray) -> float:
  if choice.first is not None:
    return choice.first
  return 1 - given[choice.index] if choice.origin == 'recycled' else given[choice.index]


def _coins(pool: Pool, seed: int) -> np.ndarray:
  """Labels that say nothing."""
  return np.random.default_rng([seed, 2]).integers(0, 2, len(pool.records)).astype(float)


@functools.lru_cache(maxsize=1)
def _pools(shared: str, seeds: tuple[int, ...]) -> list[Pool]:
  config = ml_collections.ConfigDict(json.loads(shared))
  pools = []
  for seed in seeds:
    source, evaluated = open_world(reproduce.arm_config(config, (('seed', seed),)))
    records = [record for record in (source[i] for i in range(len(source))) if record.wins.sum() == 1]  # two texts of a pair may be the same
    bad = curation.contaminated(records, [evaluated[i].prompt for i in range(len(evaluated))]) | curation.duplicates(records)
    records = [record for record, out in zip(records, bad, strict=True) if not out]
    if len(records) < config.study.budget:
      raise InputError(f'study.budget = {config.study.budget}: the pool has {len(records)} pairs; raise world.train_size')
    gold = np.array([float(record.labels['gold'][0] > record.labels['gold'][1]) for record in records])
    topics = np.eye(config.world.topics)[[int(record.labels['topic']) for record in records]]  # the attribute that the paper's embeddings have
    embeddings = curation.unit(np.concatenate([curation.embed([record.prompt for record in records]), topics], 1))
    given = np.array([curation.label(record) for record in records])
    pools.append(Pool(records, given, gold, curation.vote(_annotate(records, config.study, seed)), embeddings))
  return pools


def _annotate(records: Sequence[Record], settings: Any, seed: int) -> np.ndarray:
  """Labels [P, M, S] of annotators: gold's gap, the bias that they share, an error of each on each pair, and one of each sample."""
  rng = np.random.default_rng([seed, 1])
  gap = lambda name: np.array([record.labels[name][0] - record.labels[name][1] for record in records], float)
  felt = gap('gold') + settings.shared_bias * gap(f'trait_{settings.style}')
  own = rng.normal(0, settings.error, (len(records), settings.annotators, 1))
  sampled = rng.logistic(0, settings.temperature, (len(records), settings.annotators, settings.samples))
  return (felt[:, None, None] + own + sampled > 0).astype(float)


@functools.lru_cache(maxsize=1)
def _stage_1(shared: str, seeds: tuple[int, ...]) -> list[Stages]:
  """Rounds of training on human and silver labels, and of fetching what lies near the validation items that the model has wrong."""
  config = ml_collections.ConfigDict(json.loads(shared))
  s, pools = config.study, _pools(shared, seeds)
  half = s.seed_labels // 2
  stages = [Stages(list(range(s.seed_labels)), []) for _ in seeds]
  for turn in range(s.rounds):
    # The validation half is never trained on in these rounds: confidence on what was trained on says nothing.
    trained = [_stage_1_choices(pool, stage.human[half:], stage.silver) for pool, stage in zip(pools, stages, strict=True)]
    sources = [Curated(pool.records, choices) for pool, choices in zip(pools, trained, strict=True)]
    target = s.seed_labels + (s.budget - s.seed_labels) * (turn + 1) // s.rounds
    for number, (run, params) in enumerate(_fit(shared, seeds, sources)):
      pool, stage = pools[number], stages[number]
      queries = stage.human[:half]
      p = _first(_score(run, params, [pool.records[i] for i in queries]))
      p = np.where(pool.gold[queries] == 1, p, 1 - p)
      stages[number] = _fetch(pool, stage, np.array(queries)[np.argsort(p, kind='stable')], np.sort(p), target, s)
  return stages


def _stage_1_choices(pool: Pool, human: Sequence[int], silver: Sequence[int]) -> list[Choice]:
  return [Choice(i, 'human', float(pool.gold[i])) for i in human] + [
    Choice(i, 'annotators', float(pool.voted[i])) for i in silver if pool.voted[i] != 0.5
  ]


def _fetch(pool: Pool, stage: Stages, queries: np.ndarray, p: np.ndarray, target: int, settings: Any) -> Stages:
  """Fetches for each query, the worst first; humans label up to `target`, the annotators the others."""
  taken = set(stage.human) | set(stage.silver)
  free = np.array([i for i in range(len(pool.records)) if i not in taken])
  near = curation.knn_retrieve(pool.embeddings[queries], pool.embeddings[free], curation.retrieve_k(p, settings.k_max))
  fetched = list(dict.fromkeys(int(free[i]) for i in near.T.ravel() if i >= 0))  # everybody's nearest before anybody's second
  room = target - len(stage.human)
  short = max(room - len(fetched), 0)  # where the queries fetched too few, the rest of the budget is spent as the control spends it
  more = [int(i) for i in free if int(i) not in set(fetched)][:short]
  return Stages(stage.human + fetched[:room] + more, stage.silver + fetched[room:])


@functools.lru_cache(maxsize=2)
def _judges(shared: str, seeds: tuple[int, ...], own: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Probabilities [P] that the first response is preferred, by the gold model and by the best model: of each seed's pool.

  Both are trained on stage 1 alone, so that neither has seen the labels that it filters; the best one of `own` on the given ones of the whole pool.
  """
  pools, stages = _pools(shared, seeds), _stage_1(shared, seeds)
  gold = [_stage_1_choices(pool, stage.human, ()) for pool, stage in zip(pools, stages, strict=True)]
  if own:
    return _judges(shared, seeds, False)[0], _fit_and_judge(shared, seeds, [[Choice(i) for i in range(len(pool.records))] for pool in pools])
  best = [_stage_1_choices(pool, stage.human, stage.silver) for pool, stage in zip(pools, stages, strict=True)]
  return _fit_and_judge(shared, seeds, gold), _fit_and_judge(shared, seeds, best)


def _fit_and_judge(shared: str, seeds: tuple[int, ...], choices: Sequence[Sequence[Choice]]) -> list[np.ndarray]:
  pools = _pools(shared, seeds)
  sources = [Curated(pool.records, own) for pool, own in zip(pools, choices, strict=True)]
  return [_first(_score(run, params, pool.records)) for pool, (run, params) in zip(pools, _fit(shared, seeds, sources), strict=True)]


def _fit(shared: str, seeds: tuple[int, ...], sources: Sequence[Curated]) -> Iterator[tuple[Setup, Any]]:
  return reproduce.fit_seeds(ml_collections.ConfigDict(json.loads(shared)), seeds, sources=sources, step=_step(shared))


@functools.lru_cache(maxsize=1)
def _step(shared: str) -> Callable:
  return reproduce.compile_step(setup(ml_collections.ConfigDict(json.loads(shared)), mesh=one_device_mesh()))


def _score(run: Setup, params: Any, records: Sequence[Record]) -> list[Scored]:
  return list(score_records(run.model, params, records, run.encode_all, mesh=run.mesh, **run.shape))


def _first(scored: Sequence[Scored]) -> np.ndarray:
  """Probability that the first response of each pair is preferred."""
  logits = np.array([record.logits[0, 1] for record in scored], np.float64)
  return 0.5 + 0.5 * np.tanh(logits / 2)


def _accuracies(scored: Sequence[Scored], noisy: set[int]) -> dict[str, float]:
  """Share of pairs ordered as gold orders them, in all and by topic."""
  pairs = compared_pairs(scored)
  right = agreement(pairs.logits, 0.5 + pairs.gold)
  topics = {record.subset: int(record.labels['topic']) for record in scored}
  of_noisy = np.array([topics[subset] in noisy for subset in pairs.subsets])
  found = dict(gold_accuracy=np.nanmean(right))
  found |= {name: np.nanmean(right[part]) for name, part in (('gold_accuracy_noisy', of_noisy), ('gold_accuracy_clean', ~of_noisy)) if part.any()}
  found |= {f'gold_accuracy_{subset}': np.nanmean(right[pairs.subsets == subset]) for subset in topics}
  return {name: float(value) for name, value in found.items()}
