"""Reward models and policies of the sizes that people train on pods, for `experiments.plan`, and to start from.

  python -m experiments.plan --config=configs/large.py:qwen3_8b --topology=v5p:4x4x4
  python -m experiments.plan --config=configs/large.py:grpo_qwen3_8b --topology=v6e:16x16

With --config.model.path=HF_DIR and your data the same config trains: `experiments.train_reward`, and `experiments.optimize_policy` for grpo_*.
The shapes are those of the published checkpoints' config.json.
"""

import ml_collections

from configs import bradley_terry, grpo

SHAPES = {
  'llama3_1b': dict(  # Llama 3.2 1B
    vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_layers=16, num_heads=32, num_kv_heads=8, head_dim=64, rope_theta=5e5,
    max_positions=131_072,
    rope_scaling=dict(rope_type='llama3', factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192),
  ),
  'qwen3_8b': dict(
    vocab_size=151_936, hidden_size=4096, intermediate_size=12_288, num_layers=36, num_heads=32, num_kv_heads=8, head_dim=128, rope_theta=1e6,
    norm_eps=1e-6, qk_norm=True, tie_embeddings=False, max_positions=40_960,
  ),
  'llama3_70b': dict(
    vocab_size=128_256, hidden_size=8192, intermediate_size=28_672, num_layers=80, num_heads=64, num_kv_heads=8, rope_theta=5e5,
    tie_embeddings=False, max_positions=8192,
  ),
}  # fmt: skip


def get_config(arg: str = 'qwen3_8b') -> ml_collections.ConfigDict:
  """Returns the config of a shape, or of a policy of it: 'grpo_' and a shape."""
  shape = arg.removeprefix('grpo_')
  if shape not in SHAPES:
    raise ValueError(f"configs/large.py:{arg}: choose one of {', '.join(SHAPES)}, or grpo_ and one of them")
  config = grpo.get_config() if shape != arg else bradley_terry.get_config()
  config.model.update(decoder=dict(SHAPES[shape]), dtype='bfloat16', remat='full')
  if shape != arg:
    config.world = dict(name='rmjax.worlds.sequences:Sequences', train_size=1, eval_size=1)
    config.data.max_length = 1024
    config.sampling.update(responses=8, max_new_tokens=1024)
    # One of the same shape; for training give the --workdir of a trained one as `checkpoint` in its place.
    config.rewards = dict(helpful=dict(weight=1.0, decoder=dict(SHAPES[shape])))
    config.train.prompts = 256
    config.mesh.update(data=1, fsdp=-1, tensor=8)
    return config
  config.world = dict(name='rmjax.worlds.preferences:Preferences', train_size=1, eval_size=1, responses=2)
  config.data.max_length = 8192
  config.train.update(rows=64, length=8192, slots=16)
  config.mesh.update(data=1, fsdp=-1)
  return config
