"""What reward_step, dpo_step and memory share: comparisons of responses to shared prompts, and a training step on them in rmjax, TRL and Tunix.

Each implementation runs in a process of its own, `python -m benchmarks.preference_steps serve NAME WORK`, in whatever interpreter has it; nothing but
the standard library and numpy is imported before that.

Tokens are counted as TRL has them: each response with its prompt, padding left out. rmjax computes fewer, since it holds a prompt once. Its own work is
counted from what it computes, padding left out (`flop`), and divided by the seconds of its step and the speed of large matrix products in the same
rounds: `fraction_of_peak`, or by seconds of CPU time both, which others on the machine disturb less: `cpu_fraction_of_peak`. Nothing is counted for
what is computed twice (logits and attention weights, in the backward pass), for norms, softmax, the optimiser or the reward head.
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import importlib.util
import json
import math
import os
from pathlib import Path
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np

from benchmarks import peers
from benchmarks.peers import Clock, HEADS, LAYERS, Lengths, LLAMA, Measured

MODULE = 'benchmarks.preference_steps'
MAKE = 'make'

PAIRS = 8  # comparisons of a batch, and the most that TRL takes at a time
MEDIAN, SIGMA, SHORTEST, LONGEST = 180, 0.6, 64, 512  # of the lengths of a response with its prompt, which are lognormal
FILL = 256  # a row's length is rounded up to a multiple of this, which leaves about the padding that batches of the data pipeline have (3 to 6 %)
CASES = [f'{ratio}:{responses}' for responses in (2, 8, 64) for ratio in ('0', '0.5', '1', '4')]
LEARNING_RATE, BETA, CLIP = 1e-5, 0.1, 1.0
ROPE_THETA = 1_000_000.0  # of policies: Tunix's Llama (0.1.7) has this one, whatever its config says


class Work(NamedTuple):
  """What a process is asked to do.

  Attributes:
    system: 'reward'; 'dpo', whose reference is computed in each step; or 'dpo_cached', whose reference was computed before.
    directory: where `make` has written the models, and where each implementation leaves what it found.
    lengths: of prompts and responses. Of responses 2i and 2i + 1 the former is preferred.
    columns: length of rmjax's rows; 0 for one row that holds everything.
    remat: of rmjax; 'full', where the backward pass computes each layer's activations anew, is gradient checkpointing in TRL.
  """

  system: str
  directory: str
  lengths: Lengths
  columns: int = 0
  remat: str = 'dots'


def realistic(ratio: float, responses: int) -> Lengths:
  """Lengths of a batch of `PAIRS` comparisons, or of one prompt's if those are more.

  The lengths of responses with their prompts are those that a sorted batch has in the mean of many, so that neither its total nor its longest is luck.

  Args:
    ratio: tokens of a prompt over the mean of its responses'. At 0 the prompt is one token, since something comes before a response.
    responses: to each prompt; even.
  """
  prompts = max(2 * PAIRS // responses, 1)
  rng = np.random.default_rng(0)
  drawn = np.clip(rng.lognormal(math.log(MEDIAN), SIGMA, (2000, prompts * responses)), SHORTEST, LONGEST)
  paths = rng.permutation(np.sort(drawn, -1).mean(0)).reshape(prompts, responses)
  found = np.maximum(np.round(paths / (1 + ratio) - (ratio == 0)), 1).astype(int)
  return [(max(round(ratio * float(row.mean())), 1), row.tolist()) for row in found]


def path_lengths(lengths: Lengths) -> list[int]:
  """Tokens of each response with its prompt: what TRL computes, but for padding."""
  return [prompt + response for prompt, responses in lengths for response in responses]


def tree_lengths(lengths: Lengths) -> list[int]:
  """Tokens of each prompt with all of its responses: what rmjax computes, but for padding."""
  return [prompt + sum(responses) for prompt, responses in lengths]


def flop(system: str, lengths: Lengths) -> float:
  """Floating-point operations of one step of rmjax, padding left out: of three forward passes; a reference computed in the step adds one."""
  return (4 if system == 'dpo' else 3) * peers.forward_flop(lengths, logits=system != 'reward')


def draw(lengths: Lengths) -> list[tuple[list[int], list[list[int]]]]:
  """Prompts and responses of such lengths, the same in every process."""
  rng = np.random.default_rng(1)
  tokens = lambda count: rng.integers(3, LLAMA['vocab_size'], count).tolist()
  return [(tokens(prompt), [tokens(response) for response in responses]) for prompt, responses in lengths]


def make(directory: str) -> None:
  """Writes a reward model with its tokenizer, a policy, and a reference that differs from it, in an interpreter with torch."""
  import torch

  from benchmarks import score_throughput

  score_throughput.make(os.path.join(directory, 'reward'))
  for seed, name in enumerate(('policy', 'reference')):
    torch.manual_seed(seed)
    model = peers.torch_llama()
    model.config.rope_parameters['rope_theta'] = ROPE_THETA
    model.save_pretrained(os.path.join(directory, name))


def ours(work: Work) -> Iterator[Measured]:
  """Steps of rmjax in this interpreter; compilation and the first step are not measured."""
  import jax
  import jax.numpy as jnp

  from rmjax.backbones.pretrained import read_config
  from rmjax.models import build
  from rmjax.training.mesh import one_device_mesh, use_mesh
  from rmjax.training.optimizers import make_optimizer, make_schedule
  from rmjax.training.reward import reward_objective
  from rmjax.training.saved import abstract_params, init_params, load_backbone
  from rmjax.training.step import init_state, make_step

  policy, reference = (os.path.join(work.directory, 'reward' if work.system == 'reward' else name) for name in ('policy', 'reference'))
  head = {
    'reward': dict(name='rmjax.heads.scalar:ScalarHead'),
    'dpo': dict(name='rmjax.heads.implicit:ImplicitRewardHead', beta=BETA, reference='frozen'),
    'dpo_cached': dict(name='rmjax.heads.implicit:ImplicitRewardHead', beta=BETA, reference='cached'),
  }[work.system]
  config, mesh = read_config(policy), one_device_mesh()
  built = functools.partial(build, config, dtype='float32', lora=dict(rank=0))
  model = built(head=head, remat=work.remat)
  abstract = abstract_params(model, mesh)
  batch, filled = packed(work)

  with use_mesh(mesh):
    if work.system == 'dpo_cached':
      scorer = built(head={**head, 'reference': 'none'}, remat='none')
      scores = jax.jit(scorer.apply)({'params': {'backbone': load_backbone(reference, abstract['backbone'])}}, batch)
      batch.labels['ref_log_probs'] = np.asarray(scores.log_probs)
    params = init_params(model, policy, mesh, jax.random.key(0))
    freeze = ''
    if 'reference' in params:
      params['reference'], freeze = load_backbone(reference, abstract['reference']), '^reference/'

    schedule = make_schedule(learning_rate=LEARNING_RATE, steps=1, schedule='constant', warmup=0.0)
    optimizers = {'reward': make_optimizer(params, schedule, options=dict(weight_decay=0.0), clip=CLIP, freeze=freeze)}
    losses = dict(preference=dict(name='rmjax.losses.preference:preference_cross_entropy', per='comparison'))
    step = jax.jit(make_step(reward_objective(model, losses, freeze=freeze), optimizers), donate_argnums=0)
    state, batch = init_state({'reward': params}, optimizers, jax.random.key(0)), jax.tree.map(jnp.asarray, batch)
    del params
    clock = Clock()
    compiled = step.lower(state, batch).compile()
    compile_s = clock.read().seconds

  def run() -> float:
    nonlocal state
    state, metrics = compiled(state, batch)
    total, count = jax.block_until_ready((state, metrics))[1]['loss']
    return float(total / count)

  rows, columns = batch.tokens.shape
  yield from _in_turns(run, work, 'rmjax', compile_s=compile_s, rows=rows, columns=columns, filled=filled)


def packed(work: Work) -> tuple[Any, float]:
  """The batch as rmjax's data pipeline lays it out, numpy, in as few rows as hold it; and what part of it is tokens."""
  from rmjax.data.pipeline import Packer
  from rmjax.data.records import pairwise_wins
  from rmjax.trees import branch

  sizes = tree_lengths(work.lengths)
  columns = work.columns or -(-sum(sizes) // FILL) * FILL
  if max(sizes) > columns:
    raise ValueError(f'a prompt with its responses takes {max(sizes)} tokens, and a row has {columns}: raise --length')
  count = max(len(responses) for _, responses in work.lengths)
  packer = Packer(rows=len(sizes), length=columns, slots=len(sizes), responses=count)
  wins = pairwise_wins(count, [(i, i + 1, 1.0) for i in range(0, count, 2)])
  labels = dict(wins=wins, ratings=np.full(count, np.nan, np.float32), weights=np.float32(1), margins=np.float32(0))
  for prompt, responses in draw(work.lengths):
    packer.add(branch(prompt, responses, labels))
  rows = sum(bool(row) for row in packer.rows)
  return packer.pack(slice(rows)), sum(sizes) / (rows * columns)


def trl(work: Work) -> Iterator[Measured]:
  """Steps of TRL in this interpreter: its trainer's loss, collator and optimiser; the first is not measured.

  More than `PAIRS` comparisons are taken in so many parts, whose gradients add up before the optimiser's step.
  """
  from datasets import Dataset
  import torch
  import transformers
  from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

  load = lambda kind, name: kind.from_pretrained(os.path.join(work.directory, name), dtype=torch.float32)
  tokenizer = transformers.AutoTokenizer.from_pretrained(os.path.join(work.directory, 'reward'))
  options = dict(
    output_dir=os.path.join(work.directory, 'trl'), use_cpu=True, bf16=False, report_to='none', save_strategy='no', disable_tqdm=True,
    learning_rate=LEARNING_RATE, weight_decay=0.0, max_length=None, gradient_checkpointing=False,
  )  # fmt: skip
  if work.system == 'reward':
    nothing = Dataset.from_list([dict(chosen_ids=[3], rejected_ids=[4])])  # a trainer wants a data set; its batches are made here
    model = load(transformers.AutoModelForSequenceClassification, 'reward')
    trainer = RewardTrainer(model=model, args=RewardConfig(**options), train_dataset=nothing, processing_class=tokenizer)
  else:
    nothing = Dataset.from_list([dict(prompt='w3', chosen=' w4', rejected=' w5')])
    model, reference = (load(transformers.AutoModelForCausalLM, name) for name in ('policy', 'reference'))
    trainer = DPOTrainer(model=model, ref_model=reference, args=DPOConfig(beta=BETA, **options), train_dataset=nothing, processing_class=tokenizer)
  optimizer = trainer.create_optimizer()

  examples = []
  for prompt, responses in draw(work.lengths):
    for chosen, rejected in zip(responses[::2], responses[1::2], strict=True):
      if work.system == 'reward':
        examples.append(dict(chosen_ids=prompt + chosen, rejected_ids=prompt + rejected))
      else:
        examples.append(dict(prompt_ids=prompt, chosen_ids=chosen, rejected_ids=rejected))
  batches = [trainer.data_collator(examples[start : start + PAIRS]) for start in range(0, len(examples), PAIRS)]
  filled = sum(int(batch['attention_mask'].sum()) for batch in batches) / sum(batch['input_ids'].numel() for batch in batches)
  if work.system == 'dpo_cached':
    for batch in batches:
      batch['ref_chosen_logps'], batch['ref_rejected_logps'] = trainer.compute_ref_log_probs(trainer.ref_model, batch)
    trainer.precompute_ref_logps, trainer.ref_model = True, None
    del reference
  if work.remat == 'full':
    model.gradient_checkpointing_enable(dict(use_reentrant=False))
  model.train()

  def run() -> float:
    total = 0.0
    for batch in batches:
      loss = trainer.compute_loss(model, dict(batch)) / len(batches)
      loss.backward()
      total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return total

  yield from _in_turns(run, work, 'trl', filled=filled)


def tunix(work: Work) -> Iterator[Measured]:
  """Steps of Tunix's DPOTrainer in this interpreter, its reference's forward pass included; compilation and the first step are not measured.

  Prompts are padded on the left and responses on the right to the longest, as Tunix wants them; parts are as for TRL.
  """
  from flax import nnx
  import jax
  import optax
  from tunix.models.llama3 import model as llama
  from tunix.models.llama3 import params as weights
  from tunix.sft.dpo import dpo_trainer

  config = llama.ModelConfig(
    num_layers=LAYERS, vocab_size=LLAMA['vocab_size'], embed_dim=LLAMA['hidden_size'], hidden_dim=LLAMA['intermediate_size'], num_heads=HEADS,
    head_dim=LLAMA['hidden_size'] // HEADS, num_kv_heads=HEADS, rope_theta=int(ROPE_THETA), norm_eps=1e-6,
  )  # fmt: skip
  mesh = jax.make_mesh((1, 1), ('fsdp', 'tp'), (jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:1])
  load = lambda name: weights.create_model_from_safe_tensors(os.path.join(work.directory, name), config, mesh, np.float32)
  pairs = [(prompt, responses[i], responses[i + 1]) for prompt, responses in draw(work.lengths) for i in range(0, len(responses), 2)]
  prompts, responses = max(len(prompt) for prompt, *_ in pairs), max(len(response) for _, *both in pairs for response in both)

  def pad(texts, length, left=False):
    ids, mask = np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), bool)
    for row, text in enumerate(texts):
      place = slice(length - len(text), length) if left else slice(len(text))
      ids[row, place], mask[row, place] = text, True
    return ids, mask

  def batch(part):
    prompt, chosen, rejected = zip(*part, strict=True)
    padded = dict(prompt=pad(prompt, prompts, left=True), chosen=pad(chosen, responses), rejected=pad(rejected, responses))
    return dpo_trainer.TrainingInput(**{f'{name}_{what}': x for name, both in padded.items() for what, x in zip(('ids', 'mask'), both, strict=True)})

  batches = [batch(pairs[start : start + PAIRS]) for start in range(0, len(pairs), PAIRS)]
  optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(LEARNING_RATE, weight_decay=0.0))
  parts = dict(gradient_accumulation_steps=len(batches)) if len(batches) > 1 else {}
  with mesh:
    options = dpo_trainer.DPOTrainingConfig(eval_every_n_steps=1 << 30, max_steps=1 << 30, beta=BETA, **parts)
    trainer = dpo_trainer.DPOTrainer(load('policy'), load('reference'), optimizer, options)
    step, _ = trainer.jit_train_and_eval_step()

    def run() -> float:
      losses = [step(trainer._prepare_inputs(batch))[0] for batch in batches]
      jax.block_until_ready(nnx.state(trainer.model))
      return float(np.mean(losses))

    filled = sum(path_lengths(work.lengths)) / (2 * len(pairs) * (prompts + responses))
    yield from _in_turns(run, work, 'tunix', filled=filled)


def _in_turns(run: Callable[[], float], work: Work, name: str, **found: float) -> Iterator[Measured]:
  """Runs of a step that returns its loss. Losses, and what else was found, are in the directory when a measurement is there."""
  losses = [run()]
  while True:
    clock = Clock()
    losses.append(run())
    measured = clock.read()
    (Path(work.directory) / f'{name}.json').write_text(json.dumps(dict(losses=losses, **found)))
    yield measured


IMPLEMENTATIONS = {'rmjax': ours, 'trl': trl, 'tunix': tunix}


def compare(case: str, work: Work, pythons: Mapping[str, str], rounds: int) -> None:
  """Runs one case of each implementation in turns, with matrix products between, and prints its lines.

  Args:
    case: what it is called.
    work: what is done.
    pythons: implementation -> interpreter, which has what that needs.
    rounds: measured steps of each.
  """
  runs = {name: peers.elsewhere(python, MODULE, name, json.dumps(work)) for name, python in pythons.items()}
  products = peers.elsewhere(pythons['rmjax'], 'benchmarks.peers')
  measured = peers.take_turns({**runs, 'matmul': products}, rounds)
  found = {name: json.loads((Path(work.directory) / f'{name}.json').read_text()) for name in pythons}
  for run in (*runs.values(), products):
    run.close()

  losses = {name: further.pop('losses') for name, further in found.items()}
  count, paths, products = flop(work.system, work.lengths), sum(path_lengths(work.lengths)), measured.pop('matmul')
  found['rmjax'] |= peers.part_of_peak([count] * rounds, measured['rmjax'], products) | dict(
    gflop=count / 1e9,
    share_of_tokens=sum(tree_lengths(work.lengths)) / paths,
  )
  peers.compare(case, paths, measured, **found)
  for name in losses.keys() - {'rmjax'}:
    difference = max(abs(a - b) for a, b in zip(losses['rmjax'], losses[name], strict=True))
    peers.report(case=case, against=name, largest_loss_difference=f'{difference:.1e}', first_loss=losses[name][0], last_loss=losses[name][-1])


def prepare(directory: str, python: str, cores: int) -> dict[str, str]:
  """Writes the models, and finds the interpreters of rmjax and TRL.

  Args:
    directory: where they go.
    python: an interpreter that has torch, transformers and TRL; '' for this one.
    cores: how many this and its processes use from now on; 0 for all.

  Raises:
    ValueError: none is given, and this one has not got them.
  """
  if cores:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
  if not python and not all(importlib.util.find_spec(name) for name in ('torch', 'transformers', 'trl')):
    raise ValueError('torch, transformers and trl are not here: give an interpreter that has them with --trl_python')
  python = python or sys.executable
  subprocess.run([python, '-m', MODULE, MAKE, directory], check=True, cwd=Path(__file__).parents[1])
  return {'rmjax': sys.executable, 'trl': python}


if __name__ == '__main__':
  if sys.argv[1] == MAKE:
    make(sys.argv[2])
  else:
    peers.serve(IMPLEMENTATIONS[sys.argv[2]](Work(*json.loads(sys.argv[3]))))
