"""Optimizes a policy against rewards: PPO, GRPO and their kin, GPO, and constrained methods.

  python -m experiments.optimize_policy --config=configs/grpo.py[:variant] --workdir=DIR [--config.key=value ...]

Writes DIR/config.json, metrics.jsonl (TRL's names), samples.jsonl, TensorBoard events, checkpoints, result.json and figures. The same command
resumes a run that was stopped. Where every reward runs on the device an iteration is one compiled function; functions of text are called between
sampling and update.
"""

from collections.abc import Mapping
import contextlib
import json
from pathlib import Path
import time
from typing import Any

from absl import flags
import jax
from jax.experimental import multihost_utils
import ml_collections
import numpy as np

from experiments import cli
from experiments.policy_setup import PolicySetup, setup
from experiments.train_reward import claim, define_flags, open_batches, open_writer
from rmjax.data import pipeline
from rmjax.data.records import Messages
from rmjax.errors import InputError
from rmjax.evaluation import figures
from rmjax.evaluation.overoptimization import read_curves
from rmjax.evaluation.overoptimization_figures import overoptimization_curves
from rmjax.policy.iteration import Metrics, sampling_key, Signals
from rmjax.rewards.functions import call_all
from rmjax.training import loop
from rmjax.training.checkpoints import Checkpoints
from rmjax.training.mesh import batch_sharding, own_rows, place, shard_batch, use_mesh
from rmjax.training.metrics import Mean, write_json
from rmjax.training.processes import is_first
from rmjax.training.saved import describe
from rmjax.training.step import TrainState
from rmjax.trees import Trees


def optimize(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
  """Trains, evaluates, and returns what it wrote to result.json."""
  started = time.time()
  run = setup(config)
  if run.rewards.on_text and jax.process_count() > 1:
    raise InputError(f'rewards.{next(iter(run.rewards.on_text))} is a function of text, which one process calls: train by one, or give rewards on the device')
  batches = open_batches(run, config)
  claim(workdir, config)
  if is_first():
    run.tokenizer.save(workdir / 'tokenizer')

  with use_mesh(run.mesh):
    state, layout = place(run.init(jax.random.key(config.seed)), run.mesh)
    sample, score, measure = jax.jit(run.sample), jax.jit(run.score), jax.jit(run.measure)
    update = jax.jit(run.update, donate_argnums=0, out_shardings=(layout, None))
    iterate = jax.jit(lambda *args: run.iterate(*args), donate_argnums=0, out_shardings=(layout, None, None, None))
    samples = workdir / 'samples.jsonl'

    def signals_of(params: Any, rollout: Trees, source: Any) -> Signals:
      found = score(params, rollout)
      if run.rewards.on_text:
        found |= text_signals(run, rollout, source, timeout=config.rewards_timeout)
      return {name: found[name] for name in run.rewards.weights}

    def step(state: TrainState, prompts: Trees) -> tuple[TrainState, Metrics]:
      number = int(state.step) + 1
      if run.rewards.on_text:
        rollout = sample(state.params, prompts, sampling_key(state))
        signals = signals_of(state.params, rollout, run.train_source)
        state, metrics = update(state, rollout, signals)
      else:
        state, metrics, rollout, signals = iterate(state, prompts)
      if config.train.samples and (number == 1 or number % config.train.log_every == 0):
        whole = multihost_utils.process_allgather((rollout, signals), tiled=True) if jax.process_count() > 1 else (rollout, signals)
        if is_first():
          write_samples(samples, run, *whole, step=number, most=config.train.samples)
      return state, metrics

    def evaluate(state: TrainState) -> dict[str, float]:
      mean, key = Mean(), jax.random.key(config.seed)  # the same draws at every evaluation
      for number, batch in enumerate(pipeline.eval_batches(run.eval_source, run.encode, **run.shape, own=own_rows(run.mesh, run.shape['rows']))):
        rollout = sample(state.params, shard_batch(batch.trees, run.mesh), jax.random.fold_in(key, number))
        mean.add(measure(state.params, rollout, signals_of(state.params, rollout, run.eval_source)))
      return {name: value for name, value in mean.means().items() if name != 'num_tokens'}

    # Resume
    checkpoints = Checkpoints(workdir, best=config.train.best, keep=config.train.keep)
    meta = {'config': config.to_dict(), 'decoder': describe(run.decoder)}
    if checkpoints.latest() is not None:
      state, meta = checkpoints.restore(state, batches)
    writer = open_writer(workdir, config, int(state.step))
    if is_first():
      cut_samples(samples, int(state.step))

    with contextlib.closing(checkpoints), contextlib.closing(writer):  # a save that was started is finished, whatever ends the loop
      state, last = loop.fit(
        state, step, batches, steps=config.train.steps, mesh=run.mesh, checkpoints=checkpoints, writer=writer, meta=meta, schedule=run.schedule,
        epoch_size=len(run.train_source), evaluate=evaluate,
        log_every=config.train.log_every, eval_every=config.train.eval_every, save_every=config.train.save_every,
      )  # fmt: skip

  capped = [name for name in run.constraints.names if last.get(f'constraints/{name}/capped', 0) >= 1]
  result = {**last, **{f'constraints/{name}/out_of_reach': 1.0 for name in capped}, 'seconds': time.time() - started}
  if not is_first():
    return result
  write_json(workdir / 'result.json', result)
  shown = ('reward', *(f'rewards/{name}/mean' for name in run.rewards.weights), 'objective/kl', 'completions/mean_length')
  figures.training_curves(workdir / 'metrics.jsonl', workdir / 'figures' / 'training.png', shown)
  if 'gold' in run.rewards.weights and config.reference == 'frozen':
    proxies = [name for name in run.rewards.weights if name != 'gold']
    curves = read_curves(workdir / 'metrics.jsonl', gold='gold', proxies=proxies)
    overoptimization_curves({'run': [curves]}, workdir / 'figures' / 'overoptimization.png', names=proxies)
  return result


def text_signals(run: PolicySetup, rollout: Trees, source: Any, *, timeout: float) -> dict[str, jax.Array]:
  """Rewards of a rollout's responses by the functions of text, [R, S, N]; NaN where a function does not apply or there is no response."""
  prompts, completions, columns, places = texts(run, rollout, source)
  answers = call_all(run.rewards.on_text, prompts, completions, columns, timeout=timeout)
  shape, found = rollout.response_ends.shape, {}
  for name, values in answers.items():
    whole = np.full(shape, np.nan, np.float32)
    whole[tuple(np.array(places).T)] = values
    found[name] = jax.device_put(whole, batch_sharding(run.mesh))
  return found


def texts(run: PolicySetup, rollout: Trees, source: Any) -> tuple[list, list, dict[str, list], list[tuple[int, int, int]]]:
  """(prompts, completions, columns, places in [R, S, N]) of the responses that are there, in a rollout as `generate` lays it out."""
  fields = rollout.tokens, rollout.response_ids, rollout.prompt_ends, rollout.response_ends, rollout.labels['index']
  tokens, ids, prompt_ends, ends, index = jax.device_get(fields)
  prompts, completions, rows, places = [], [], [], []
  for found in zip(*np.nonzero(ends >= 0), strict=True):
    row, slot, n = map(int, found)
    prompt: str | Messages = source[int(index[row, slot])].prompt
    response = tokens[row][ids[row] == slot * ends.shape[2] + n].tolist()
    if isinstance(prompt, str):  # what it adds to the prompt: alone it might lack the space that it begins with
      before = tokens[row][: prompt_ends[row, slot] + 1].tolist()
      text = run.tokenizer.decode(before + response)[len(run.tokenizer.decode(before)) :]
    else:
      text = run.tokenizer.decode(response)
    prompts.append(prompt)
    completions.append(text if isinstance(prompt, str) else [{'role': 'assistant', 'content': text}])
    rows.append(source.columns(int(index[row, slot])) if hasattr(source, 'columns') else {})
    places.append((row, slot, n))
  names = sorted({name for row in rows for name in row})
  return prompts, completions, {name: [row.get(name) for row in rows] for name in names}, places


def write_samples(path: Path, run: PolicySetup, rollout: Trees, signals: Signals, *, step: int, most: int) -> None:
  """Appends some of a step's responses to a JSON Lines file, with their rewards."""
  rollout, signals = jax.device_get((rollout, dict(signals)))
  few = lambda x: x[:most]
  rollout = jax.tree.map(few, rollout)
  prompts, completions, _, places = texts(run, rollout, run.train_source)
  with path.open('a', encoding='utf-8') as file:
    for prompt, completion, place in list(zip(prompts, completions, places, strict=True))[:most]:
      rewards = {name: None if np.isnan(values[place]) else float(values[place]) for name, values in signals.items()}
      tokens = int((rollout.response_ids[place[0]] == place[1] * rollout.response_ends.shape[2] + place[2]).sum())
      line = dict(step=step, prompt=prompt, completion=completion, tokens=tokens, finished=bool(rollout.labels['finished'][place]), rewards=rewards)
      file.write(json.dumps(line, ensure_ascii=False) + '\n')


def cut_samples(path: Path, step: int) -> None:
  """Leaves out the samples of later steps, since a resumed run writes them again."""
  if not path.exists():
    return
  lines = path.read_text(encoding='utf-8').splitlines()
  kept = [line for line in lines if (row := _parsed(line)) and row['step'] <= step]
  path.write_text(''.join(line + '\n' for line in kept), encoding='utf-8')


def _parsed(line: str) -> Mapping[str, Any] | None:
  try:
    return json.loads(line)
  except json.JSONDecodeError:  # cut off by a kill
    return None


def main() -> None:
  """Optimizes what the flags say, and prints the result's main figures."""
  result = optimize(flags.FLAGS.config, Path(flags.FLAGS.workdir))
  if not is_first():
    return
  shown = [name for name in ('reward', 'eval_reward', 'eval_objective/kl', 'completions/mean_length', 'tokens_per_second', 'seconds') if name in result]
  shown += [name for name in result if name.startswith('eval_rewards/') and name.endswith('/mean')]
  print('  '.join(f'{name} {result[name]:.4g}' for name in shown))
  for name in result:
    if name.endswith('/out_of_reach'):
      print(f"the multiplier of '{name.split('/')[1]}' ended at its cap: its threshold is out of reach")
  print(f'figures, samples.jsonl and result.json are in {flags.FLAGS.workdir}')


if __name__ == '__main__':
  define_flags()
  cli.run(main)
