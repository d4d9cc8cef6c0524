"""Trains a reward model: any head, any loss, from scratch or from a Hugging Face checkpoint.

  python -m experiments.train_reward --config=configs/bradley_terry.py --workdir=DIR [--config.key=value ...]

Writes DIR/config.json, metrics.jsonl, TensorBoard events, checkpoints, result.json and figures. The same command resumes a run that was stopped.
"""

from collections.abc import Iterator
import contextlib
import json
from pathlib import Path
import time
from typing import Any

from absl import flags
import jax
import ml_collections
from ml_collections import config_flags

from experiments import cli
from experiments.setup import setup
from rmjax import named
from rmjax.data import pipeline
from rmjax.errors import InputError
from rmjax.evaluation import figures
from rmjax.evaluation.scoring import score_records
from rmjax.training import loop
from rmjax.training.checkpoints import Checkpoints
from rmjax.training.mesh import own_rows, own_shards, place, shard_batch, use_mesh
from rmjax.training.metrics import Mean, Silent, write_json, Writer
from rmjax.training.processes import is_first
from rmjax.training.saved import describe
from rmjax.training.step import flat_metrics

NOT_OF_A_RUN = ('mesh.', 'arms.', 'claims', 'seeds', 'evaluation.')  # settings that may differ when a run is resumed
SUMMARY = 'rmjax.evaluation.summary:summary'


def train(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
  """Trains, evaluates, and returns what it wrote to result.json."""
  started = time.time()

  run = setup(config)
  measures = [named.resolve('evaluation.measures', name, SUMMARY) for name in config.evaluation.measures]  # before hours of training, not after
  batches = open_batches(run, config)
  claim(workdir, config)
  if is_first():
    run.tokenizer.save(workdir / 'tokenizer')

  with use_mesh(run.mesh):
    key = jax.random.key(config.seed)
    state, layout = place(run.init(key), run.mesh)
    step = jax.jit(run.step, donate_argnums=0, out_shardings=(layout, None))
    figures_of_batch = jax.jit(lambda params, batch: flat_metrics(*run.objective(params, batch, key, config.train.steps)))

    def evaluate(state) -> dict[str, float]:
      mean = Mean()
      for batch in pipeline.eval_batches(run.eval_source, run.encode, **run.shape, own=own_rows(run.mesh, run.shape['rows'])):
        mean.add(figures_of_batch(state.params, shard_batch(batch.trees, run.mesh)))
      return {name: value for name, value in mean.means().items() if name != 'num_tokens'}

    # Resume
    checkpoints = Checkpoints(workdir, best=config.train.best, keep=config.train.keep)
    meta = {'config': config.to_dict(), 'decoder': describe(run.decoder)}
    if checkpoints.latest() is not None:
      state, meta = checkpoints.restore(state, batches)
    writer = open_writer(workdir, config, int(state.step))

    with contextlib.closing(checkpoints), contextlib.closing(writer):  # a save that was started is finished, whatever ends the loop
      state, last = loop.fit(
        state, step, batches, steps=config.train.steps, mesh=run.mesh, checkpoints=checkpoints, writer=writer, meta=meta, schedule=run.schedule,
        epoch_size=len(run.train_source), evaluate=evaluate,
        log_every=config.train.log_every, eval_every=config.train.eval_every, save_every=config.train.save_every,
      )  # fmt: skip

    # Result
    records = (run.eval_source[i] for i in range(len(run.eval_source)))
    scored = list(score_records(run.model, state.params['reward'], records, run.encode_all, mesh=run.mesh, **run.shape))
  bad = {'train_bad_rows': len(run.train_source.bad), 'eval_bad_rows': len(run.eval_source.bad)}
  measured = {f'eval_{name}': value for measure in measures for name, value in measure(scored).items()}
  result = {**last, **measured, **bad, 'seconds': time.time() - started}
  if is_first():
    write_json(workdir / 'result.json', result)
    figures.training_curves(workdir / 'metrics.jsonl', workdir / 'figures' / 'training.png')
    figures.report(scored, workdir / 'figures')
  return result


def open_batches(run: Any, config: ml_collections.ConfigDict) -> pipeline.ShardedBatches:
  """The training data of a run that `setup` built: this process's part of every batch."""
  own = own_shards(run.mesh, run.shape['rows'], config.data.shards)
  return pipeline.ShardedBatches(run.train_source, run.encode, seed=config.seed, shards=config.data.shards, own=own, **run.shape)


def open_writer(workdir: Path, config: ml_collections.ConfigDict, step: int) -> Writer | Silent:
  """Where this process's figures go, from a step on."""
  wandb = {'project': config.wandb, 'config': config.to_dict()} if config.wandb else None
  return Writer(workdir, resume_step=step, wandb=wandb) if is_first() else Silent()


def claim(workdir: Path, config: ml_collections.ConfigDict) -> None:
  """Makes the directory a run of this config.

  Raises:
    InputError: it already holds a run of another. The mesh may change (a checkpoint restores onto any), and what is claimed or measured of it.
  """
  path = workdir / 'config.json'
  wanted = json.loads(config.to_json())
  if path.exists():
    there, here = (dict(_leaves(tree)) for tree in (json.loads(path.read_text()), wanted))
    for name in sorted(there.keys() | here.keys()):
      if not name.startswith(NOT_OF_A_RUN) and there.get(name) != here.get(name):
        raise InputError(f'{workdir} holds a run with config.{name} = {there.get(name)}, not {here.get(name)}: choose another --workdir, or pass the same')
  if is_first():
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def _leaves(tree: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  for name, item in tree.items():
    yield from _leaves(item, f'{prefix}{name}.') if isinstance(item, dict) else [(prefix + name, item)]


def define_flags() -> None:
  """Defines the flags; only a program that is run does, so that any number of them can be imported together."""
  config_flags.DEFINE_config_file('config', lock_config=True)
  flags.DEFINE_string('workdir', None, 'Directory of the run; where several processes share one, all must see it.', required=True)
  flags.DEFINE_string('distributed', '', "'auto' to train with the other processes of this launch, or HOST:PORT,INDEX,COUNT; see docs/launch.md.")


def main() -> None:
  """Trains what the flags say, and prints the result's main figures."""
  result = train(flags.FLAGS.config, Path(flags.FLAGS.workdir))
  figures_of = ('eval_accuracy', 'eval_accuracy_se', 'eval_bayes_accuracy', 'eval_gold_accuracy', 'eval_best_of_n_accuracy', 'tokens_per_second', 'seconds')
  if not is_first():
    return
  print('  '.join(f'{name} {result[name]:.4g}' for name in figures_of if name in result))
  print(f'figures and result.json are in {flags.FLAGS.workdir}')


if __name__ == '__main__':
  define_flags()
  cli.run(main)
