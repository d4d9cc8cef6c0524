"""The quickstart: a reward model of 0.6 million parameters, from scratch, on the embedded world, in minutes on a laptop's CPU.

Run it with `make quickstart`.
"""

import ml_collections

from configs import bradley_terry


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  config = bradley_terry.get_config(arg)
  config.world = dict(
    name='rmjax.worlds.preferences:Preferences',
    train_size=100_000,
    eval_size=500,
    tasks=('lookup', 'count', 'order', 'form', 'copy'),
    exchange=False,
    responses=4,
    pairs=0,
    correctness=4.0,
    completeness=1.0,
    courtesy=0.5,
    verbosity=-0.25,
    temperature=0.5,
    length_bias=0.0,
  )
  config.data.max_length = 64
  config.model.update(dtype='float32', remat='dots')
  config.model.decoder = dict(hidden_size=128, intermediate_size=344, num_layers=3, num_heads=4, num_kv_heads=4)
  config.train.update(steps=1500, rows=8, length=128, slots=3, responses=4, log_every=100, eval_every=0, save_every=750, best='')
  config.optimizer.update(learning_rate=1e-3, warmup=0.05, final=0.05)
  config.mesh.update(data=-1, fsdp=1)
  return config
