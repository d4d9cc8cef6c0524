"""A small policy pretrained on the text of the embedded world: the responses to its prompts, good and bad alike, about a minute on two cores.

  python -m experiments.train_reward --config=configs/sft.py --workdir=runs/sft

Where a policy starts from: `--config.model.path=runs/sft` of configs/dpo.py and others. `eval_loss` is in nats a token. On data of your own
(`prompt` and `completion`, or any other that rmjax reads), with a model of your own, set config.data.train, config.data.eval and config.model.path.
"""

import ml_collections

from configs import quickstart


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  config = quickstart.get_config(arg)
  config.system = 'sft'
  config.model.head = dict(name='rmjax.heads.implicit:ImplicitRewardHead', beta=1.0, average=False, reference='none')
  config.model.decoder = dict(hidden_size=128, intermediate_size=344, num_layers=2, num_heads=4, num_kv_heads=4)
  config.losses = dict(likelihood=dict(name='rmjax.losses.implicit:negative_log_likelihood', per='token', weight=1.0))
  config.train.update(steps=600, save_every=0)
  config.evaluation.measures = ()
  return config
