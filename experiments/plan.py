"""Compiles a config's steps for a TPU pod on a machine without one, and says whether they fit and how fast the compiler thinks they are.

  python -m experiments.plan --config=configs/large.py:qwen3_8b --topology=v5p:4x4x4 [--mesh=fsdp=16,tensor=4 ...] [--config.key=value ...]

The real TPU compiler runs (libtpu, `pip install rmjax[tpu]`, Linux x86-64). With several --mesh the best that fits is named. --json=FILE keeps the
figures. Exit code 1 where no mesh fits.
"""

import os

# Before JAX is imported: there is no TPU here, and none is looked for.
os.environ.update(JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost', ALLOW_MULTIPLE_LIBTPU_LOAD='1')

import importlib.util
import json
import math
from pathlib import Path
import time
from typing import Any

from absl import flags
import jax
from jax.experimental import topologies
from jax.sharding import Mesh
import ml_collections
from ml_collections import config_flags

from experiments import cli
from experiments.compiled import Chip, CHIPS, costs, count_flops, kernel_flops
from experiments.planned import plan, Planned, Program
from rmjax.backbones.decoder import DecoderConfig
from rmjax.errors import InputError
from rmjax.training.mesh import AXES, make_mesh, use_mesh

GIB = 2**30


def devices_of(topology: str) -> tuple[list[Any], Chip]:
  """The chips of a topology such as 'v5p:4x4x4', and what one can do.

  Raises:
    InputError: the compiler is not installed, or does not know the topology.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise InputError("the TPU compiler, libtpu, is not installed (it exists for Linux x86-64): pip install 'rmjax[tpu]'")
  generation = topology.split(':')[0]
  if generation not in CHIPS:
    raise InputError(f"--topology={topology}: it begins with one of {', '.join(CHIPS)}, such as v5p:4x4x4 or v6e:16x16")
  try:
    found = topologies.get_topology_desc(topology_name=topology, platform='tpu')
  except Exception as e:  # the compiler's own, of several kinds
    raise InputError(f'--topology={topology}: the TPU compiler does not know it: {str(e).splitlines()[0]}') from e
  return found.devices, CHIPS[generation]


def measure(program: Program, planned: Planned, mesh: Mesh, chip: Chip, decoder: DecoderConfig) -> dict[str, Any]:
  """Compiles one program; figures are of one chip and one call, but for the FLOPs, which are of all chips."""
  started = time.time()
  with use_mesh(mesh):
    flops, in_kernels = count_flops(program.function, *program.args), kernel_flops(program.function, *program.args)
    lowered = jax.jit(program.function, donate_argnums=(0,) if program.donated else ()).lower(*program.args)
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as e:
      if 'RESOURCE_EXHAUSTED' not in str(e):
        raise
      return dict(fits=False, why=str(e).splitlines()[0], flops=flops, compile_s=time.time() - started)
  memory, cost = compiled.memory_analysis(), costs(compiled.as_text())
  computing, sending = cost.seconds(chip)
  # Of kernels the compiler estimates nothing: theirs is what they have to multiply, at full speed.
  kernels = in_kernels / mesh.size / chip.flops
  computing += kernels
  held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  total = held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
  rate = lambda flops: flops / mesh.size / chip.flops / max(computing, sending)
  figures = dict(
    arguments=memory.argument_size_in_bytes, results=memory.output_size_in_bytes - memory.alias_size_in_bytes, temporary=memory.temp_size_in_bytes,
    code=memory.generated_code_size_in_bytes, hbm=total, fits=total <= chip.hbm,
    flops=flops, hbm_bytes=cost.bytes, collectives={kind: dict(count=count, bytes=sent) for kind, (count, sent) in cost.collectives.items()},
    unknown_loops=cost.unknown_loops, kernels=cost.kernels,
    computing_s=computing, kernels_s=kernels, sending_s=sending, utilisation=rate(flops), compile_s=time.time() - started,
  )  # fmt: skip
  if program.name in PASSES:
    figures['mfu'] = rate(model_flops(decoder, planned.rows, planned.length) * PASSES[program.name])
  return figures


PASSES = {'train': 3, 'score': 1}  # forward passes' worth of products: the backward pass has twice those of the forward


def model_flops(decoder: DecoderConfig, rows: int, length: int) -> float:
  """Floating-point operations of one forward pass of a reward model over full rows, each one causal path: 2 a parameter of a matrix product and a token,
  the embedding's and the output's left out, and half of the square of attention. Nothing is recomputed.

  Reference: Chowdhery et al., PaLM (2022), appendix B, with the causal half left out.
  """
  c = decoder
  heads = (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim
  parameters = c.num_layers * c.hidden_size * (heads + 3 * c.intermediate_size)
  attention = 2 * c.num_layers * c.num_heads * c.head_dim * length  # scores and values, 2 each, halved
  return rows * length * (2.0 * parameters + attention)


def _bytes(tree: Any) -> int:
  """Of one chip's share."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else 8
             for x in jax.tree.leaves(tree))  # fmt: skip


def run(config: ml_collections.ConfigDict, topology: str, meshes: list[str]) -> dict[str, Any]:
  """Figures of every mesh and program; prints them as they come."""
  devices, chip = devices_of(topology)
  found: dict[str, Any] = {}
  print(f'{len(devices)} chips of {topology}: {chip.flops / 1e12:.0f} TFLOP/s and {chip.hbm / GIB:.0f} GiB each')
  for text in meshes or [','.join(f'{axis}={config.mesh[axis]}' for axis in AXES)]:
    mesh = make_mesh(**parse_mesh(text), devices=devices)
    name = ' '.join(f'{axis} {size}' for axis, size in mesh.shape.items() if size > 1) or 'one chip'
    planned = plan(config, mesh)
    parts = {part: _bytes(x) for part, x in planned.state.params.items()}
    optimizer = _bytes(planned.state.opt_state)
    print(f'\nmesh {name}\n  parameters {_size(sum(parts.values()))}' + ''.join(f'  {part} {_size(x)}' for part, x in parts.items() if len(parts) > 1)
          + f'  optimiser {_size(optimizer)}')  # fmt: skip
    programs = {}
    for program in planned.programs:
      programs[program.name] = figures = measure(program, planned, mesh, chip, planned.decoder)
      print(describe(program.name, figures), flush=True)
    found[name] = dict(parameters=parts, optimiser=optimizer, programs=programs)
  return found


def describe(name: str, x: dict[str, Any]) -> str:
  """The lines of one program."""
  if 'why' in x:
    return f'  {name}: DOES NOT FIT: {x["why"]}'
  fits = 'fits' if x['fits'] else 'DOES NOT FIT'
  lines = [
    f'  {name}: {_size(x["hbm"])} HBM a chip, {fits}: arguments {_size(x["arguments"])}, results {_size(x["results"])}, temporary {_size(x["temporary"])}',
    f'    {x["flops"]:.3g} FLOPs in all; a chip moves {_size(x["hbm_bytes"])} of HBM and sends '
    + (', '.join(f'{kind} {_size(figures["bytes"])} in {figures["count"]:.0f}' for kind, figures in x['collectives'].items()) or 'nothing'),
    f'    the compiler counts {x["computing_s"]:.3g} s beside communication, which takes {x["sending_s"]:.3g} s at full link speed: '
    f'{x["utilisation"]:.1%} of peak' + (f', MFU {x["mfu"]:.1%}' if 'mfu' in x else '') + ' if they overlap',
  ]
  if x['unknown_loops'] or x['kernels']:
    kernels = f'{x["kernels_s"]:.3g} s are {x["kernels"]:.0f} calls of kernels, taken to run at peak'
    lines.append(f'    of that {kernels}; {x["unknown_loops"]} loops of unknown length count once')
  return '\n'.join(lines)


def _size(size: float) -> str:
  return f'{size / GIB:.2f} GiB' if size >= GIB / 10 else f'{size / 2**20:.2f} MiB'


def parse_mesh(text: str) -> dict[str, int]:
  """'fsdp=16,tensor=4' as the sizes of a mesh; axes that are not named have 1.

  Raises:
    InputError: another axis, or no number.
  """
  sizes = dict.fromkeys(AXES, 1)
  for pair in text.split(','):
    axis, _, size = pair.partition('=')
    if axis not in sizes or not size.lstrip('-').isdigit():
      raise InputError(f"--mesh={text}: '{pair}' is none of {', '.join(f'{axis}=N' for axis in AXES)}")
    sizes[axis] = int(size)
  return sizes


def best(found: dict[str, Any]) -> str | None:
  """The mesh of the shortest step among those in which every program fits."""
  seconds = {
    name: sum(max(x['computing_s'], x['sending_s']) for x in mesh['programs'].values())
    for name, mesh in found.items() if all(x['fits'] for x in mesh['programs'].values())
  }  # fmt: skip
  return min(seconds, key=seconds.get) if seconds else None


def main() -> int:
  """Plans what the flags say."""
  found = run(flags.FLAGS.config, flags.FLAGS.topology, flags.FLAGS.mesh)
  if flags.FLAGS.json:
    Path(flags.FLAGS.json).write_text(json.dumps(found, indent=2) + '\n')
  name = best(found)
  print(f'\nbest of {len(found)}: {name}' if name else '\nnothing fits: take a larger topology, fewer train.rows, or another mesh')
  return 0 if name else 1


if __name__ == '__main__':
  config_flags.DEFINE_config_file('config', lock_config=True)
  flags.DEFINE_string('topology', None, 'Such as v5p:4x4x4, v5e:4x4 or v6e:16x16.', required=True)
  flags.DEFINE_multi_string('mesh', [], "Such as fsdp=16,tensor=4; may be given again. The config's if none is given.")
  flags.DEFINE_string('json', '', 'File to write the figures to.')
  cli.run(main)
