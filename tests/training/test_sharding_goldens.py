"""Where every parameter of every family lies on a mesh, written down: a change of layout is a change of this file, seen in review.

Made by `python -m tests.training.test_sharding_goldens`.
"""

import json
import math
from pathlib import Path

import jax
import pytest

from configs import large
from rmjax.backbones.decoder import DecoderConfig
from rmjax.models import build
from rmjax.training.mesh import make_mesh
from rmjax.training.saved import abstract_params

GOLDEN = Path(__file__).parents[1] / 'goldens' / 'shardings.json'
MESHES = {'fsdp 8': dict(fsdp=8), 'data 2 fsdp 2 tensor 2': dict(data=2, fsdp=2, tensor=2), 'fsdp 2 tensor 2 sequence 2': dict(fsdp=2, tensor=2, sequence=2)}
GEMMA2 = dict(
  vocab_size=256_000, hidden_size=2304, intermediate_size=9216, num_layers=26, num_heads=8, num_kv_heads=4, head_dim=256, sandwich_norm=True,
  unit_offset=True, embedding_scale=True, windows=(4096, 0) * 13,
)  # fmt: skip
QWEN2 = dict(
  vocab_size=151_936, hidden_size=1536, intermediate_size=8960, num_layers=28, num_heads=12, num_kv_heads=2, attention_bias=True
)  # fmt: skip
SHAPES = {**large.SHAPES, 'gemma2_2b': GEMMA2, 'qwen2_1b': QWEN2}
LORA = dict(rank=8, alpha=16.0, modules='.*/(query|value)$')
HEADS = {
  'scalar': dict(name='rmjax.heads.scalar:ScalarHead'),
  'preference': dict(name='rmjax.heads.preference:PreferenceEmbeddingHead', dim=4),
  'implicit': dict(name='rmjax.heads.implicit:ImplicitRewardHead', reference='frozen'),
}


def layouts(mesh):
  """'shape/head' -> parameter -> its size, and that of each device's part."""
  found = {}
  by = lambda shape: 'x'.join(map(str, shape))
  for shape, decoder in SHAPES.items():
    for head in HEADS if shape == 'llama3_1b' else ('scalar',):
      for lora in (dict(rank=0), LORA) if shape == 'qwen2_1b' else (dict(rank=0),):
        model = build(DecoderConfig(**decoder), dtype='bfloat16', remat='full', head=HEADS[head], lora=lora)
        leaves = jax.tree_util.tree_leaves_with_path(abstract_params(model, mesh))
        name = f'{shape}/{head}' + ('/lora' if lora['rank'] else '')
        found[name] = {
          jax.tree_util.keystr(path, simple=True, separator='/'): f'{by(x.shape)} in {by(x.sharding.shard_shape(x.shape))}' for path, x in leaves
        }  # fmt: skip
  return found


@pytest.mark.parametrize('name', MESHES)
def test_parameters_lie_where_they_did(name):
  assert layouts(make_mesh(**MESHES[name])) == json.loads(GOLDEN.read_text())[name]


def test_nothing_large_is_whole_on_every_device():
  """A kernel or an embedding of a million numbers is split wherever the mesh has something to split it by."""
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  for decoder in SHAPES.values():
    model = build(DecoderConfig(**decoder), dtype='bfloat16', remat='full', head=HEADS['scalar'], lora=dict(rank=0))
    for path, x in jax.tree_util.tree_leaves_with_path(abstract_params(model, mesh)):
      if x.size > 1e6:
        parts = x.size // math.prod(x.sharding.shard_shape(x.shape))
        assert parts >= mesh.shape['fsdp'] * mesh.shape['tensor'], jax.tree_util.keystr(path)


if __name__ == '__main__':
  jax.config.update('jax_num_cpu_devices', 8)
  GOLDEN.write_text(json.dumps({name: layouts(make_mesh(**sizes)) for name, sizes in MESHES.items()}, indent=1) + '\n')
