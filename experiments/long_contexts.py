"""How a reward model's accuracy falls with the length of the context, up to lengths that it was not trained on.

`study` is the `runner` of configs/longrm.py: it trains in two stages as `reproduce` does in one, on short contexts and then on those of the config. Where
`config.study.interpolation` says so it scores with positions that are interpolated, so that a network trained on short texts sees none that is new
to it.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
from typing import Any

import ml_collections
import numpy as np

from experiments.reproduce import arm_config, fit_seeds
from experiments.setup import Setup
from rmjax.evaluation.accuracy import agreement
from rmjax.evaluation.scored import compared_pairs, Scored
from rmjax.evaluation.scoring import score_records
from rmjax.models import RewardModel


def study(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[dict[str, float]]:
  """Trains the config's reward model on each seed and scores the evaluation's records; see `accuracies`."""
  settings, s = {name: value for name, value in config.to_dict().items() if name not in ('study', 'arms', 'claims', 'seeds', 'smoke')}, config.study
  found = []
  for run, params in _two_stages(json.dumps(settings), json.dumps(s.first), tuple(seeds)):
    model = interpolated(run.model, s.interpolation)
    records = (run.eval_source[i] for i in range(len(run.eval_source)))
    found.append(accuracies(list(score_records(model, params, records, run.encode_all, mesh=run.mesh, **run.shape))))
  return found


@functools.lru_cache(maxsize=2)  # arms that differ in how they score share their training
def _two_stages(config: str, first: str, seeds: tuple[int, ...]) -> list[tuple[Setup, Any]]:
  found = ml_collections.ConfigDict(json.loads(config))
  start = [params for _, params in _first_stage(arm_config(found, json.loads(first)).to_json(), seeds)]
  return list(fit_seeds(found, seeds, start=start))


@functools.lru_cache(maxsize=2)  # and all of them their first stage
def _first_stage(config: str, seeds: tuple[int, ...]) -> list[tuple[Setup, Any]]:
  return list(fit_seeds(ml_collections.ConfigDict(json.loads(config)), seeds))


def interpolated(model: RewardModel, factor: float) -> RewardModel:
  """The same network with all positions divided by a factor.

  Reference: Chen et al., Extending Context Window of Large Language Models via Positional Interpolation (2023), eq. 3.
  """
  if factor == 1:
    return model
  config = dataclasses.replace(model.backbone.config, rope_scaling=dict(rope_type='linear', factor=factor))
  return model.clone(backbone=model.backbone.clone(config=config))


def accuracies(scored: Sequence[Scored]) -> dict[str, float]:
  """Share of comparisons that are ordered as labelled, by the records' subsets: `accuracy_<subset>`; and of all, `accuracy`."""
  pairs = compared_pairs(scored)
  right = agreement(pairs.logits, pairs.wins)
  by_subset = {f'accuracy_{subset}': float(np.nanmean(right[pairs.subsets == subset])) for subset in np.unique(pairs.subsets)}
  return dict(by_subset, accuracy=float(np.nanmean(right)))
