"""Planning a pod: what a program costs, how a state would lie, and the whole command where the TPU compiler is installed."""

import importlib.util
import json
import os
from pathlib import Path
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from configs import fimi, grpo, large
from experiments import compiled, planned, policy_setup, setup
from rmjax.backbones.decoder import Decoder, DecoderConfig
from rmjax.errors import InputError
from rmjax.training.mesh import make_mesh, use_mesh

ROOT = Path(__file__).parents[2]
TINY = dict(hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2)

# A loop of 5 rounds, each of which gathers, multiplies, and sums scattered gradients; the shapes and the notation are the TPU compiler's.
PROGRAM = '''HloModule jit_f

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[]{:T(256)} parameter(0)
  %y = bf16[]{:T(256)} parameter(1)
  ROOT %s = bf16[]{:T(256)} add(%x, %y), backend_config={"estimated_cycles":"999"}
}

%slice_of (p.0: bf16[5,8,16], p.1: s32[]) -> bf16[8,16] {
  %p.0 = bf16[5,8,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  ROOT %cut = bf16[1,8,16]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p.0, %p.1), dynamic_slice_sizes={1,8,16}
}

%all-reduce-scatter.1 (input: bf16[32,16]) -> bf16[8,16] {
  %input = bf16[32,16]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.9 = bf16[32,16]{1,0:T(8,128)(2,1)} all-reduce(%input), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %part = bf16[8,16]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={8,16}
}

%condition (c: (s32[], bf16[5,8,16])) -> pred[] {
  %c = (s32[]{:T(128)}, bf16[5,8,16]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %five = s32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%i, %five), direction=LT
}

%body (b: (s32[], bf16[5,8,16])) -> (s32[], bf16[5,8,16]) {
  %b = (s32[]{:T(128)}, bf16[5,8,16]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %n = s32[]{:T(128)S(6)} get-tuple-element(%b), index=0
  %w = bf16[5,8,16]{2,1,0:T(8,128)(2,1)} get-tuple-element(%b), index=1
  %one = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} fusion(%w, %n), kind=kLoop, calls=%slice_of, backend_config={"window_config":{"estimated_cycles":"100"}}
  %whole = bf16[32,16]{1,0:T(8,128)(2,1)} all-gather(%one), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}
  %back = bf16[8,16]{1,0:T(8,128)(2,1)} fusion(%whole), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %t = (s32[]{:T(128)}, bf16[5,8,16]{2,1,0:T(8,128)(2,1)}) tuple(%n, %w)
}

ENTRY %main (a: bf16[5,8,16]) -> bf16[5,8,16] {
  %a = bf16[5,8,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, bf16[5,8,16]{2,1,0:T(8,128)(2,1)}) tuple(%zero, %a)
  %loop = (s32[]{:T(128)}, bf16[5,8,16]{2,1,0:T(8,128)(2,1)}) while(%start), condition=%condition, body=%body
  %twice = bf16[5,8,16]{2,1,0:T(8,128)(2,1)} multiply(%a, %a), backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %out = bf16[5,8,16]{2,1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
'''


def test_loops_are_multiplied_out():
  found = compiled.costs(PROGRAM)
  assert found.cycles == 5 * 100 + 7
  part, whole = 8 * 16 * 2, 32 * 16 * 2
  assert found.collectives == {'all-gather': (5, 5 * whole * 3 / 4), 'reduce-scatter': (5, 5 * whole * 3 / 4)}
  # In the loop: a slice of the weights read (not all five) and kept on the chip, the gathered matrix read, its part written; then a read twice, written once.
  assert found.bytes == 5 * (part + whole + part) + 3 * 5 * part
  assert (found.unknown_loops, found.kernels) == (0, 0)
  assert found.seconds(compiled.CHIPS['v5e']) == pytest.approx((507 / 1.5e9, 2 * 5 * whole * 3 / 4 / 200e9))


def test_a_loop_of_unknown_length_counts_once_and_is_said():
  found = compiled.costs(PROGRAM.replace('constant(5)', 'parameter(1)'))
  assert (found.cycles, found.unknown_loops) == (107, 1)


def test_flops_are_those_of_the_products_with_loops_multiplied_out():
  def f(weights, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0].sum()

  weights, x = jax.ShapeDtypeStruct((3, 8, 8), jnp.float32), jax.ShapeDtypeStruct((5, 8), jnp.float32)
  forward = 3 * 2 * 5 * 8 * 8
  assert compiled.count_flops(f, weights, x) == forward
  assert compiled.count_flops(jax.grad(f), weights, x) == 3 * forward
  assert compiled.kernel_flops(f, weights, x) == 0


def test_dots_computes_no_product_again_and_full_all():
  """Those of attention in blocks included, whose values are kept under their name."""
  tokens, positions = jax.ShapeDtypeStruct((2, 256), jnp.int32), jax.ShapeDtypeStruct((2, 256), jnp.int32)
  found = {}
  for remat in ('none', 'dots', 'full'):
    decoder = Decoder(DecoderConfig(**TINY, vocab_size=64), remat=remat)
    params = jax.eval_shape(lambda decoder=decoder: nn.unbox(decoder.init(jax.random.key(0), *[jnp.zeros((1, 256), jnp.int32)] * 3)))
    gradient = jax.grad(lambda params, *args, decoder=decoder: decoder.apply(params, *args).sum())
    found[remat] = compiled.count_flops(gradient, params, tokens, positions, positions)
  assert found['none'] == found['dots'] < found['full']


def small(config):
  config.model.decoder = TINY
  config.model.path = ''
  return config


def same_layout(expected, found):
  where = jax.tree_util.tree_leaves_with_path(found)
  for (path, x), like in zip(where, jax.tree.leaves(expected), strict=True):
    name = jax.tree_util.keystr(path)
    assert (x.shape, x.dtype) == (like.shape, like.dtype), name
    assert x.sharding.is_equivalent_to(like.sharding, x.ndim), f'{name}: {x.sharding.spec} and {like.sharding.spec}'


@pytest.mark.parametrize('config', [large.get_config('qwen3_8b'), fimi.get_config()], ids=['bradley_terry', 'fimi'])
def test_a_planned_state_lies_as_a_real_one(config):
  config = small(config)
  config.train.update(rows=4, length=128)
  config.data.max_length = 64
  mesh = make_mesh(fsdp=4, tensor=2)
  plan = planned.plan(config, mesh)
  run = setup.setup(config, mesh=mesh)
  with use_mesh(mesh):
    same_layout(plan.state, run.init(jax.random.key(0)))
  names = [program.name for program in plan.programs]
  assert names == ['train', 'score']
  step = plan.programs[0]
  with use_mesh(mesh):
    jax.jit(step.function, donate_argnums=0).lower(*step.args)  # the state and the batch are what the step takes


def test_a_planned_policy_lies_as_a_real_one():
  config = small(large.get_config('grpo_llama3_1b'))
  config.rewards.helpful.decoder = dict(TINY, vocab_size=300)
  config.data.max_length, config.train.prompts = 16, 8
  config.sampling.update(responses=2, max_new_tokens=4)
  config.mesh.tensor = 2
  mesh = make_mesh(**config.mesh)
  plan = planned.plan(config, mesh)
  assert [program.name for program in plan.programs] == ['sample', 'score', 'update']
  assert set(plan.state.params) >= {'policy', 'reference', 'rewards'}
  without = {part: x for part, x in plan.state.params.items() if part != 'rewards'}
  run = policy_setup.setup(config, mesh=mesh, rewards=policy_setup.Rewards({'short': 1.0}, {}, {}, {}))
  with use_mesh(mesh):
    same_layout(without, run.init(jax.random.key(0)).params)


def test_what_cannot_be_planned_is_said():
  config = grpo.get_config()
  config.program = 'probe'
  with pytest.raises(InputError, match=r"config.program = 'probe'"):
    planned.plan(config, make_mesh())
  config = large.get_config('grpo_llama3_1b')
  config.rewards = dict(mine=dict(weight=1.0, checkpoint='runs/mine'))
  with pytest.raises(InputError, match=r'rewards.mine.decoder'):
    planned.plan(config, make_mesh())


def command(*arguments):
  return subprocess.run([sys.executable, '-m', 'experiments.plan', *arguments], cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)


def test_bad_flags_are_one_line():
  result = command('--config=configs/small_world.py', '--topology=v9:2x2')
  assert result.returncode == 1
  assert 'error: ' in result.stderr
  assert 'Traceback' not in result.stderr
  assert ('v9:2x2' in result.stderr) == bool(importlib.util.find_spec('libtpu'))


@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason="the TPU compiler is not installed: pip install 'rmjax[tpu]'")
def test_a_step_is_compiled_for_a_pod(tmp_path):
  result = command('--config=configs/small_world.py', '--topology=v5e:2x2', '--mesh=fsdp=4', '--mesh=data=2,tensor=2', f'--json={tmp_path / "plan.json"}')
  assert result.returncode == 0, result.stderr
  found = json.loads((tmp_path / 'plan.json').read_text())
  assert list(found) == ['fsdp 4', 'data 2 tensor 2']
  split, copied = (mesh['programs']['train'] for mesh in found.values())
  assert split['fits']
  assert 'all-gather' in split['collectives']
  assert 'all-gather' not in copied['collectives']
  assert split['arguments'] < copied['arguments']  # a quarter of the state against half
  assert 0 < split['mfu'] <= split['utilisation'] < 1
  assert os.linesep + 'best of 2: ' in result.stdout
