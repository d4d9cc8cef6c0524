"""What a reward that is told a principle is good for: pairs by any principle, unseen words, overall pairs, calibration. configs/rlbff.py's `runner`.

Models of three kinds are asked the same: one that reads the principle (`YesNoHead`), one that has a reward for each attribute (`MixtureHead`, which is
told the attribute of a seen principle, and takes the nearest seen one's by words for an unseen one), and one of overall preferences that cannot be asked.

Dimensions: M records, N responses, J attributes.
"""

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from jaxtyping import Float
import ml_collections
import numpy as np

from experiments import reproduce
from experiments.setup import open_world, Setup, setup
from rmjax.data.consensus import Agreed
from rmjax.data.curation import embed, knn_retrieve
from rmjax.data.pipeline import Source
from rmjax.data.records import Record
from rmjax.evaluation.absolute import auroc
from rmjax.evaluation.accuracy import agreement
from rmjax.evaluation.calibration import expected_calibration_error, reliability
from rmjax.evaluation.scored import Scored
from rmjax.evaluation.scoring import score_records
from rmjax.heads.mixture import MixtureHead
from rmjax.heads.yes_no import satisfies_all, YesNoHead
from rmjax.training.mesh import one_device_mesh
from rmjax.worlds import principles

ACCURACY = 0  # the attribute that weighs most, and stands for 'accuracy'


def study(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """Figures of one arm, a dict for each seed.

  Returns:
    Of the data: `annotations`, verdicts or comparisons that people gave; `kept`, the share that is trained on, and `clean`, the share of those that
    are right (these two where principles were named). Of responses to held-out prompts, against their true attributes and gold:
      principle: pairs that differ in an attribute, ordered by the reward under its principle, mean over attributes. paraphrase: the same in
      words that were never seen together.
      overall: pairs of different gold, under the principle of the heaviest attribute; overall_told: those of them that differ in it;
      overall_sum, overall_least: under all principles, by the sum of rewards and by the least.
      correct: whether reward > 0 where the response has the attribute; correct_other: the same where another attribute's principle is asked.
      ece: of sigmoid(reward), over responses of all prompts; auroc: chance that a response with the attribute has more than one without it, of
      whatever prompt; mean over attributes.
  """
  step, found = None, []
  for seed in seeds:  # one after the other: side by side, products of matrices of this size take a CPU more than twice as long
    world = reproduce.arm_config(config, (('seed', seed),))
    step = step or reproduce.compile_step(setup(world, mesh=one_device_mesh()))
    source, known = _train_source(world)
    ((run, params),) = reproduce.fit_seeds(config, (seed,), sources=(source,), step=step)
    plain = open_world(reproduce.arm_config(world, (('world.annotators', 0), ('world.eval_size', config.study.records))))[1]
    records = [plain[i] for i in range(len(plain))]
    found.append({**known, **measure(records, *(rewards(run, params, records, phrases) for phrases in (principles.SEEN, principles.UNSEEN)))})
  return found


def _train_source(config: ml_collections.ConfigDict) -> tuple[Source, dict[str, float]]:
  source = open_world(config)[0]
  if not config.world.annotators:
    return source, {'annotations': float(sum(np.triu(record.wins + record.wins.T).sum() for record in _all(source)))}
  given = sum(len(record.responses) for record in _all(source))
  if config.study.threshold is not None:
    source = Agreed(source, principles.embed, config.study.threshold)
  right = np.concatenate([record.ratings == record.labels['truth'] for record in _all(source)])
  return source, {'annotations': float(given), 'kept': len(right) / given, 'clean': float(right.mean())}


def _all(source: Source) -> Iterator[Record]:
  return (source[i] for i in range(len(source)))


def rewards(run: Setup, params: Any, records: Sequence[Record], phrases: Sequence[Sequence[str]]) -> Float[np.ndarray, 'J M N']:
  """Rewards of responses by each attribute, asked in words that are drawn from its `phrases` for each record."""

  def score(asked: Mapping[str, str]) -> list[Scored]:
    encode = lambda record: run.encode_all(record, suffix=principles.question(asked.get(record.where, '')) + principles.END)
    return list(score_records(run.model, params, records, encode, mesh=run.mesh, **run.shape))

  asked = [{record.where: Random(f'{j} {record.where}').choice(some) for record in records} for j, some in enumerate(phrases)]
  if isinstance(run.model.head, YesNoHead):
    return np.array([[item.rewards for item in score(words)] for words in asked])
  scored = score({})
  if isinstance(run.model.head, MixtureHead):
    components = np.array([item.scores.components[: len(item.rewards)] for item in scored])  # [M, N, J]
    heads = nearest(phrases)
    chosen = [[components[m, :, heads[words[record.where]]] for m, record in enumerate(records)] for words in asked]
    return np.array(chosen)
  return np.broadcast_to([item.rewards for item in scored], (len(phrases), len(records), len(records[0].responses)))


def nearest(phrases: Sequence[Sequence[str]]) -> dict[str, int]:
  """Attribute of the seen principle that has the nearest words, for each phrase."""
  seen = [text for some in principles.SEEN for text in some]
  asked = [text for some in phrases for text in some]
  vectors = embed([*seen, *asked], size=4096)  # no two of the words meet in one place
  places = knn_retrieve(vectors[len(seen) :], vectors[: len(seen)], np.ones(len(asked), int))[:, 0]
  owner = [j for j, some in enumerate(principles.SEEN) for _ in some]
  return {text: owner[place] for text, place in zip(asked, places, strict=True)}


def measure(records: Sequence[Record], seen: Float[np.ndarray, 'J M N'], unseen: Float[np.ndarray, 'J M N']) -> dict[str, float]:
  """Figures of rewards by attribute, see `study`."""
  truth = np.array([[record.labels[f'trait_{j}'] for record in records] for j in range(len(seen))], float)
  gold = np.array([record.labels['gold'] for record in records], float)
  over = lambda better, reward: agreement(_gaps(reward), 0.5 + _gaps(better))
  told = np.where(_gaps(truth[ACCURACY]) == 0, np.nan, over(gold, seen[ACCURACY]))
  others = [np.mean((seen[k] > 0) == truth[j]) for j in range(len(seen)) for k in range(len(seen)) if k != j]
  by_attribute = lambda reward: np.mean([np.nanmean(over(t, r)) for t, r in zip(truth, reward, strict=True)])
  figures = dict(
    principle=by_attribute(seen),
    paraphrase=by_attribute(unseen),
    overall=np.nanmean(over(gold, seen[ACCURACY])),
    overall_told=np.nanmean(told),
    overall_sum=np.nanmean(over(gold, seen.sum(0))),
    overall_least=np.nanmean(over(gold, np.asarray(satisfies_all(seen)))),
    correct=np.mean((seen > 0) == truth),
    correct_other=np.mean(others),
    ece=expected_calibration_error(reliability(seen.ravel().astype(float), truth.ravel())),
    auroc=np.mean([auroc(r.ravel(), t.ravel() > 0) for r, t in zip(seen, truth, strict=True)]),
  )
  return {name: float(value) for name, value in figures.items()}


def _gaps(values: Float[np.ndarray, 'M N']) -> Float[np.ndarray, 'M P']:
  i, j = np.triu_indices(values.shape[1], 1)
  return np.asarray(values[:, i] - values[:, j], float)
