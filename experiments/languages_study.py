"""One benchmark in many languages: how far does a reward model that learned preferences in one of them know them in the others?

`study` is the `runner` of configs/m_rewardbench.py. A backbone reads text of all languages (`study.pretrain`); from it each arm's reward model learns
preferences in language 0 alone. All are measured on the same items in every language, and on worse and worse translations of them.

Dimensions: I items, L languages.
"""

from collections.abc import Iterator, Mapping, Sequence
import functools
import json
from typing import Any

import jax
from jaxtyping import Float
import ml_collections
import numpy as np

from experiments.reproduce import arm_config, compile_step, fit_seeds
from experiments.setup import open_world, Setup, setup
from rmjax.data.records import Record
from rmjax.errors import InputError
from rmjax.evaluation import bootstrap, length
from rmjax.evaluation.accuracy import agreement
from rmjax.evaluation.correlation import kappa
from rmjax.evaluation.scoring import score_records
from rmjax.training.mesh import one_device_mesh


def study(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """Pretrains (once for all arms), trains the config's reward model in language 0, and measures it; see `measure`."""
  shares = list(config.world.shares)
  if len(shares) < 3:
    raise InputError(f'world.shares = {tuple(shares)}: a rank correlation over the languages beside the first needs those of 3 or more')
  if 0.0 not in config.study.noise:
    raise InputError(f'study.noise = {tuple(config.study.noise)}: it needs 0.0, the translations that the others are worse than')
  found = []
  for seed, (run, params) in zip(seeds, _fit(config, seeds, _start(config, seeds)), strict=True):
    correct = answers(run, params, items(arm_config(config, (('seed', seed),))))
    found.append(measure(correct, shares))
  return found


def _start(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[Any]:
  """Each seed's pretrained backbone, as the reference too where there is one, with a head that is new."""
  found = arm_config(config, config.study.pretrain).to_dict()
  settings = {name: value for name, value in found.items() if name not in ('study', 'evaluation', 'arms', 'claims', 'seeds', 'smoke')}
  backbones = _pretrained(json.dumps(settings), config.study.embedding, tuple(seeds))
  drawn = _drawn(config, seeds)
  return [{part: backbone if part in ('backbone', 'reference') else x for part, x in params.items()} for params, backbone in zip(drawn, backbones, strict=True)]


@functools.lru_cache(maxsize=2)  # arms that differ in what is learned from preferences share it
def _pretrained(config: str, embedding: float, seeds: tuple[int, ...]) -> list[Any]:
  """Backbones that have read text; the embeddings that they begin with are drawn `embedding` times as large as usual."""
  found = ml_collections.ConfigDict(json.loads(config))
  small = lambda path, x: x * embedding if 'embedding' in jax.tree_util.keystr(path) else x
  start = [jax.tree_util.tree_map_with_path(small, params) for params in _drawn(found, seeds)]
  return [params['backbone'] for _, params in _fit(found, seeds, start)]


def _fit(config: ml_collections.ConfigDict, seeds: Sequence[int], start: Sequence[Any]) -> Iterator[tuple[Setup, Any]]:
  """`fit_seeds`, one after the other, for the reason that `experiments.principles_study` gives."""
  step = compile_step(setup(config, mesh=one_device_mesh()))
  for seed, params in zip(seeds, start, strict=True):
    yield from fit_seeds(config, (seed,), start=(params,), step=step)


def _drawn(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[Any]:
  """Each seed's parameters as `fit_seeds` draws them."""
  params = setup(config, mesh=one_device_mesh()).init(jax.vmap(jax.random.key)(np.array(seeds))).params['reward']
  return [jax.tree.map(lambda x, number=number: x[number], params) for number in range(len(seeds))]


def items(config: ml_collections.ConfigDict) -> dict[tuple[float, int], list[Record]]:
  """The evaluation's records by (noise, language), each with the same items: the original, (0, 0), and every translation of it."""
  found = {}
  for noise in config.study.noise:
    for language in range(len(config.world.shares)):
      if language or not noise:
        source = open_world(arm_config(config, (('world.eval', dict(config.world.eval, language=language, noise=noise)),)))[1]
        found[noise, language] = [source[i] for i in range(len(source))]
  return found


def answers(run: Setup, params: Any, records: Mapping[tuple[float, int], Sequence[Record]]) -> dict[float, Float[np.ndarray, 'I L']]:
  """Whether the model prefers what gold does (0.5 where it ties), of translations at each rate of errors, beside the original in language 0.

  An item whose two responses are the same in some translation is left out in all of them, as the benchmark does.
  """
  everything = [record for part in records.values() for record in part]
  scored = score_records(run.model, params, iter(everything), run.encode_all, mesh=run.mesh, **run.shape)
  gaps = np.array([(item.rewards[0] - item.rewards[1], item.gold[0] - item.gold[1]) for item in scored], np.float64)
  right = agreement(gaps[:, 0], 0.5 + gaps[:, 1])
  differ = np.array([record.responses[0] != record.responses[1] for record in everything]).reshape(len(records), -1).all(0)
  by_part = dict(zip(records, right.reshape(len(records), -1)[:, differ], strict=True))
  languages = sorted({language for _, language in records})
  return {noise: np.stack([by_part[noise if language else 0.0, language] for language in languages], -1) for noise in {noise: 0 for noise, _ in records}}


def measure(correct: Mapping[float, Float[np.ndarray, 'I L']], shares: Sequence[float]) -> dict[str, float]:
  """Figures of one model.

  Two languages flip on an item where the model is right in one of them alone. Of languages of accuracies a and b at least |a - b| of the items flip; if
  which items are wrong in one were independent of which are wrong in the other, a (1 - b) + b (1 - a) would; kappa is one less the ratio of
  what flips to that: it is 0 there, and above 0 where fewer flip.

  Args:
    correct: of `answers`, by rate of errors, 0.0 among them.
    shares: [L], how much of what was read was in each language.

  Returns:
    Of right translations: accuracy_<l>, of each language; gap, language 0 less the mean of the others, with its p-value gap_p (items drawn whole, with all
    their languages); spearman, over the others, of shares and accuracy; and means over the others of kappa (with language 0), flip, flip_least and
    flip_independent. Of others, <rate> in per cent: accuracy_noise_<rate> and kappa_noise_<rate>, likewise means; that of kappa is with the original. items.
  """
  clean = correct[0.0]
  count, languages = clean.shape
  accuracy = clean.mean(0)
  original, others = accuracy[0], accuracy[1:]
  gap = bootstrap.paired((clean[:, :1] - clean[:, 1:]).ravel(), np.repeat(np.arange(count), languages - 1))
  figures = {f'accuracy_{language}': value for language, value in enumerate(accuracy)} | dict(
    items=count,
    gap=gap.mean,
    gap_p=gap.p_value,
    spearman=length.spearman(np.asarray(shares[1:], np.float64), others),
    kappa=_kappa(clean),
    flip=np.mean(clean[:, :1] != clean[:, 1:]),
    flip_least=np.mean(np.abs(original - others)),
    flip_independent=np.mean(original * (1 - others) + others * (1 - original)),
  )
  for noise, right in correct.items():
    rate = f'noise_{100 * noise:g}'
    figures |= {f'accuracy_{rate}': right[:, 1:].mean(), f'kappa_{rate}': _kappa(right)}
  return {name: float(value) for name, value in figures.items()}


def _kappa(correct: Float[np.ndarray, 'I L']) -> float:
  """With language 0, mean over the others."""
  return float(np.mean([kappa(correct[:, 0], other) for other in correct.T[1:]]))
