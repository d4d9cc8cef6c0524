# %% [markdown]
# # Train, look at and use a reward model
#
# On the embedded world of preferences: real text with a known gold reward. Minutes on a CPU, seconds on a Colab TPU
# (there, first run `!pip install -q "rmjax[tpu] @ git+<this repository>"`).

# %%
import functools
import os

import jax
import matplotlib.pyplot as plt
import numpy as np

from rmjax.backbones.decoder import DecoderConfig
from rmjax.data.pipeline import train_batches
from rmjax.data.tokenizer import Tokenizer
from rmjax.evaluation.scoring import score_records
from rmjax.evaluation.summary import summary
from rmjax.models import build
from rmjax.training.mesh import one_device_mesh, shard_batch
from rmjax.training.optimizers import make_optimizer, make_schedule
from rmjax.training.reward import reward_objective
from rmjax.training.saved import init_params
from rmjax.training.step import init_state, make_step
from rmjax.worlds.preferences import Preferences

STEPS = int(os.environ.get('NOTEBOOK_STEPS', 300))

# %% [markdown]
# ## The data: a prompt, four responses, and who won

# %%
world, held_out = Preferences(split='train', size=100_000), Preferences(split='eval', size=100)
record = world[0]
print(record.prompt)
for text, gold in zip(record.responses, record.labels['gold'], strict=True):
  print(f'{gold:6.2f}  {text}')
print(record.wins)

# %% [markdown]
# ## The model: a backbone and a head; the step: one for everything

# %%
tokenizer = Tokenizer.load(world.tokenizer_path)
encode = functools.partial(tokenizer.encode_record, max_length=64)
shape = dict(rows=8, length=128, slots=3, responses=4)
batches = train_batches(world, encode, seed=0, **shape)

mesh = one_device_mesh()
decoder = DecoderConfig(vocab_size=tokenizer.vocab_size, hidden_size=128, intermediate_size=344, num_layers=3, num_heads=4, num_kv_heads=4)
model = build(decoder, dtype='float32', remat='none', head=dict(name='rmjax.heads.scalar:ScalarHead'), lora=dict(rank=0))
params = {'reward': init_params(model, '', mesh, jax.random.key(0))}
optimizers = {'reward': make_optimizer(params['reward'], make_schedule(learning_rate=1e-3, steps=STEPS))}
objective = reward_objective(model, {'preference': dict(name='rmjax.losses.preference:preference_cross_entropy')})
step = jax.jit(make_step(objective, optimizers), donate_argnums=0)

state, losses = init_state(params, optimizers, jax.random.key(1)), []
for _ in range(STEPS):
  state, metrics = step(state, shard_batch(next(batches).trees, mesh))
  losses.append(metrics['loss'][0] / metrics['loss'][1])
plt.plot(np.array(losses))
plt.xlabel('step')
plt.ylabel('loss (nats)')

# %% [markdown]
# ## Look at it, and use it

# %%
records = [held_out[i] for i in range(len(held_out))]
scored = list(score_records(model, state.params['reward'], records, encode, mesh=mesh, **shape))
figures = summary(scored)
print({name: round(figures[name], 3) for name in ('accuracy', 'accuracy_se', 'bayes_accuracy', 'gold_accuracy', 'best_of_n_accuracy')})
best = scored[0].rewards.argmax()
print(records[0].prompt, records[0].responses[best])
