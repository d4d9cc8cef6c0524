"""Steps of published sizes on one accelerator, beside transformers on the same card: reward model, DPO, GRPO's update, generation; and whether bfloat16
gives what float32 gives.

  python -m benchmarks.accelerator [--shapes=llama3_1b,qwen3_8b] [--cases=numerics,reward,dpo,grpo,generate] [--torch_python=PYTHON] [--rounds=5]

Random weights in the shapes of configs/large.py, bfloat16 products, float32 parameters. Texts have lognormal lengths (median 600, 64 to 2,048), two
responses to a prompt of their mean length; rmjax packs them into rows of 4,096, transformers pads them. Up to 3 billion parameters all are trained, with
AdamW; from there on adapters of rank 16, in both. Tokens are counted as a peer has them, each response with its prompt, without padding; `mfu` is of
what rmjax computes, padding left out: 6 FLOPs a parameter (4 where adapters alone are trained) and token of a tree, attention to ancestors, nothing
recomputed, over the card's published peak. One JSON line a case and implementation, each a process of its own, in turns. PYTHON is an interpreter with
torch and transformers.

Not measured by us on any accelerator yet: tried on a CPU, with --shapes=tiny.
"""

from collections.abc import Iterator
import functools
import math
import sys
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.peers import Measured, SERVE

MODULE = 'benchmarks.accelerator'
MEDIAN, SIGMA, SHORTEST, LONGEST = 600, 0.6, 64, 2048
ROW, ROWS = 4096, 8  # of a training batch
PROMPTS, RESPONSES, NEW, PROMPT = 8, 8, 256, 256  # of generation and of GRPO's rollouts
TINY = dict(vocab_size=512, hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2)
ADAPTERS_FROM = 3e9
LORA = dict(rank=16, alpha=32.0, modules='.*/(query|key|value|output|gate|up|down)$')
PEAKS = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12, 'TPU v5p': 459e12, 'TPU v5 lite': 197e12, 'TPU v6 lite': 918e12}  # bfloat16, dense
CASES = ('numerics', 'reward', 'dpo', 'grpo', 'generate')


def sizes(shape: str) -> dict[str, Any]:
  """Fields of `DecoderConfig`."""
  if shape == 'tiny':
    return TINY
  from configs import large

  return large.SHAPES[shape]


def scale(shape: str) -> int:
  """What lengths are divided by: those of `tiny` are an eighth."""
  return 8 if shape == 'tiny' else 1


def parameters(shape: str) -> int:
  """In matrices of the layers."""
  c = sizes(shape)
  head = c.get('head_dim') or c['hidden_size'] // c['num_heads']
  attention = 2 * c['hidden_size'] * head * (c['num_heads'] + c['num_kv_heads'])
  return c['num_layers'] * (attention + 3 * c['hidden_size'] * c['intermediate_size'])


def pairs(shape: str) -> list[tuple[list[int], list[list[int]]]]:
  """Prompts and two responses each, as many as fill the rows."""
  rng, by = np.random.default_rng(0), scale(shape)
  tokens = lambda count: rng.integers(3, sizes(shape)['vocab_size'], count).tolist()
  room, found = [ROW // by] * ROWS, []
  while True:
    lengths = np.clip(rng.lognormal(math.log(MEDIAN), SIGMA, 2), SHORTEST, LONGEST) / by / 2
    prompt, *responses = (max(int(n), 1) for n in (lengths.mean(), *lengths))
    place = next((i for i, free in enumerate(room) if free >= prompt + sum(responses)), None)
    if place is None:
      return found
    room[place] -= prompt + sum(responses)
    found.append((tokens(prompt), [tokens(n) for n in responses]))


def ours(case: str, shape: str) -> Iterator[Measured]:
  """Runs of rmjax; compilation and the first are not measured."""
  import jax
  import jax.numpy as jnp

  from rmjax.backbones.decoder import DecoderConfig
  from rmjax.data.pipeline import Packer
  from rmjax.data.records import pairwise_wins
  from rmjax.models import build
  from rmjax.training.mesh import one_device_mesh, place, use_mesh
  from rmjax.training.optimizers import make_optimizer, make_schedule
  from rmjax.training.reward import reward_objective
  from rmjax.training.saved import init_params
  from rmjax.training.step import init_state, make_step
  from rmjax.trees import branch

  config, mesh, lora = DecoderConfig(**sizes(shape)), one_device_mesh(), LORA if parameters(shape) > ADAPTERS_FROM else dict(rank=0)
  schedule = make_schedule(learning_rate=1e-5, steps=1, schedule='constant', warmup=0.0)
  if case in ('grpo', 'generate'):
    yield from _policy(case, config, shape, schedule)
  name = 'rmjax.heads.implicit:ImplicitRewardHead' if case == 'dpo' else 'rmjax.heads.scalar:ScalarHead'
  model = build(config, dtype='bfloat16', remat='full', head=dict(name=name), lora=lora)
  packer = Packer(rows=ROWS, length=ROW // scale(shape), slots=32, responses=2)
  wins = pairwise_wins(2, [(0, 1, 1.0)])
  labels = dict(wins=wins, ratings=np.full(2, np.nan, np.float32), weights=np.float32(1), margins=np.float32(0))
  for prompt, responses in pairs(shape):
    packer.add(branch(prompt, responses, labels))
  batch = jax.tree.map(jnp.asarray, packer.pack())
  with use_mesh(mesh):
    params = init_params(model, '', mesh, jax.random.key(0))
    if case == 'numerics':
      _numerics(model, params, batch)
      raise SystemExit
    freeze = '|'.join(filter(None, ('^reference/' if 'reference' in params else '', '^(?!.*_lora_).*$' if lora['rank'] else '')))
    optimizers = {'reward': make_optimizer(params, schedule, freeze=freeze)}
    losses = dict(preference=dict(name='rmjax.losses.preference:preference_cross_entropy', per='comparison'))
    state, layout = place(init_state({'reward': params}, optimizers, jax.random.key(0)), mesh)
    step = jax.jit(make_step(reward_objective(model, losses, freeze=freeze), optimizers), donate_argnums=0, out_shardings=(layout, None))

    def run() -> None:
      nonlocal state
      state, _ = jax.block_until_ready(step(state, batch))

    run()
    while True:
      yield peers.measure(run)._replace(peak_mb=_device_peak())


def _device_peak() -> float:
  """MB of the accelerator's memory; of the process where the device does not say."""
  import jax

  stats = jax.devices()[0].memory_stats()
  return stats['peak_bytes_in_use'] / 2**20 if stats else peers.Clock().read().peak_mb


def _numerics(model: Any, params: Any, batch: Any) -> None:
  """Prints how far rewards and the gradient's norm in bfloat16 are from float32, on this device."""
  import jax
  import jax.numpy as jnp
  import optax

  @functools.partial(jax.jit, static_argnums=0)
  def found(model, params):
    def loss(params):
      rewards = model.apply({'params': params}, batch)
      present = batch.response_ends >= 0
      return -jnp.mean(jax.nn.log_sigmoid(rewards[..., 0] - rewards[..., 1]), where=present.all(-1)), (rewards, present)

    (value, (rewards, present)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return value, rewards, present, optax.tree.norm(gradient)

  half, exact = (found(model.clone(backbone=model.backbone.clone(dtype=dtype)), params) for dtype in (jnp.bfloat16, jnp.float32))
  present = np.asarray(exact[2])
  spread = float(np.std(np.asarray(exact[1])[present]))
  error = float(np.abs(np.asarray(half[1]) - np.asarray(exact[1]))[present].max())
  peers.report(case='numerics', loss=float(exact[0]), loss_bfloat16=float(half[0]), reward_std=spread, largest_reward_error=error)
  peers.report(case='numerics', gradient_norm=float(exact[3]), gradient_norm_bfloat16=float(half[3]))


def _policy(case: str, config: Any, shape: str, schedule: Any) -> Iterator[Measured]:
  import jax
  import jax.numpy as jnp

  from rmjax.backbones.decoder import Decoder
  from rmjax.backbones.lora import add_lora, FROZEN, merge_lora
  from rmjax.decoding.generate import generate
  from rmjax.policy import iteration
  from rmjax.policy.algorithm import Algorithm
  from rmjax.policy.log_probs import token_log_probs
  from rmjax.policy.models import LanguageModel
  from rmjax.policy.objective import policy_objective
  from rmjax.training.mesh import one_device_mesh, place
  from rmjax.training.optimizers import make_optimizer
  from rmjax.training.saved import init_params
  from rmjax.training.step import init_state, make_step

  plain, lora = Decoder(config, dtype=jnp.bfloat16, remat='full'), parameters(shape) > ADAPTERS_FROM
  decoder = add_lora(plain, **LORA) if lora else plain
  params = init_params(LanguageModel(decoder), '', one_device_mesh(), jax.random.key(0))
  length, new = PROMPT // scale(shape), NEW // scale(shape)
  prompts = np.random.default_rng(0).integers(3, config.vocab_size, (PROMPTS, length)).astype(np.int32)
  merged = lambda params: merge_lora(params['backbone'], alpha=LORA['alpha']) if lora else params['backbone']
  sample = jax.jit(
    lambda params, key: generate(plain, merged(params), prompts, np.full(PROMPTS, length, np.int32), key, responses=RESPONSES, max_new_tokens=new)
  )  # fmt: skip
  if case == 'generate':
    for i in range(1 << 30):
      measured = peers.measure(lambda i=i: jax.block_until_ready(sample(params, jax.random.key(i))))
      if i:
        yield measured._replace(peak_mb=_device_peak())
  rollout = sample(params, jax.random.key(0))
  signals = {'reward': jax.random.normal(jax.random.key(1), rollout.response_ends.shape)}
  log_probs_of = lambda params, batch: token_log_probs(decoder, params['backbone'], batch, chunk=256)
  by_part = {'policy': make_optimizer(params, schedule, freeze=FROZEN if lora else '')}
  step = make_step(policy_objective(Algorithm(), log_probs_of, length=new), by_part)
  prepare = iteration.make_prepare(Algorithm(), log_probs_of, length=new)
  scalars = dict(kl_coefficient=jnp.zeros(()), weights=jnp.ones(1))
  state, layout = place(init_state({'policy': params, 'scalars': scalars}, by_part, jax.random.key(2)), one_device_mesh())
  update = jax.jit(iteration.make_update(Algorithm(), prepare, step, prompts=PROMPTS), donate_argnums=0, out_shardings=(layout, None))

  def run() -> None:
    nonlocal state
    state, _ = jax.block_until_ready(update(state, rollout, signals))

  run()
  while True:
    yield peers.measure(run)._replace(peak_mb=_device_peak())


def hugging_face(case: str, shape: str) -> Iterator[Measured]:
  """Runs of transformers: a step of training on padded pairs, or generation."""
  import torch
  import transformers

  c, device = dict(sizes(shape)), 'cuda' if torch.cuda.is_available() else 'cpu'
  family = transformers.Qwen3Config if c.get('qk_norm') else transformers.LlamaConfig
  config = family(
    vocab_size=c['vocab_size'], hidden_size=c['hidden_size'], intermediate_size=c['intermediate_size'], num_hidden_layers=c['num_layers'],
    num_attention_heads=c['num_heads'], num_key_value_heads=c['num_kv_heads'], head_dim=c.get('head_dim') or c['hidden_size'] // c['num_heads'],
    max_position_embeddings=8192, tie_word_embeddings=c.get('tie_embeddings', True), pad_token_id=0, num_labels=1,
  )  # fmt: skip
  kind = transformers.AutoModelForSequenceClassification if case == 'reward' else transformers.AutoModelForCausalLM
  model = kind.from_config(config, dtype=torch.bfloat16 if case == 'generate' else torch.float32, attn_implementation='sdpa').to(device)
  wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
  peak = lambda: torch.cuda.max_memory_allocated() / 2**20 if device == 'cuda' else peers.Clock().read().peak_mb
  if case == 'generate':
    prompts = torch.randint(3, c['vocab_size'], (PROMPTS, PROMPT // scale(shape)), device=device).repeat_interleave(RESPONSES, 0)
    new = NEW // scale(shape)

    def run() -> None:
      with torch.no_grad():
        model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, min_new_tokens=new, max_new_tokens=new)
      wait()
  else:
    if parameters(shape) > ADAPTERS_FROM:
      import peft

      model = peft.get_peft_model(model, peft.LoraConfig(r=LORA['rank'], lora_alpha=LORA['alpha'], target_modules='all-linear'))
    model.gradient_checkpointing_enable(dict(use_reentrant=False))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    texts = [prompt + response for prompt, responses in pairs(shape) for response in responses]
    batches = [texts[i : i + 16] for i in range(0, len(texts), 16)]

    def run() -> None:
      for batch in batches:
        ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long, device=device)
        for row, text in enumerate(batch):
          ids[row, : len(text)] = torch.tensor(text, device=device)
        with torch.autocast(device, torch.bfloat16):
          rewards = model(input_ids=ids, attention_mask=ids != 0).logits[:, 0].float()
        (-torch.nn.functional.logsigmoid(rewards[::2] - rewards[1::2]).sum()).backward()
      optimizer.step()
      optimizer.zero_grad()
      wait()

  run()
  while True:
    yield peers.measure(run)._replace(peak_mb=peak())


def counts(case: str, shape: str) -> tuple[float, float]:
  """Tokens of a run as a peer has them, and FLOPs of what rmjax computes."""
  c, by = sizes(shape), scale(shape)
  if case in ('generate', 'grpo'):
    trees = [(PROMPT // by, [NEW // by] * RESPONSES)] * PROMPTS
  else:
    trees = [(len(prompt), [len(response) for response in responses]) for prompt, responses in pairs(shape)]
  tokens = sum(prompt + response for prompt, responses in trees for response in responses)
  computed = sum(prompt + sum(responses) for prompt, responses in trees)
  up_to = lambda n: n * (n + 1) / 2
  depths = sum(up_to(prompt) + sum(up_to(prompt + n) - up_to(prompt) for n in responses) for prompt, responses in trees)
  head = c.get('head_dim') or c['hidden_size'] // c['num_heads']
  forward = 2 * parameters(shape) * computed + 4 * c['num_layers'] * c['num_heads'] * head * depths
  if case in ('dpo', 'grpo', 'generate'):
    forward += 2 * c['hidden_size'] * c['vocab_size'] * sum(sum(responses) for _, responses in trees)
  if case == 'generate':
    return float(NEW // by * RESPONSES * PROMPTS), float(forward)
  return float(tokens), float(forward * ((2 if parameters(shape) > ADAPTERS_FROM else 3) + (case == 'dpo')))


def compare(case: str, shape: str, rounds: int, torch_python: str) -> None:
  """Prints the lines of one case."""
  runs = {'rmjax': peers.elsewhere(sys.executable, MODULE, 'rmjax', case, shape)}
  if torch_python and case in ('reward', 'generate'):
    runs['hugging_face'] = peers.elsewhere(torch_python, MODULE, 'hugging_face', case, shape)
  tokens, flops = counts(case, shape)
  measured = peers.take_turns(runs, rounds)
  seconds = sorted(run.seconds for run in measured['rmjax'])[rounds // 2]
  further = dict(tflops=flops / seconds / 1e12)
  if peak := next((peak for name, peak in PEAKS.items() if name in DEVICE), None):
    further['mfu'] = flops / seconds / peak
  peers.compare(f'{case} {shape} on {DEVICE}', tokens, measured, rmjax=further)
  for run in runs.values():
    run.close()


DEVICE = ''


def main(_: list[str]) -> None:
  """Runs what the flags say."""
  global DEVICE
  kind = 'import jax; print(jax.devices()[0].device_kind)'
  DEVICE = subprocess.run([sys.executable, '-c', kind], check=True, capture_output=True, text=True).stdout.strip()
  for shape in flags.FLAGS.shapes:
    for case in flags.FLAGS.cases:
      if case == 'numerics':
        subprocess.run([sys.executable, '-m', MODULE, case, shape], check=True)
      else:
        compare(case, shape, flags.FLAGS.rounds, flags.FLAGS.torch_python)


if __name__ == '__main__':
  if sys.argv[1:2] == [SERVE]:
    peers.serve({'rmjax': ours, 'hugging_face': hugging_face}[sys.argv[2]](*sys.argv[3:5]))
  elif sys.argv[1:2] == ['numerics']:
    next(ours(*sys.argv[1:3]))
  else:
    import subprocess

    from absl import app, flags

    flags.DEFINE_list('shapes', ['llama3_1b', 'qwen3_8b'], 'Of configs/large.py, or tiny.')
    flags.DEFINE_list('cases', list(CASES), f'Of {", ".join(CASES)}.')
    flags.DEFINE_integer('rounds', 5, 'Times that each is run.')
    flags.DEFINE_string('torch_python', '', 'An interpreter with torch and transformers.')
    app.run(main)
