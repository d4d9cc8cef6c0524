"""Reward models that write critiques, scored with the data's critiques, with their own, and with those of others. configs/mm_rlhf.py's `runner`."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import ml_collections
import numpy as np

from experiments import reproduce
from experiments.setup import Setup
from rmjax.data.records import Record
from rmjax.errors import InputError
from rmjax.evaluation.scored import Scored
from rmjax.evaluation.scoring import score_records
from rmjax.rewards.critiques import write_critiques

KINDS = ('none', 'gold', 'own', 'averaged', 'exchanged')


def study(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """Figures of one arm, a dict for each seed.

  Returns:
    `<kind>_<figure>` of the config's measures, for each kind of critique that `config.study.critiques` names: 'none', scored at the end of the
    response; 'gold', the data's; 'own', the model's likeliest; 'averaged', the mean score of `config.study.samples` drawn ones; 'exchanged', the
    data's of responses to the next prompt. Also `gold_nll`, nats a token of the data's critiques, and `own_exact`, share of the model's that are the data's.

  Raises:
    InputError: there is no such kind.
  """
  if unknown := [kind for kind in config.study.critiques if kind not in KINDS]:
    raise InputError(f"study.critiques = '{unknown[0]}': choose from {', '.join(KINDS)}")
  figures = []
  for (run, params), seed in zip(reproduce.fit_seeds(config, seeds), seeds, strict=True):
    records, found = [run.eval_source[i] for i in range(len(run.eval_source))], {}
    for kind in config.study.critiques:
      versions = _versions(kind, config, run, params, records, seed)
      scored = [list(score_records(run.model, params, version, run.encode_all, mesh=run.mesh, **run.shape)) for version in versions]
      found |= {f'{kind}_{name}': value for name, value in reproduce.measure(config, _averaged(scored)).items()}
      if kind == 'own':
        found['own_exact'] = float(np.mean([np.array(own.critiques) == record.critiques for own, record in zip(versions[0], records, strict=True)]))
      if kind == 'gold':
        found['gold_nll'] = _per_token(scored[0], run, records)
    figures.append(found)
  return figures


def _versions(kind: str, config: ml_collections.ConfigDict, run: Setup, params: Any, records: Sequence[Record], seed: int) -> list[list[Record]]:
  """The records with critiques of a kind, as often as they are to be scored."""
  if kind == 'none':
    return [[dataclasses.replace(record, critiques=()) for record in records]]
  if kind == 'gold':
    return [list(records)]
  if kind == 'exchanged':
    return [[dataclasses.replace(record, critiques=other.critiques) for record, other in zip(records, [*records[1:], records[0]], strict=True)]]
  draws = [0.0] if kind == 'own' else [1.0] * config.study.samples
  write = lambda number, temperature: write_critiques(
    run.model, params, records, run.tokenizer, run.encode_all, max_new_tokens=config.study.max_new_tokens, temperature=temperature, seed=1000 * seed + number
  )
  return [list(write(number, temperature)) for number, temperature in enumerate(draws)]


def _averaged(versions: Sequence[Sequence[Scored]]) -> list[Scored]:
  mean = lambda items, name: np.mean([getattr(item, name) for item in items], 0)
  return [dataclasses.replace(items[0], rewards=mean(items, 'rewards'), logits=mean(items, 'logits')) for items in zip(*versions, strict=True)]


def _per_token(scored: Sequence[Scored], run: Setup, records: Sequence[Record]) -> float:
  nll = sum(float(item.scores.critique_nll[: len(item.rewards)].sum()) for item in scored)
  return nll / sum(int(run.encode_all(record).labels['critique_lengths'].sum()) for record in records)
