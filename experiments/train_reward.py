"""Trains a reward model: any head, any loss, from scratch or from a Hugging Face checkpoint.

  python -m experiments.train_reward --config=configs/bradley_terry.py --workdir=DIR [--config.key=value ...]

Writes DIR/config.json, metrics.jsonl, TensorBoard events, checkpoints, result.json and figures. The same command resumes a run that was stopped.
"""

from collections.abc import Iterator
import contextlib
import functools
import json
from pathlib import Path
import pkgutil
import time
from typing import Any

from absl import flags
import jax
import ml_collections
from ml_collections import config_flags

from experiments import cli
from rmjax.backbones.lora import FROZEN
from rmjax.data import pipeline
from rmjax.data.sources import open_source
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.evaluation import figures
from rmjax.evaluation.scoring import score_records
from rmjax.evaluation.summary import summary
from rmjax.models import build
from rmjax.training import loop, optimizers
from rmjax.training.checkpoints import Checkpoints
from rmjax.training.mesh import check_fits, make_mesh, shard_batch, use_mesh
from rmjax.training.metrics import Mean, write_json, Writer
from rmjax.training.reward import reward_objective
from rmjax.training.saved import choose_decoder, describe, init_params
from rmjax.training.step import flat_metrics, init_state, make_step

_CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of the run.', required=True)


def train(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
  """Trains, evaluates, and returns what it wrote to result.json."""
  started = time.time()

  # Data
  train_source, eval_source, tokenizer = open_data(config)
  text = {name: config.data[name] for name in ('max_length', 'too_long', 'text_prompts')}
  encode = functools.partial(tokenizer.encode_record, **text, max_size=config.train.length, bad_rows=config.data.bad_rows)
  shape = dict(rows=config.train.rows, length=config.train.length, slots=config.train.slots, responses=config.train.responses)
  shard = {**shape, 'rows': config.train.rows // jax.process_count(), 'process_index': jax.process_index(), 'process_count': jax.process_count()}
  batches = pipeline.train_batches(train_source, encode, seed=config.seed, **shard)

  # Mesh and model
  mesh = make_mesh(**config.mesh)
  settings = config.model.to_dict()
  path = settings.pop('path')
  decoder = choose_decoder(path, settings.pop('decoder'), tokenizer=tokenizer, max_length=config.data.max_length)
  check_fits(mesh, rows=config.train.rows, accumulate=config.train.accumulate, length=config.train.length, decoder=decoder)
  model = build(decoder, **settings)
  claim(workdir, config)
  tokenizer.save(workdir / 'tokenizer')

  with use_mesh(mesh):
    # State
    key = jax.random.key(config.seed)
    params = {'reward': init_params(model, path, mesh, key)}
    options = config.optimizer.to_dict()
    if config.model.lora.rank:  # adapters and head train alone
      options['freeze'] = '|'.join(filter(None, (FROZEN, options['freeze'])))
    schedule = optimizers.make_schedule(steps=config.train.steps, **{name: options.pop(name) for name in ('learning_rate', 'schedule', 'warmup', 'final')})
    parts = {'reward': optimizers.make_optimizer(params['reward'], schedule, **options)}
    state = init_state(params, parts, key)

    # Step and evaluation
    objective = reward_objective(model, config.losses.to_dict(), freeze=options['freeze'])
    step = jax.jit(make_step(objective, parts, accumulate=config.train.accumulate), donate_argnums=0)
    measure = jax.jit(lambda params, batch: flat_metrics(*objective(params, batch, key, 0)))

    def evaluate(state) -> dict[str, float]:
      mean = Mean()
      for batch in pipeline.eval_batches(eval_source, encode, **shard):
        mean.add(measure(state.params, shard_batch(batch.trees, mesh)))
      return {name: value for name, value in mean.means().items() if name != 'num_tokens'}

    # Resume
    checkpoints = Checkpoints(workdir, best=config.train.best, keep=config.train.keep)
    meta = {'config': config.to_dict(), 'decoder': describe(decoder)}
    if checkpoints.latest() is not None:
      state, meta = checkpoints.restore(state, batches)
    wandb = {'project': config.wandb, 'config': config.to_dict()} if config.wandb else None
    writer = Writer(workdir, resume_step=int(state.step), wandb=wandb)

    with contextlib.closing(checkpoints), contextlib.closing(writer):  # a save that was started is finished, whatever ends the loop
      state, last = loop.fit(
        state, step, batches, steps=config.train.steps, mesh=mesh, checkpoints=checkpoints, writer=writer, meta=meta, schedule=schedule,
        epoch_size=len(train_source), evaluate=evaluate,
        log_every=config.train.log_every, eval_every=config.train.eval_every, save_every=config.train.save_every,
      )  # fmt: skip

    # Result
    scored = list(score_records(model, state.params['reward'], (eval_source[i] for i in range(len(eval_source))), encode, mesh=mesh, **shape))
  bad = {'train_bad_rows': len(train_source.bad), 'eval_bad_rows': len(eval_source.bad)}
  result = {**last, **{f'eval_{name}': value for name, value in summary(scored).items()}, **bad, 'seconds': time.time() - started}
  write_json(workdir / 'result.json', result)
  figures.training_curves(workdir / 'metrics.jsonl', workdir / 'figures' / 'training.png')
  figures.report(scored, workdir / 'figures')
  return result


def open_data(config: ml_collections.ConfigDict) -> tuple[Any, Any, Tokenizer]:
  """Training records, evaluation records and the tokenizer: from files, or from the config's world where it names none.

  Raises:
    InputError: neither is given, or one cannot be read.
  """
  if config.data.train and config.data.eval:
    columns = dict(pair.split('=', 1) for pair in config.data.columns.split(',') if '=' in pair)
    sources = [open_source(files, columns=columns, bad_rows=config.data.bad_rows) for files in (config.data.train, config.data.eval)]
    path = config.data.tokenizer or config.model.path
    if not path:
      raise InputError('config.data.tokenizer is empty: give a directory with a tokenizer.json, or a config.model.path that has one')
  elif config.world.name:
    world = config.world.to_dict()
    make, sizes = pkgutil.resolve_name(world.pop('name')), {split: world.pop(f'{split}_size') for split in ('train', 'eval')}
    sources = [make(split=split, seed=config.seed, size=size, **world) for split, size in sizes.items()]
    path = config.data.tokenizer or sources[0].tokenizer_path
  else:
    missing = 'train' if not config.data.train else 'eval'
    raise InputError(f'config.data.{missing} is empty: give --config.data.{missing}=FILE (JSON Lines, Parquet or tfds:NAME)')
  return *sources, Tokenizer.load(path)


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


def _leaves(tree: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  for name, item in tree.items():
    yield from _leaves(item, f'{prefix}{name}.') if isinstance(item, dict) else [(prefix + name, item)]


def main() -> None:
  """Trains what the flags say, and prints the result's main figures."""
  result = train(_CONFIG.value, Path(_WORKDIR.value))
  figures_of = ('eval_accuracy', 'eval_accuracy_se', 'eval_bayes_accuracy', 'eval_gold_accuracy', 'eval_best_of_n_accuracy', 'tokens_per_second', 'seconds')
  print('  '.join(f'{name} {result[name]:.4g}' for name in figures_of if name in result))
  print(f'figures and result.json are in {_WORKDIR.value}')


if __name__ == '__main__':
  cli.run(main)
