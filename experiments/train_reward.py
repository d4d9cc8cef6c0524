"""Trains a reward model: any head, any loss, from scratch or from a Hugging Face checkpoint.

  python -m experiments.train_reward --config=configs/bradley_terry.py --workdir=DIR [--config.key=value ...]

Writes DIR/config.json, metrics.jsonl, TensorBoard events, checkpoints, result.json and figures. The same command resumes a run that was stopped.
"""

import functools
import json
from pathlib import Path
import time
from typing import Any

from absl import flags
import jax
import ml_collections
from ml_collections import config_flags

from experiments import cli
from rmjax.data import pipeline
from rmjax.errors import InputError
from rmjax.evaluation import figures
from rmjax.evaluation.scoring import score_source
from rmjax.evaluation.summary import summary
from rmjax.models import build
from rmjax.training import loop, optimizers
from rmjax.training.checkpoints import Checkpoints
from rmjax.training.mesh import check_fits, make_mesh, shard_batch
from rmjax.training.metrics import Mean, write_json, Writer
from rmjax.training.reward import reward_objective
from rmjax.training.saved import init_params, open_data
from rmjax.training.step import flat_metrics, init_state, make_step

_CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run.', required=True)


def train(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
  """Trains, evaluates, and returns what it wrote to result.json."""
  started = time.time()
  claim(workdir, config)

  # Data
  tokenizer, train_source, eval_source = open_data(config)
  encode = functools.partial(tokenizer.encode_record, max_length=config.data.max_length, too_long=config.data.too_long)
  shape = dict(
    rows=config.train.rows // jax.process_count(),
    length=config.train.length,
    slots=config.train.slots,
    responses=config.train.responses,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  batches = pipeline.train_batches(train_source, encode, seed=config.seed, **shape)

  # Mesh, model, state
  mesh = make_mesh(**config.mesh)
  model = build(**config.model, vocab_size=tokenizer.vocab_size, max_length=config.data.max_length)
  check_fits(mesh, rows=config.train.rows, accumulate=config.train.accumulate, length=config.train.length, decoder=model.backbone.config)
  jax.set_mesh(mesh)
  key = jax.random.key(config.seed)
  params = {'reward': init_params(model, config.model.path, mesh, key)}
  options = config.optimizer.to_dict()
  schedule = optimizers.make_schedule(steps=config.train.steps, **{name: options.pop(name) for name in ('learning_rate', 'schedule', 'warmup', 'final')})
  parts = {'reward': optimizers.make_optimizer(params['reward'], schedule, **options)}
  state = init_state(params, parts, key)

  # Step and evaluation
  objective = reward_objective(model, config.losses)
  step = jax.jit(make_step(objective, parts, accumulate=config.train.accumulate), donate_argnums=0)
  measure = jax.jit(lambda params, batch: flat_metrics(*objective(params, batch, key, 0)))

  def evaluate(state) -> dict[str, float]:
    mean = Mean()
    for batch in pipeline.eval_batches(eval_source, encode, **shape):
      mean.add(measure(state.params, shard_batch(batch.trees, mesh)))
    means = mean.means()
    means.pop('num_tokens')
    return means

  # Resume
  checkpoints = Checkpoints(workdir, best=config.train.best, keep=config.train.keep)
  meta = {'config': config.to_dict()}
  if checkpoints.latest() is not None:
    state, meta = checkpoints.restore(state, batches)
  writer = Writer(workdir, resume_step=int(state.step), wandb=config.wandb and {'project': config.wandb, 'config': config.to_dict()})

  state, last = loop.fit(
    state, step, batches, mesh=mesh, checkpoints=checkpoints, writer=writer, meta=meta, schedule=schedule, epoch_size=len(train_source),
    evaluate=evaluate, steps=config.train.steps, log_every=config.train.log_every, eval_every=config.train.eval_every, save_every=config.train.save_every,
  )  # fmt: skip
  checkpoints.close()
  writer.close()

  # Result
  scored = list(score_source(model, state.params['reward'], eval_source, encode, mesh=mesh, **shape))
  bad = {'train_bad_rows': len(train_source.bad), 'eval_bad_rows': len(eval_source.bad)}
  result = {**last, **{f'eval_{name}': value for name, value in summary(scored).items()}, **bad, 'seconds': time.time() - started}
  write_json(workdir / 'result.json', result)
  figures.training_curves(workdir / 'metrics.jsonl', workdir / 'figures' / 'training.png')
  figures.report(scored, workdir / 'figures')
  return result


def claim(workdir: Path, config: ml_collections.ConfigDict) -> None:
  """Makes the directory a run of this config.

  Raises:
    InputError: it already holds a run of another. The mesh may change: a checkpoint restores onto any.
  """
  path = workdir / 'config.json'
  wanted = json.loads(config.to_json())
  if path.exists():
    there, here = (dict(_leaves(tree)) for tree in (json.loads(path.read_text()), wanted))
    for name in sorted(there.keys() | here.keys()):
      if not name.startswith('mesh.') and there.get(name) != here.get(name):
        raise InputError(f'{workdir} holds a run with config.{name} = {there.get(name)}, not {here.get(name)}: choose another --workdir, or pass the same')
  workdir.mkdir(parents=True, exist_ok=True)
  write_json(path, wanted)


def _leaves(tree: Any, prefix: str = ''):
  if isinstance(tree, dict):
    for name, item in tree.items():
      yield from _leaves(item, f'{prefix}.{name}' if prefix else name)
  else:
    yield prefix, tree


def main() -> None:
  """Trains what the flags say, and prints the result's main figures."""
  result = train(_CONFIG.value, Path(_WORKDIR.value))
  accuracy, error = result['eval_accuracy'], result['eval_accuracy_se']
  print(f'eval accuracy {accuracy:.4f} +- {error:.4f} in {result["seconds"]:.0f} s; figures and result.json in {_WORKDIR.value}')


if __name__ == '__main__':
  cli.run(main)
