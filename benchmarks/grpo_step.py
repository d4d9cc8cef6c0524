"""The update of GRPO beside TRL's GRPOTrainer: eight responses to each of eight prompts, one gradient step.

  python -m benchmarks.grpo_step [--cases=64:64,256:64] [--rounds=5] [--trl_python=PYTHON] [--cores=1]

One JSON line a case and implementation. A Llama of 25M parameters in float32; a case is the tokens of each prompt and those of each response; no KL
penalty. Each implementation runs in a process of its own, in turns, so that what else the machine does falls on both, and its largest memory is
its own, sampling included. Tokens are counted as TRL has them, each response with its prompt: a tree holds the prompt once, so that rmjax computes
fewer. What it computes, three forward passes, is set against the speed of large matrix products in the same rounds (`fraction_of_peak`). TRL's step
is timed without its generation and scoring; both update the policy that sampled, so neither computes the old log-probabilities again. PYTHON is an
interpreter that has torch, transformers and trl; by default this one, if it has them.
"""

from collections.abc import Iterator
import importlib.util
import os
import queue
import sys
import tempfile
import threading

from benchmarks import peers
from benchmarks.peers import Clock, LLAMA, measure, Measured

CASES = ['64:64', '256:64']
PROMPTS, RESPONSES = 8, 8
CHUNK = 64  # columns whose logits are held at a time


def sizes(case: str) -> tuple[int, int]:
  """Tokens of a prompt and of a response."""
  length, new = map(int, case.split(':'))
  return length, new


def trl(case: str) -> Iterator[Measured]:
  """Updates of TRL's trainer in this interpreter; the first is not measured."""
  from datasets import Dataset
  import numpy as np
  from tokenizers import models, pre_tokenizers, Tokenizer
  from transformers import PreTrainedTokenizerFast, TrainerCallback
  from trl import GRPOConfig, GRPOTrainer

  length, new = sizes(case)
  vocabulary = {'<pad>': 0, '<s>': 1, '</s>': 2, **{f'w{i}': i for i in range(3, LLAMA['vocab_size'])}}
  words = Tokenizer(models.WordLevel(vocabulary, unk_token='<pad>'))
  words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token='<pad>', bos_token='<s>', eos_token='</s>')
  rng = np.random.default_rng(0)
  text = lambda: ' '.join(f'w{i}' for i in rng.integers(3, LLAMA['vocab_size'], length))
  turns, answers, generation = queue.Queue(), queue.Queue(), []

  class InTurns(TrainerCallback):
    def on_step_begin(self, *_, **__):
      turns.get()
      self.clock = Clock()

    def on_step_end(self, *_, **__):
      whole, sampled = self.clock.read(), generation.pop()
      answers.put(whole._replace(seconds=whole.seconds - sampled.seconds, cpu_seconds=whole.cpu_seconds - sampled.cpu_seconds))

  class Timed(GRPOTrainer):
    def _generate_and_score_completions(self, *arguments, **options):
      clock = Clock()
      out = super()._generate_and_score_completions(*arguments, **options)
      generation.append(clock.read())
      return out

  def different_words(completions, **_):
    return [float(len(set(text.split()))) for text in completions]

  options = GRPOConfig(
    output_dir=os.path.join(tempfile.gettempdir(), 'grpo_step'), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to='none', save_strategy='no',
    logging_strategy='no', disable_tqdm=True, learning_rate=1e-6, lr_scheduler_type='constant', max_grad_norm=1.0, dataloader_pin_memory=False,
    per_device_train_batch_size=PROMPTS * RESPONSES, num_generations=RESPONSES, max_completion_length=new, beta=0.0,
    generation_kwargs={'min_new_tokens': new, 'top_k': 0},
  )  # fmt: skip
  trainer = Timed(
    model=peers.torch_llama(), reward_funcs=different_words, args=options, train_dataset=Dataset.from_list([{'prompt': text()} for _ in range(50 * PROMPTS)]),
    processing_class=tokenizer, callbacks=[InTurns()],
  )  # fmt: skip
  threading.Thread(target=trainer.train, daemon=True).start()
  for run in range(1 << 30):
    turns.put(None)
    measured = answers.get()
    if run:
      yield measured


def ours(case: str) -> Iterator[Measured]:
  """Updates of rmjax in this interpreter, all of one rollout; what comes first is seconds of compilation, and no update."""
  import functools

  import jax
  import jax.numpy as jnp
  import numpy as np

  from rmjax.decoding.generate import generate
  from rmjax.policy import iteration
  from rmjax.policy.algorithm import Algorithm
  from rmjax.policy.log_probs import token_log_probs
  from rmjax.policy.objective import policy_objective
  from rmjax.training.optimizers import make_optimizer, make_schedule
  from rmjax.training.step import init_state, make_step

  length, new = sizes(case)
  decoder, params = peers.decoder_and_params(remat='dots')
  prompts = np.random.default_rng(0).integers(3, LLAMA['vocab_size'], (PROMPTS, length)).astype(np.int32)
  lengths = np.full(PROMPTS, length, np.int32)
  rollout = jax.jit(functools.partial(generate, decoder, responses=RESPONSES, max_new_tokens=new))(params, prompts, lengths, jax.random.key(0))
  signals = {'reward': jax.random.normal(jax.random.key(1), rollout.response_ends.shape)}

  log_probs_of = functools.partial(token_log_probs, decoder, chunk=CHUNK)
  algorithm = Algorithm()
  optimizer = make_optimizer(params, make_schedule(learning_rate=1e-6, steps=1000, schedule='constant', warmup=0.0))
  by_part = {'policy': optimizer}
  step = make_step(policy_objective(algorithm, log_probs_of, length=new), by_part)
  prepare = iteration.make_prepare(algorithm, log_probs_of, length=new)
  update = jax.jit(iteration.make_update(algorithm, prepare, step, prompts=PROMPTS), donate_argnums=0)
  scalars = dict(kl_coefficient=jnp.zeros(()), weights=jnp.ones(1))
  state = init_state({'policy': params, 'scalars': scalars}, by_part, jax.random.key(2))
  clock = Clock()
  compiled = update.lower(state, rollout, signals).compile()
  yield clock.read()

  def run():
    nonlocal state
    state, _ = compiled(state, rollout, signals)
    jax.block_until_ready(state)

  run()
  while True:
    yield measure(run)


IMPLEMENTATIONS = {'rmjax': ours, 'trl': trl}


def main(_: list[str]) -> None:
  """Runs what the flags say."""
  if flags.FLAGS.cores:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.FLAGS.cores])  # other processes inherit it
  here = all(importlib.util.find_spec(name) for name in ('torch', 'transformers', 'trl'))
  pythons = {'rmjax': sys.executable, 'trl': flags.FLAGS.trl_python or (sys.executable if here else '')}
  for case in flags.FLAGS.cases:
    runs = {name: peers.elsewhere(python, 'benchmarks.grpo_step', name, case) for name, python in pythons.items() if python}
    compile_s, rounds = next(runs['rmjax']).seconds, flags.FLAGS.rounds
    products = peers.elsewhere(sys.executable, 'benchmarks.peers')
    measured = peers.take_turns({**runs, 'matmul': products}, rounds)
    length, new = sizes(case)
    count = 3 * peers.forward_flop([(length, [new] * RESPONSES)] * PROMPTS, logits=True)
    found = peers.part_of_peak([count] * rounds, measured['rmjax'], measured.pop('matmul'))
    peers.compare(case, PROMPTS * RESPONSES * (length + new), measured, rmjax=dict(compile_s=compile_s, gflop=count / 1e9, **found))
    for run in (*runs.values(), products):
      run.close()


if __name__ == '__main__':
  if sys.argv[1:2] == [peers.SERVE]:
    peers.serve(IMPLEMENTATIONS[sys.argv[2]](sys.argv[3]))
  else:
    from absl import app, flags

    flags.DEFINE_list('cases', CASES, 'Tokens of a prompt and of a response.')
    flags.DEFINE_integer('rounds', 5, 'Times that each is run.')
    flags.DEFINE_integer('cores', 0, 'How many to use; 0 for all.')
    flags.DEFINE_string('trl_python', '', 'An interpreter with torch, transformers and trl.')
    app.run(main)
