"""Hugging Face directories in and out, without transformers: what is written is read, and what is broken is named."""

import json
import os
from pathlib import Path
import resource
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rmjax.backbones import pretrained
from rmjax.backbones.decoder import Decoder, DecoderConfig
from rmjax.backbones.hf_config import from_hf
from rmjax.errors import InputError
from rmjax.training.mesh import make_mesh, shardings

CONFIG = DecoderConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=3, num_heads=4, num_kv_heads=2, tie_embeddings=False)
TOKENS = jnp.zeros((1, 4), jnp.int32)


def boxed(config=CONFIG, method='logits'):
  decoder = Decoder(config)
  return jax.eval_shape(lambda: decoder.init(jax.random.key(0), TOKENS, TOKENS, TOKENS, method=getattr(decoder, method))['params'])


def abstract(config=CONFIG, method='logits', dtype=jnp.float32):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), nn.unbox(boxed(config, method)))


def random(tree, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), tree)


PARAMS = random(abstract())


def assert_same(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x, np.float32), np.asarray(y, np.float32)), ours, theirs)


def rounded(dtype):
  return jax.tree.map(lambda x: x.astype(dtype), PARAMS)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('max_shard_bytes', [1 << 30, 4096])
def test_what_is_saved_is_loaded(tmp_path, dtype, max_shard_bytes):
  score = np.linspace(-1, 1, 16, dtype=np.float32)[:, None].astype(dtype).astype(np.float32)
  pretrained.save(tmp_path, CONFIG, PARAMS, score=score, dtype=dtype, max_shard_bytes=max_shard_bytes)
  assert pretrained.read_config(tmp_path) == CONFIG
  assert_same(pretrained.load_decoder(tmp_path, abstract()), rounded(dtype))
  found = pretrained.load_score(tmp_path)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, score)


def test_shards_are_as_small_as_asked_and_the_index_finds_every_tensor(tmp_path):
  pretrained.save(tmp_path, CONFIG, PARAMS, max_shard_bytes=4096)
  index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
  shards = {file.name: load_file(file) for file in tmp_path.glob('*.safetensors')}
  assert len(shards) > 2
  assert {name: file for file, tensors in shards.items() for name in tensors} == index['weight_map']
  assert max(sum(x.nbytes for x in tensors.values()) for tensors in shards.values()) <= 4096
  assert index['metadata']['total_size'] == 4 * sum(x.size for x in jax.tree.leaves(PARAMS))
  assert sorted(shards) == [f'model-{i + 1:05}-of-{len(shards):05}.safetensors' for i in range(len(shards))]


def test_names_and_orientation_are_those_of_hugging_face(tmp_path):
  pretrained.save(tmp_path, CONFIG, PARAMS, score=np.ones((16, 1), np.float32))
  tensors = load_file(tmp_path / 'model.safetensors')
  np.testing.assert_array_equal(tensors['model.layers.2.mlp.up_proj.weight'], PARAMS['layers']['up']['kernel'][2].T)
  np.testing.assert_array_equal(tensors['model.layers.1.self_attn.k_proj.weight'], PARAMS['layers']['attention']['key']['kernel'][1].T)
  np.testing.assert_array_equal(tensors['model.embed_tokens.weight'], PARAMS['embedding']['embedding'])
  np.testing.assert_array_equal(tensors['lm_head.weight'], PARAMS['unembedding']['kernel'].T)
  assert tensors['score.weight'].shape == (1, 16)


def test_config_of_a_reward_model_and_of_a_language_model(tmp_path):
  pretrained.save(tmp_path, CONFIG, PARAMS, score=np.ones((16, 1)), dtype='bfloat16', extra=dict(pad_token_id=3, eos_token_id=2))
  raw = json.loads((tmp_path / 'config.json').read_text())
  assert raw['architectures'] == ['LlamaForSequenceClassification']
  assert raw['id2label'] == {'0': 'LABEL_0'}
  assert (raw['num_labels'], raw['pad_token_id'], raw['eos_token_id'], raw['dtype']) == (1, 3, 2, 'bfloat16')
  pretrained.save(tmp_path, CONFIG, PARAMS)
  raw = json.loads((tmp_path / 'config.json').read_text())
  assert raw['architectures'] == ['LlamaForCausalLM']
  assert 'num_labels' not in raw
  assert pretrained.load_score(tmp_path) is None


def test_a_reward_model_needs_no_output_matrix(tmp_path):
  pretrained.save(tmp_path / 'language', CONFIG, PARAMS)
  without = {name: value for name, value in PARAMS.items() if name != 'unembedding'}
  assert_same(pretrained.load_decoder(tmp_path / 'language', abstract(method='__call__')), without)
  pretrained.save(tmp_path / 'reward', CONFIG, without, score=np.ones((16, 1)))
  assert_same(pretrained.load_decoder(tmp_path / 'reward', abstract(method='__call__')), without)
  with pytest.raises(InputError, match='without output matrix is no language model'):
    pretrained.save(tmp_path / 'other', CONFIG, without)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize('target', [jnp.float32, jnp.bfloat16])
def test_any_float_becomes_the_targets(tmp_path, dtype, target):
  pretrained.save(tmp_path, CONFIG, PARAMS)
  tensors = {name: x.astype(dtype) for name, x in load_file(tmp_path / 'model.safetensors').items()}
  save_file(tensors, tmp_path / 'model.safetensors')
  loaded = pretrained.load_decoder(tmp_path, abstract(dtype=target))
  assert {x.dtype for x in jax.tree.leaves(loaded)} == {jnp.dtype(target)}
  assert_same(loaded, jax.tree.map(lambda x: x.astype(dtype).astype(target), PARAMS))


def test_every_device_gets_its_part(tmp_path):
  pretrained.save(tmp_path, CONFIG, PARAMS, max_shard_bytes=4096)
  layout = shardings(boxed(), make_mesh(data=2, fsdp=2, tensor=2))
  target = jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract(), layout)
  loaded = pretrained.load_decoder(tmp_path, target)
  jax.tree.map(lambda x, sharding: x.sharding.is_equivalent_to(sharding, x.ndim) or pytest.fail(f'{x.sharding} is not {sharding}'), loaded, layout)
  assert loaded['layers']['up']['kernel'].addressable_shards[0].data.shape == (3, 8, 12)
  assert_same(loaded, PARAMS)


@pytest.mark.parametrize('prefix', ['', 'model.language_model.', 'language_model.model.'])
def test_bare_decoders_and_those_of_vision_language_models(tmp_path, prefix):
  pretrained.save(tmp_path, CONFIG, PARAMS)
  tensors = load_file(tmp_path / 'model.safetensors')
  renamed = {name.replace('model.', prefix, 1) if name.startswith('model.') else name: x for name, x in tensors.items()}
  save_file({**renamed, 'vision_tower.patch.weight': np.ones(3, np.float32)}, tmp_path / 'model.safetensors')
  assert_same(pretrained.load_decoder(tmp_path, abstract()), PARAMS)


def test_adapters_are_left_out(tmp_path):
  pretrained.save(tmp_path, CONFIG, PARAMS)
  target = abstract()
  target['layers']['up'] = {**target['layers']['up'], 'kernel_lora_a': jax.ShapeDtypeStruct((3, 16, 2), jnp.float32)}
  assert_same(pretrained.load_decoder(tmp_path, target), PARAMS)


def test_what_transformers_has_no_place_for_is_not_saved(tmp_path):
  layers = {**PARAMS['layers'], 'up': {**PARAMS['layers']['up'], 'kernel_lora_a': np.ones((3, 16, 2)), 'kernel_lora_b': np.ones((3, 2, 24))}}
  with pytest.raises(InputError, match='adapters .*: merge them first'):
    pretrained.save(tmp_path, CONFIG, {**PARAMS, 'layers': layers})
  with pytest.raises(InputError, match=r'score has shape \(16, 2\), not \(16, 1\)'):
    pretrained.save(tmp_path, CONFIG, PARAMS, score=np.ones((16, 2)))
  assert not list(tmp_path.iterdir())


def test_a_smaller_model_leaves_nothing_of_a_larger_one(tmp_path):
  pretrained.save(tmp_path, CONFIG, PARAMS, max_shard_bytes=4096)
  pretrained.save(tmp_path, CONFIG, rounded('bfloat16'))
  assert sorted(file.name for file in tmp_path.iterdir()) == ['config.json', 'model.safetensors']
  assert_same(pretrained.load_decoder(tmp_path, abstract()), rounded('bfloat16'))


def test_a_full_disk_harms_nothing(tmp_path):
  pretrained.save(tmp_path, CONFIG, PARAMS, max_shard_bytes=4096)
  before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))  # no file can grow beyond
  try:
    with pytest.raises(OSError, match='(?i)could not be written|too large'):
      pretrained.save(tmp_path, CONFIG, random(abstract(), seed=1))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def _cut(path, size=100):
  path.write_bytes(path.read_bytes()[:-size])


def _edit(directory, change):
  tensors = load_file(directory / 'model.safetensors')
  change(tensors)
  save_file(tensors, directory / 'model.safetensors')


BROKEN = {
  'no weights': (lambda d: (d / 'model.safetensors').unlink(), r'model.safetensors is missing'),
  'cut short': (lambda d: _cut(d / 'model.safetensors'), r'model.safetensors is damaged or cut short .*: download it again'),
  'empty': (lambda d: (d / 'model.safetensors').write_bytes(b''), r'model.safetensors is damaged or cut short'),
  'rubbish': (lambda d: (d / 'model.safetensors').write_bytes(b'<!DOCTYPE html>' * 9), r'model.safetensors is damaged or cut short'),
  'no tensor': (lambda d: _edit(d, lambda t: t.pop('model.layers.1.mlp.up_proj.weight')), r'no tensor model.layers.1.mlp.up_proj.weight: .* of another arch'),
  'wrong shape': (
    lambda d: _edit(d, lambda t: t.update({'model.norm.weight': np.ones(8, np.float32)})),
    r'model.norm.weight has shape \(8,\), not \(16,\): a checkpoint of another architecture',
  ),
  'turned': (
    lambda d: _edit(d, lambda t: t.update({'model.layers.0.mlp.up_proj.weight': np.ones((16, 24), np.float32)})),
    r'up_proj.weight has shape \(16, 24\), not \(24, 16\)',
  ),
  'a bias more': (
    lambda d: _edit(d, lambda t: t.update({'model.layers.0.self_attn.q_proj.bias': np.ones(16, np.float32)})),
    r'holds model.layers.0.self_attn.q_proj.bias, of which its config.json knows nothing',
  ),
  'a layer more': (
    lambda d: _edit(d, lambda t: t.update({'model.layers.3.mlp.up_proj.weight': np.ones((24, 16), np.float32)})),
    r'holds model.layers.3.mlp.up_proj.weight, of which its config.json knows nothing',
  ),
}


@pytest.mark.parametrize('case', BROKEN)
def test_broken_weights_are_named_in_one_line(tmp_path, case):
  pretrained.save(tmp_path, CONFIG, PARAMS)
  damage, message = BROKEN[case]
  damage(tmp_path)
  with pytest.raises(InputError, match=message) as e:
    pretrained.load_decoder(tmp_path, abstract())
  assert str(tmp_path) in str(e.value)
  assert '\n' not in str(e.value)


def _index(directory, change):
  file = directory / 'model.safetensors.index.json'
  index = json.loads(file.read_text())
  change(index['weight_map'])
  file.write_text(json.dumps(index))


BROKEN_SHARDS = {
  'no shard': (lambda d: sorted(d.glob('*.safetensors'))[1].unlink(), r'model-00002-of-\d+.safetensors is missing'),
  'a shard cut short': (lambda d: _cut(sorted(d.glob('*.safetensors'))[-1], 10), r'model-.*.safetensors is damaged or cut short'),
  'index cut short': (lambda d: _cut(d / 'model.safetensors.index.json'), r'model.safetensors.index.json is damaged or cut short'),
  'index of another kind': (lambda d: (d / 'model.safetensors.index.json').write_bytes(b'\xff\xfe'), r'index.json is damaged or cut short'),
  'index of nothing': (lambda d: (d / 'model.safetensors.index.json').write_text('{"weight_map": {}}'), r'holds no tensors'),
  'index without map': (lambda d: (d / 'model.safetensors.index.json').write_text('{}'), r'index.json is damaged or cut short'),
  'another shard': (
    lambda d: _index(d, lambda names: names.update({'model.norm.weight': names['model.embed_tokens.weight']})),
    r'model-00001-of-\d+.safetensors lacks model.norm.weight, which model.safetensors.index.json says it holds',
  ),
}


@pytest.mark.parametrize('case', BROKEN_SHARDS)
def test_broken_shards_are_named_in_one_line(tmp_path, case):
  pretrained.save(tmp_path, CONFIG, PARAMS, max_shard_bytes=4096)
  damage, message = BROKEN_SHARDS[case]
  damage(tmp_path)
  with pytest.raises(InputError, match=message) as e:
    pretrained.load_decoder(tmp_path, abstract())
  assert '\n' not in str(e.value)


LLAMA = dict(
  model_type='llama', vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=6, num_attention_heads=4, max_position_embeddings=64
)  # fmt: skip


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (None, 'holds no config.json: give a Hugging Face model directory'),
    ('{"model_type": ', r'config.json:1: malformed JSON'),
    ('[]', 'config.json holds a value of the wrong type'),
    (json.dumps({**LLAMA, 'hidden_size': 'big'}), 'config.json holds a value of the wrong type'),
    (json.dumps({k: v for k, v in LLAMA.items() if k != 'hidden_size'}), "config.json lacks 'hidden_size'"),
    ('{"model_type": "bert"}', r"config.json: model_type 'bert' is not supported: llama, mistral, qwen2, qwen3, gemma2, gemma3_text are"),
    ('{}', r"config.json: model_type '' is not supported"),
    (json.dumps({**LLAMA, 'rope_scaling': dict(rope_type='yarn', factor=2.0)}), "rope scaling 'yarn' is not supported: default, linear, llama3 are"),
    (json.dumps({**LLAMA, 'rope_scaling': dict(rope_type='llama3', factor=2.0)}), "rope scaling 'llama3' lacks low_freq_factor, high_freq_factor"),
    (b'\xff\xfe', "config.json: 'utf-8' codec"),
    (json.dumps({**LLAMA, 'partial_rotary_factor': 0.5}), 'partial_rotary_factor = 0.5 is not supported'),
    (json.dumps({**LLAMA, 'hidden_act': 'relu'}), "activation 'relu' is not supported"),
    (json.dumps({**LLAMA, 'quantization_config': dict(bits=4)}), 'its weights are quantized'),
  ],
)
def test_a_config_that_cannot_be_used_is_named_in_one_line(tmp_path, text, message):
  if text is not None:
    (tmp_path / 'config.json').write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(InputError, match=message) as e:
    pretrained.read_config(tmp_path)
  assert str(tmp_path) in str(e.value)
  assert '\n' not in str(e.value)


def test_what_a_silent_config_means():
  llama = from_hf(LLAMA)
  assert (llama.num_kv_heads, llama.head_dim, llama.tie_embeddings, llama.rope_theta, llama.norm_eps) == (4, 4, False, 1e4, 1e-6)
  assert not (llama.attention_bias or llama.output_bias or llama.mlp_bias or llama.qk_norm or llama.windows)
  for family in ('gemma2', 'gemma3_text'):
    gemma = from_hf({**LLAMA, 'model_type': family, 'head_dim': 8})
    assert gemma.tie_embeddings and gemma.unit_offset and gemma.sandwich_norm and gemma.embedding_scale
    assert gemma.query_scale == 256
  assert from_hf({**LLAMA, 'model_type': 'gemma2'}).attention_softcap == 50
  assert from_hf({**LLAMA, 'model_type': 'gemma2', 'attn_logit_softcapping': None}).attention_softcap == 0
  assert from_hf({**LLAMA, 'model_type': 'qwen2'}).attention_bias
  assert not from_hf({**LLAMA, 'model_type': 'qwen2', 'attention_bias': False}).output_bias
  assert from_hf({**LLAMA, 'model_type': 'qwen3', 'head_dim': 8}).qk_norm


SLIDING, FULL = 'sliding_attention', 'full_attention'


@pytest.mark.parametrize(
  ('raw', 'windows'),
  [
    (dict(model_type='mistral', sliding_window=8), (8,) * 6),
    (dict(model_type='mistral', sliding_window=None), ()),
    (dict(model_type='qwen2', sliding_window=8, use_sliding_window=False, max_window_layers=2), ()),
    (dict(model_type='qwen2', sliding_window=8, use_sliding_window=True, max_window_layers=4), (0, 0, 0, 0, 8, 8)),
    (dict(model_type='qwen3', sliding_window=8, use_sliding_window=True, layer_types=[SLIDING] + [FULL] * 5), (8, 0, 0, 0, 0, 0)),
    (dict(model_type='gemma2', sliding_window=8), (8, 0) * 3),
    (dict(model_type='gemma2', sliding_window=8, layer_types=[FULL] * 5 + [SLIDING]), (0,) * 5 + (8,)),
    (dict(model_type='gemma3_text', sliding_window=8), (8,) * 5 + (0,)),
    (dict(model_type='gemma3_text', sliding_window=8, sliding_window_pattern=3), (8, 8, 0) * 2),
    (dict(model_type='gemma3_text', sliding_window=8, layer_types=[SLIDING, FULL] * 3), (8, 0) * 3),
  ],
)
def test_windows_in_old_and_new_writing(raw, windows):
  assert from_hf({**LLAMA, **raw}).windows == windows


LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)


@pytest.mark.parametrize(
  ('family', 'old', 'new'),
  [
    ('llama', dict(rope_theta=5e5), dict(rope_parameters=dict(rope_theta=5e5, rope_type='default'))),
    ('llama', dict(rope_theta=5e5, rope_scaling=dict(type='linear', factor=2.0)), dict(rope_parameters=dict(rope_theta=5e5, rope_type='linear', factor=2.0))),
    ('llama', dict(rope_theta=5e5, rope_scaling=dict(rope_type='llama3', **LLAMA3)), dict(rope_parameters=dict(rope_theta=5e5, rope_type='llama3', **LLAMA3))),
    (
      'gemma3_text',
      dict(rope_theta=5e5, rope_local_base_freq=2e3, rope_scaling=dict(rope_type='linear', factor=8.0)),
      dict(rope_parameters={FULL: dict(rope_theta=5e5, rope_type='linear', factor=8.0), SLIDING: dict(rope_theta=2e3, rope_type='default')}),
    ),
    ('gemma3_text', {}, dict(rope_parameters={FULL: dict(rope_theta=1e6, rope_type='default'), SLIDING: dict(rope_theta=1e4, rope_type='default')})),
  ],
)
def test_rotary_parameters_in_old_and_new_writing(family, old, new):
  raw = {**LLAMA, 'model_type': family}
  assert from_hf({**raw, **old}) == from_hf({**raw, **new})
  assert from_hf({**raw, **new}).rope_theta == (5e5 if old else 1e6)


def test_the_text_part_of_a_gemma_that_sees():
  text = {**LLAMA, 'model_type': 'gemma3_text', 'head_dim': 8}
  assert from_hf(dict(model_type='gemma3', text_config=text, vision_config={})) == from_hf(text)


@pytest.mark.parametrize(
  'change', [dict(logit_softcap=3.0), dict(qk_norm=True, mlp_bias=True), dict(windows=(4, 0, 4)), dict(activation='gelu_tanh', unit_offset=True)]
)
def test_a_decoder_that_no_family_has_is_refused(tmp_path, change):
  config = DecoderConfig(**{**vars(CONFIG), **change})
  with pytest.raises(InputError, match=f'no Hugging Face architecture has this decoder: .* differs in .*{list(change)[-1]}'):
    pretrained.save(tmp_path, config, PARAMS)
  assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_an_import_takes_its_target_and_one_tensor(tmp_path):
  config = DecoderConfig(vocab_size=24000, hidden_size=1024, intermediate_size=4096, num_layers=4, num_heads=8, num_kv_heads=8, tie_embeddings=False)
  shapes = abstract(config)
  pretrained.save(tmp_path, config, jax.tree.map(lambda x: np.broadcast_to(np.float32(0.5), x.shape), shapes), max_shard_bytes=100 << 20)
  assert len(list(tmp_path.glob('model-*.safetensors'))) > 3
  sizes = [4 * x.size for x in jax.tree.leaves(shapes)]
  largest = 4 * config.vocab_size * config.hidden_size
  script = Path(__file__).with_name('import_memory.py')
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(Path(__file__).parents[2])}
  peak = int(subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=True, env=env).stdout)
  assert sum(sizes) <= peak <= sum(sizes) + largest + (80 << 20)
