"""Reward models of graded quality on one world, and whether what a benchmark says of them foretells what they are good for.

`best_of_four` is the `runner` of configs/rewardbench2.py, `probes` that of configs/mrmbench.py. For each seed, `study.grades` says what each model learns
from: how many records, how many of their labels are turned around, how many of the topics. All are trained as long, side by side. What a model
is good for is best-of-n: the gold reward of the response that it ranks highest among `world.responses` of a prompt, less the mean, on prompts that no
benchmark has seen.

Dimensions: M models, E prompts, N responses.
"""

from collections.abc import Sequence
import itertools
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from experiments.reproduce import arm_config, compile_step, fit_seeds
from experiments.setup import open_world, Setup, setup
from rmjax.data.curation import Choice, Curated
from rmjax.data.pipeline import Source
from rmjax.errors import InputError
from rmjax.evaluation import centroids, correlation, length, probing
from rmjax.evaluation.rewardbench2 import best_of_n_share
from rmjax.evaluation.scored import Scored
from rmjax.evaluation.scoring import score_records
from rmjax.training.mesh import one_device_mesh


class Grade(NamedTuple):
  """What a model learns from.

  Attributes:
    size: records.
    flips: share of comparisons that are turned around.
    topics: of the world's topics, how many it sees.
    weights: of the traits, that its annotators have; () for gold's.
  """

  size: int
  flips: float = 0.0
  topics: int = 0
  weights: tuple[float, ...] = ()


class Graded(NamedTuple):
  """A trained model of a seed."""

  grade: Grade
  run: Setup
  params: Any


def train(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[list[Graded]]:
  """The models of each seed, one for each of `study.grades`.

  Raises:
    InputError: fewer than four grades, or one that the world does not have.
  """
  grades = [Grade(*grade) for grade in config.study.grades]
  if len(grades) < 4:
    raise InputError(f'study.grades = {config.study.grades}: a correlation over models needs at least 4')
  found, step = [[] for _ in seeds], None
  for grade in grades:
    sources = [_source(config, grade, seed) for seed in seeds]
    step = step or compile_step(setup(arm_config(config, (('seed', seeds[0]),)), mesh=one_device_mesh()))  # models differ in data alone
    for models, (run, params) in zip(found, fit_seeds(config, seeds, sources=sources, step=step), strict=True):
      models.append(Graded(grade, run, params))
  return found


def _source(config: ml_collections.ConfigDict, grade: Grade, seed: int) -> Source:
  topics = config.world.topics
  if not 1 <= grade.size or not 0 <= grade.topics <= topics:
    raise InputError(f'study.grades: {tuple(grade)}: give a size from 1 up, and a number of topics from 0 (all) to {topics}')
  # More records than are wanted, for those of the topics to be found among them.
  overrides = [('seed', seed), ('world.train_size', 2 * topics * grade.size), ('world.flips', (grade.flips,) * topics)]
  if grade.weights:
    overrides.append(('world.weights', (grade.weights,)))
  world = open_world(arm_config(config, overrides))[0]
  seen = grade.topics or topics
  records = (world[i] for i in range(len(world)))
  found = list(itertools.islice((record for record in records if record.labels['topic'] < seen), grade.size))  # drawn once, not at each epoch
  return Curated(found, [Choice(number) for number in range(len(found))])


def score(graded: Graded, records: Sequence) -> list[Scored]:
  """What the model says of records."""
  return list(score_records(graded.run.model, graded.params, iter(records), graded.run.encode_all, mesh=graded.run.mesh, **graded.run.shape))


def best_of_n_gain(scored: Sequence[Scored]) -> float:
  """Mean over prompts of the gold reward of the response with the highest reward, less that of a random one."""
  return float(np.mean([record.gold[np.argmax(record.rewards)] - record.gold.mean() for record in scored]))


def best_of_four(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """Correlations over models of best-of-n gain with accuracy at one of four, at one of two, and with what needs no benchmark.

  Both accuracies are of the same completions: four to a prompt, or two pairs of them.

  Returns:
    For each seed r_four, r_two, r_size (of the logarithm of the number of records), r_domain (accuracy at one of four in one topic alone, the mean over
    topics), the mean and spread over models of `four`, `two` and `gain`, and `gap`, the mean difference of two and four.
  """
  figures = []
  for models in train(config, seeds):
    records = [models[0].run.eval_source[i] for i in range(len(models[0].run.eval_source))]
    half = len(records) // 2
    four, two, gain, domains = [], [], [], []
    for graded in models:
      scored = score(graded, records)
      accuracy = np.array([best_of_n_share(_right_first(record, np.arange(4))) for record in scored[:half]])
      pairs = [_right_first(record, np.array(pair)) for record in scored[:half] for pair in ((0, 1), (2, 3))]
      topics = np.array([int(record.labels['topic']) for record in scored[:half]])
      four.append(accuracy.mean())
      two.append(np.mean([best_of_n_share(pair) for pair in pairs]))
      gain.append(best_of_n_gain(scored[half:]))
      domains.append([accuracy[topics == topic].mean() for topic in np.unique(topics)])
    sizes = np.log([graded.grade.size for graded in models])
    by_domain = float(np.mean([_r(column, gain) for column in np.transpose(domains)]))
    found = dict(r_four=_r(four, gain), r_two=_r(two, gain), r_size=_r(sizes, gain), r_domain=by_domain)
    for name, values in dict(four=four, two=two, gain=gain).items():
      found |= {name: float(np.mean(values)), f'{name}_spread': float(np.std(values, ddof=1))}
    figures.append(found | dict(gap=found['two'] - found['four'], models=float(len(models))))
  return figures


def _r(x: Sequence[float], y: Sequence[float]) -> float:
  return length.pearson(np.asarray(x, np.float64), np.asarray(y, np.float64))


def _right_first(record: Scored, which: np.ndarray) -> np.ndarray:
  """Rewards of some of a record's responses, gold's best first."""
  order = which[np.argsort(-record.gold[which], kind='stable')]
  return np.asarray(record.rewards, np.float64)[order]


def probes(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """What linear probes of each trait read from each model's representation, against what the model is good for and what it uses.

  A probe reads whether a trait is above a half. A model uses a trait as much as its reward rises with it: the slope of the standardised reward on the
  trait's level, all traits together.

  Returns:
    For each seed r_probe, over models, of mean probe accuracy and best-of-n gain, and p_probe by permutation; r_used, over models and traits, of probe
    accuracy and slope; `probe`, its mean over trained models, beside `probe_random` of the backbone before training, `probe_bag` of the bag of tokens
    and `majority`; and of the far responses, `kept_gain` and `random_gain`: best-of-n gain where prompts off the distribution, `study.far` of them, are
    dropped by distance or at random, an equal number.
  """
  figures = []
  for models, seed in zip(train(config, seeds), seeds, strict=True):
    run = models[0].run
    world = open_world(arm_config(config, (('seed', seed),)))[0]
    probed = [world[i] for i in range(config.study.probed)]
    records = [run.eval_source[i] for i in range(len(run.eval_source))]
    half = len(records) // 2
    accuracy, gain, slopes = [], [], []
    labels, test_labels = _above(probed, config.world.traits), _above(records[:half], config.world.traits)
    for graded in models:
      accuracy.append(_probe(_features(graded, graded.params, probed), labels, _features(graded, graded.params, records[:half]), test_labels))
      scored = score(graded, records)
      gain.append(best_of_n_gain(scored[half:]))
      slopes.append(_slopes(scored[:half], config.world.traits))
    random = probing.random_params(run.model, run.mesh, seed)
    vocabulary = probing.common_tokens(map(run.encode_all, probed))
    bags = [probing.bag_of_tokens(map(run.encode_all, part), [len(record.responses) for record in part], vocabulary) for part in (probed, records[:half])]
    accuracy, gain, slopes = np.array(accuracy), np.array(gain), np.array(slopes)
    relation = correlation.pearson_test(accuracy.mean(1), gain)
    figures.append(
      dict(
        r_probe=relation.r,
        p_probe=relation.p_value,
        r_used=length.pearson(accuracy.ravel(), np.abs(slopes).ravel()),
        probe=float(accuracy.mean()),
        probe_random=float(np.mean(_probe(_features(models[0], random, probed), labels, _features(models[0], random, records[:half]), test_labels))),
        probe_bag=float(np.mean(_probe(bags[0], labels, bags[1], test_labels))),
        majority=float(np.mean([probing.majority(*pair) for pair in zip(labels, test_labels, strict=True)])),
        gain=float(gain.mean()),
        gain_spread=float(gain.std(ddof=1)),
        **_far(config, models, probed, labels, records[half:], seed),
      )
    )
  return figures


def _features(graded: Graded, params: Any, records: Sequence) -> np.ndarray:
  return probing.features(graded.run.model, params, iter(records), graded.run.encode_all, mesh=graded.run.mesh, **graded.run.shape)


def _above(records: Sequence, traits: int) -> list[np.ndarray]:
  """Whether each trait of each response is above a half."""
  return [np.concatenate([record.labels[f'trait_{j}'] > 0.5 for record in records]).astype(np.int32) for j in range(traits)]


def _probe(train_features: np.ndarray, labels: list[np.ndarray], features: np.ndarray, test_labels: list[np.ndarray]) -> list[float]:
  """Accuracy of the converged probe of each trait."""
  found = []
  for label, test in zip(labels, test_labels, strict=True):
    probe = probing.fit_logistic_probe(train_features, label, 2)
    found.append(float(np.mean(probing.right(probe, features, test))))
  return found


def _slopes(scored: Sequence[Scored], traits: int) -> list[float]:
  """Least-squares slopes of the standardised reward on the levels of all traits, within prompts."""
  rewards = np.concatenate([record.rewards - record.rewards.mean() for record in scored])
  levels = np.concatenate([_levels(record, traits) for record in scored])
  return list(np.linalg.lstsq(levels, rewards / max(rewards.std(), 1e-9), rcond=None)[0])


def _levels(record: Scored, traits: int) -> np.ndarray:
  levels = np.stack([record.labels[f'trait_{j}'] for j in range(traits)], -1)
  return levels - levels.mean(0)


def _far(config, models: Sequence[Graded], probed: Sequence, labels: list[np.ndarray], records: Sequence, seed: int) -> dict[str, float]:
  """Gain where a share of the prompts is off the distribution, of the prompts that distance keeps and of as many at random; means over models."""
  foreign = open_world(arm_config(config, (('seed', seed), *((f'world.{name}', value) for name, value in config.study.foreign.items()))))[1]
  number = round(config.study.far * len(records))
  mixture = [foreign[i] for i in range(number)] + list(records[number:])
  rng, found = np.random.default_rng(seed), []
  for graded in models:
    states = _features(graded, graded.params, probed)
    clusters = np.stack([
      centroids.kmeans(jax.random.key(seed), states, config.study.clusters, weights=(label == value).astype(np.float32)).centroids
      for label in labels
      for value in (0, 1)
    ])  # fmt: skip
    smallest = lambda states, clusters=clusters: np.asarray(centroids.min_distance(states, clusters)).min(-1)
    limit = centroids.threshold(smallest(states), 0.9)
    distance = smallest(_features(graded, graded.params, mixture)).reshape(len(mixture), -1).mean(-1)
    kept = distance <= limit
    drawn = rng.permutation(kept)
    gains = np.array([best_of_n_gain([record]) for record in score(graded, mixture)])
    if kept.any():
      found.append((gains[kept].mean(), gains[drawn].mean(), np.mean(~kept[:number]), np.mean(~kept[number:])))
  return dict(zip(('kept_gain', 'random_gain', 'dropped_far', 'dropped_near'), map(float, np.mean(found, 0)), strict=True)) if found else {}
