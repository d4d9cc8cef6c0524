"""Tests a paper's claim: trains every arm of a config over its seeds, and compares them.

An arm is a reward model trained and measured, or whatever the config's `runner` makes of it: the import path of f(config, seeds) -> figures of
each seed.

  python -m experiments.reproduce --config=configs/gpm.py --workdir=DIR [--smoke] [--record=results]

Writes DIR/arms/<arm>.json (kept: the same command goes on where it was stopped), result.json (flat: `<arm>/<figure>`, a mean over seeds, and its
`_se`), report.json, claims.png; prints a table. Exits with 1 when a claim fails. --record also writes results/<system>.json, from which
`python -m experiments.systems_table` makes docs/systems.md. --smoke makes two steps of each arm on two seeds, to see that everything runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import json
import os
from pathlib import Path
import subprocess
import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_flags
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.setup import Setup, setup
from rmjax import named
from rmjax.data import pipeline
from rmjax.data.pipeline import Source
from rmjax.errors import InputError
from rmjax.evaluation import figures
from rmjax.evaluation.claims import check_claim, named_arms, Verdict
from rmjax.evaluation.scored import Scored
from rmjax.evaluation.scoring import score_records
from rmjax.training.loop import Diverged
from rmjax.training.mesh import one_device_mesh
from rmjax.training.metrics import write_json
from rmjax.training.saved import abstract_params
from rmjax.training.step import TrainState

SMALL = 2_000_000  # parameters up to which seeds are trained in one compiled step
CLAIMS_FAILED = 1
SUMMARY = 'rmjax.evaluation.summary:summary'
RUNNER = 'experiments.policy_claims:optimize_seeds'


def arm_config(config: ml_collections.ConfigDict, overrides: Sequence[tuple[str, Any]]) -> ml_collections.ConfigDict:
  """The config with some of its leaves, or whole dicts, replaced.

  Raises:
    InputError: there is no such key, or the value is of another type.
  """
  config = ml_collections.ConfigDict(config.copy_and_resolve_references())
  for key, value in overrides:
    *path, leaf = key.split('.')
    node = config
    for part in path:
      node = node.get(part, None) if isinstance(node, ml_collections.ConfigDict) else None
    if not isinstance(node, ml_collections.ConfigDict) or leaf not in node:
      raise InputError(f'arms: there is no config.{key}')
    try:
      if isinstance(value, Mapping):
        with node.unlocked():
          node[leaf] = ml_collections.ConfigDict(value)
      else:
        node[leaf] = value
    except TypeError as e:
      raise InputError(f'arms: config.{key} = {value!r}: {e}') from e
  return config


def compile_step(run: Setup, *, one_batch: bool = False) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]:
  """The training step of several states, compiled at its first call: side by side, or one after the other on a CPU, which one keeps busy by itself.

  Args:
    run: of any of them.
    one_batch: all of them learn from the same batch, where otherwise each has its own, such as one a seed.
  """
  if jax.default_backend() != 'cpu':
    return jax.jit(jax.vmap(run.step, in_axes=(0, None if one_batch else 0)), donate_argnums=0)
  if one_batch:
    step = lambda states, batch: jax.lax.map(lambda state: run.step(state, batch), states)
  else:
    step = lambda states, batches: jax.lax.map(lambda one: run.step(*one), (states, batches))
  return jax.jit(step, donate_argnums=0)


def fit_seeds(
  config: ml_collections.ConfigDict, seeds: Sequence[int], *, sources: Sequence[Source] = (), step: Callable | None = None, start: Sequence[Any] = ()
) -> Iterator[tuple[Setup, Any]]:
  """Trains one model a seed, in one compiled step where they are small; everything lies on one device.

  A seed decides the initial parameters, the world's records and their order.

  Args:
    config: of a program that trains reward models.
    seeds: one a model.
    sources: what each of them trains on, in place of the config's data.
    step: `compile_step` of a setup that differs in data alone, which spares a study of many trainings to compile it each time.
    start: parameters (part `reward`) that each of them goes on from, such as those of an earlier stage; none draws them.

  Yields:
    Each seed's setup and trained parameters (part `reward`).

  Raises:
    Diverged: a loss is not finite.
  """
  mesh, runs = one_device_mesh(), []
  for seed in seeds:
    runs.append(setup(arm_config(config, (('seed', seed),)), mesh=mesh))
  if sources:
    runs = [run._replace(train_source=source) for run, source in zip(runs, sources, strict=True)]
  run = runs[0]
  size = sum(x.size for x in jax.tree.leaves(abstract_params(run.model, mesh)))
  together = len(seeds) if size <= SMALL else 1
  step = step or compile_step(run)
  for first in range(0, len(seeds), together):
    part = slice(first, first + together)
    batches = [pipeline.train_batches(run.train_source, run.encode, seed=seed, **run.shape) for seed, run in zip(seeds[part], runs[part], strict=True)]
    state = run.init(jax.vmap(jax.random.key)(np.array(seeds[part])))
    if start:
      state = dataclasses.replace(state, params={**state.params, 'reward': jax.tree.map(lambda *x: jnp.stack(x), *start[part])})
    losses = []
    for _ in range(config.train.steps):
      state, metrics = step(state, jax.tree.map(lambda *x: np.stack(x), *(next(stream).trees for stream in batches)))
      losses.append(metrics['loss'][0])
      if len(losses) > 2:  # the device works on while the host packs, but not without end
        losses[-3].block_until_ready()
    finite = np.isfinite(np.stack(losses)).all(0)
    if not finite.all():
      raise Diverged(f'the loss of seed {seeds[part][int(np.argmin(finite))]} is not finite')
    for number, run in enumerate(runs[part]):
      yield run, jax.tree.map(lambda x, number=number: x[number], state.params['reward'])


def train_seeds(config: ml_collections.ConfigDict, seeds: Sequence[int]) -> list[list[Scored]]:
  """Trains one reward model a seed, as `fit_seeds`, and scores the evaluation's records."""
  scored = []
  for run, params in fit_seeds(config, seeds):
    records = (run.eval_source[i] for i in range(len(run.eval_source)))
    scored.append(list(score_records(run.model, params, records, run.encode_all, mesh=run.mesh, **run.shape)))
  return scored


def measure(config: ml_collections.ConfigDict, scored: Sequence[Scored]) -> dict[str, float]:
  """The figures that the config's `evaluation` names, after its correction, of the records that are not set aside for validation.

  Raises:
    InputError: all are set aside, or the config names something that there is not.
  """
  aside = config.evaluation.validation
  if aside >= len(scored):
    raise InputError(f'evaluation.validation = {aside} leaves none of the {len(scored)} records to measure: lower it')
  if config.evaluation.correction.name:
    example = 'rmjax.evaluation.length_bias:length_penalty'
    options = config.evaluation.correction.to_dict()
    correct = named.partial('evaluation.correction', example, **options)(scored[:aside])
    scored = [*scored[:aside], *correct(scored[aside:])]
  result = {}
  for name in config.evaluation.measures:
    result |= named.resolve('evaluation.measures', name, SUMMARY)(scored[aside:])
  return {name: float(value) for name, value in result.items()}


def reproduce(config: ml_collections.ConfigDict, workdir: Path, *, smoke: bool = False) -> dict[str, Any]:
  """Runs arms x seeds and tests the claims.

  Returns:
    What it wrote to report.json.

  Raises:
    InputError: a claim speaks of an arm that there is not, or the directory holds results of another config.
  """
  commit = _commit()  # of the code that runs, whatever changes meanwhile
  arms = {name: arm_config(config, overrides) for name, overrides in config.arms.items()}
  seeds = list(config.seeds)
  if smoke:
    arms, seeds = {name: _smoke(arm) for name, arm in arms.items()}, seeds[:2]
  for claim in config.claims:
    if unknown := named_arms(claim) - arms.keys():
      raise InputError(f"claims: there is no arm '{sorted(unknown)[0]}'; there are {', '.join(arms)}")
  for arm in arms.values():  # before anything is trained
    runner = named.resolve('runner', arm.runner, RUNNER) if arm.get('runner', '') else None
    for name in () if runner else arm.evaluation.measures:
      named.resolve('evaluation.measures', name, SUMMARY)
  (workdir / 'arms').mkdir(parents=True, exist_ok=True)
  found: dict[str, list[dict[str, float]]] = {}
  minutes = 0.0
  trained: dict[str, list[list[Scored]]] = {}  # the newest training alone: arms that differ in evaluation share it
  for name in sorted(arms, key=lambda name: _training(arms[name])):
    arm, path = arms[name], workdir / 'arms' / f'{name}.json'
    described = json.loads(json.dumps({**arm.to_dict(), **_NO_CLAIMS, 'seeds': seeds}))
    if path.exists():
      kept = json.loads(path.read_text())
      if kept['config'] != described:
        raise InputError(f'{path} holds results of another config: choose another --workdir')
    else:
      started = time.time()
      if arm.get('runner', ''):
        Console(stderr=True).print(f'{name}: {len(seeds)} seeds', highlight=False)
        measured = named.resolve('runner', arm.runner, RUNNER)(arm, seeds)
      else:
        key = _training(arm)
        if key not in trained:
          Console(stderr=True).print(f'{name}: {arm.train.steps} steps x {len(seeds)} seeds', highlight=False)
          trained = {key: train_seeds(arm, seeds)}
        measured = [measure(arm, scored) for scored in trained[key]]
      kept = dict(config=described, figures=measured, minutes=(time.time() - started) / 60)
      write_json(path, kept)
    found[name], minutes = kept['figures'], minutes + kept['minutes']

  verdicts = [check_claim(claim, found) for claim in config.claims]
  report = dict(
    claims=[verdict._asdict() for verdict in verdicts],
    arms={name: {figure: _mean(found[name], figure) for figure in sorted(set.intersection(*map(set, found[name])))} for name in arms},
    seeds=seeds,
    minutes=minutes,
    machine=_machine(),
    commit=commit,
    date=time.strftime('%Y-%m-%d'),
    smoke=smoke,
  )
  write_json(workdir / 'report.json', report)
  pairs = {f'{arm}/{figure}': pair for arm, measured in report['arms'].items() for figure, pair in measured.items()}
  write_json(workdir / 'result.json', {name + suffix: value for name, pair in pairs.items() for suffix, value in zip(('', '_se'), pair, strict=True)})
  if verdicts:
    figures.claims(found, [(verdict.claim, verdict.holds) for verdict in verdicts], workdir / 'claims.png')
  return report


_NO_CLAIMS = {'claims': None, 'arms': None}  # what a claim says does not change what was measured


def _training(config: ml_collections.ConfigDict) -> str:
  """All of a config that decides what is trained."""
  return json.dumps({**config.to_dict(), **_NO_CLAIMS, 'evaluation': None}, sort_keys=True)


def _smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  sizes = {'train.steps': 2, 'world.train_size': 200, 'world.eval_size': 40}
  if 'evaluation' in config:
    sizes['evaluation.validation'] = min(config.evaluation.validation, 10)
  sizes |= dict(config.get('smoke', {}))  # what else makes an arm of a runner short
  known = lambda part, leaf: part in config and leaf in config[part]  # a config on files has no world
  return arm_config(config, [(key, value) for key, value in sizes.items() if known(*key.split('.'))])


def _mean(seeds: Sequence[Mapping[str, float]], figure: str) -> tuple[float, float]:
  """Mean over seeds, and its standard error."""
  values = np.array([seed[figure] for seed in seeds])
  return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float('nan')


def _machine() -> str:
  device = jax.devices()[0]
  return f'{device.device_kind} x {jax.device_count()}, {_cores()} cores'


def _cores() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _commit() -> str:
  """Of the checkout that this file is in; '+' where it has changes, 'unknown' outside a checkout."""
  git = lambda *words: subprocess.run(['git', *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
  head = git('rev-parse', '--short', 'HEAD')
  return head.stdout.strip() + ('+' if git('status', '--porcelain', '--untracked-files=no').stdout else '') if not head.returncode else 'unknown'


def table(report: Mapping[str, Any]) -> Table:
  """The claims, a line each."""
  out = Table('claim', 'left', 'right', 'difference', 'p', 'paper', '', box=None, header_style='bold')
  for claim in report['claims']:
    verdict = Verdict(**claim)
    out.add_row(
      verdict.claim,
      f'{verdict.left:.3f}',
      f'{verdict.right:.3f}',
      f'{verdict.difference:+.3f} ± {verdict.error:.3f}',
      f'{verdict.p_value:.2g}',
      verdict.paper,
      'holds' if verdict.holds else 'FAILS',
    )
  return out


def define_flags() -> None:
  """Defines the flags."""
  config_flags.DEFINE_config_file('config', lock_config=True)
  flags.DEFINE_string('workdir', None, 'Directory of the results.', required=True)
  flags.DEFINE_bool('smoke', False, 'Two steps, two seeds, few records: to see that every arm runs. No claim is tested.')
  flags.DEFINE_string('record', None, 'Directory to write <system>.json to as well, the record that docs/systems.md is made of.')


def main() -> int:
  """Reproduces what the flags say."""
  config, smoke, record = flags.FLAGS.config, flags.FLAGS.smoke, flags.FLAGS.record
  report = reproduce(config, Path(flags.FLAGS.workdir), smoke=smoke)
  console = Console()
  (console if console.is_terminal else Console(width=200)).print(table(report))
  if record and not smoke:
    path = Path(record) / f'{config.system}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report)
  failed = [claim['claim'] for claim in report['claims'] if not claim['holds']]
  count = len(report['claims'])
  print(f'{count - len(failed)} of {count} claims hold; {report["minutes"]:.1f} minutes; figures are in {flags.FLAGS.workdir}')
  return CLAIMS_FAILED if failed and not smoke else 0


if __name__ == '__main__':
  define_flags()
  cli.run(main)
