"""What the claims of the preference family are tested on: a decoder of 0.1 million parameters, short texts of the preferences world, minutes in all.

The base of gpm.py, oprm.py and fimi.py; trained by itself it is a Bradley-Terry model.
"""

import ml_collections

from configs import bradley_terry


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  config = bradley_terry.get_config(arg)
  config.world = dict(
    name='rmjax.worlds.preferences:Preferences',
    train_size=20_000,
    eval_size=400,
    eval=dict(),  # settings in which the evaluation's records differ
    tasks=('count',),
    answers=False,  # texts are a courtesy, fillers and marks: seconds are enough to learn what they mean
    exchange=False,
    responses=4,
    pairs=0,
    correctness=0.0,
    completeness=0.0,
    courtesy=0.0,
    verbosity=0.0,
    fillers=(0, 0, 0, 1, 1, 2),
    marks=0,
    clarity=0.9,
    blur=1.0,
    grade=0.0,
    cycle=0.0,
    temperature=1.0,
    length_bias=0.0,
    curve='linear',
    bend=12,
    contested=(),
    levels=0,
    labelled=0.0,
  )
  config.data.max_length = 64
  config.model.update(dtype='float32', remat='dots')
  config.model.decoder = dict(hidden_size=64, intermediate_size=172, num_layers=2, num_heads=2, num_kv_heads=2)
  config.train.update(steps=200, rows=8, length=112, slots=2, responses=4, log_every=50, eval_every=0, save_every=0, best='')
  config.optimizer.update(learning_rate=3e-3, warmup=0.05, final=0.05)
  config.mesh.update(data=-1, fsdp=1)
  return config
