# %% [markdown]
# # Which reward model should I trust?
#
# Three reward models on the embedded world, where the true quality ("gold") of every response is known: a good one, one whose annotator liked long
# answers, and one that was barely trained. Their accuracies do not tell how each of them fails: calibration, length bias, styles and best-of-n do.

# %%
import functools
import os
from pathlib import Path
import tempfile

from IPython.display import Image
import jax
import matplotlib.pyplot as plt
import numpy as np

from rmjax.backbones.decoder import DecoderConfig
from rmjax.data.pipeline import train_batches
from rmjax.data.tokenizer import Tokenizer
from rmjax.evaluation import accuracy, bootstrap, calibration
from rmjax.evaluation.overoptimization import Curves, overoptimization
from rmjax.evaluation.overoptimization_figures import overoptimization_curves
from rmjax.evaluation.scored import compared_pairs
from rmjax.evaluation.scoring import score_records
from rmjax.evaluation.summary import summary
from rmjax.models import build
from rmjax.training.mesh import one_device_mesh, shard_batch
from rmjax.training.optimizers import make_optimizer, make_schedule
from rmjax.training.reward import reward_objective
from rmjax.training.saved import init_params
from rmjax.training.step import init_state, make_step
from rmjax.worlds.preferences import Preferences
from rmjax.worlds.preferences_tasks import FILLERS

STEPS = int(os.environ.get('NOTEBOOK_STEPS', 200))
SETTINGS = dict(
  tasks=('copy',), answers=False, correctness=0.0, completeness=0.0, marks=3, grade=4.0, courtesy=0.5, verbosity=-0.5, temperature=0.7, fillers=(0, 1, 2, 3, 4)
)

# %% [markdown]
# ## Three models
#
# Gold wants good marks, a polite opening and no filler. One annotator adds a logit for every word that a response is longer.

# %%
held_out = Preferences(split='eval', size=100, **{**SETTINGS, 'responses': 16})
records = [held_out[i] for i in range(len(held_out))]
tokenizer = Tokenizer.load(held_out.tokenizer_path)
encode = functools.partial(tokenizer.encode_record, max_length=64)
mesh = one_device_mesh()
decoder = DecoderConfig(vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=172, num_layers=2, num_heads=2, num_kv_heads=2)
model = build(decoder, dtype='float32', remat='none', head=dict(name='rmjax.heads.scalar:ScalarHead'), lora=dict(rank=0))
params = init_params(model, '', mesh, jax.random.key(0))
optimizers = {'reward': make_optimizer(params, make_schedule(learning_rate=3e-3, steps=STEPS))}
objective = reward_objective(model, {'preference': dict(name='rmjax.losses.preference:preference_cross_entropy')})
step = jax.jit(make_step(objective, optimizers))


def train(steps, **annotator):
  batches = train_batches(Preferences(split='train', size=20_000, **SETTINGS, **annotator), encode, seed=0, rows=8, length=160, slots=2, responses=4)
  state = init_state({'reward': params}, optimizers, jax.random.key(1))
  for _ in range(steps):
    state, _ = step(state, shard_batch(next(batches).trees, mesh))
  return list(score_records(model, state.params['reward'], records, encode, mesh=mesh, rows=4, length=512, slots=1, responses=16))


models = {'good': train(STEPS), 'liked length': train(STEPS, length_bias=1.0), 'barely trained': train(STEPS // 20)}
pairs = {name: compared_pairs(scored) for name, scored in models.items()}

# %% [markdown]
# ## Calibration, length and styles, side by side
#
# * Calibration: how often the response that the model prefers was preferred, against what the model says.
# * Length: accuracy against gold where the better response is the longer one, and where it is the shorter one.
# * Styles: the same, by how wordy the better (rows) and the worse response (columns) are. A model that can be trusted changes little along a row.

# %%
STYLES = ('plain', 'medium', 'wordy')


def wordiness(record):
  """0, 1 or 2 for each response of a compared pair, in the order of `compared_pairs`."""
  style = np.array([min(sum(text.count(filler) for filler in FILLERS) // 2, 2) for text in record.responses])
  return style[np.argwhere(np.triu(record.wins + record.wins.T, 1))]


styles = np.concatenate([wordiness(record) for record in records])


def right_by_gold(p):
  return accuracy.agreement(p.logits, 0.5 + p.gold)


figure, axes = plt.subplots(3, len(models), figsize=(11, 9.5), layout='constrained')
for column, (name, p) in zip(axes.T, pairs.items(), strict=True):
  curve, right = calibration.reliability(p.logits, p.wins), right_by_gold(p)
  shown = curve.count > 0
  column[0].plot([0.5, 1], [0.5, 1], '--', color='grey')
  column[0].plot(curve.confidence[shown], curve.accuracy[shown], 'o-')
  column[0].set(title=f'{name}\nECE {calibration.expected_calibration_error(curve):.3f}', xlabel='stated probability', ylabel='observed', ylim=(0.3, 1.02))

  longer = np.sign(p.gold) == np.sign(p.lengths @ [1, -1])
  for place, (label, part) in enumerate((('better one longer', longer), ('better one shorter', np.sign(p.gold) == -np.sign(p.lengths @ [1, -1])))):
    value = np.nanmean(right[part])
    low, high = bootstrap.interval(np.nanmean, right[part], groups=p.groups[part])
    column[1].bar(label, value, yerr=[[value - low], [high - value]], color=f'C{place}', capsize=4)
  column[1].axhline(0.5, linestyle='--', color='grey')
  column[1].set(ylim=(0, 1), ylabel='accuracy against gold')

  better = np.where(p.gold[:, None] > 0, styles, styles[:, ::-1])
  matrix = np.array([[np.nanmean(right[(better == (a, b)).all(1)]) for b in range(3)] for a in range(3)])
  column[2].imshow(matrix, vmin=0, vmax=1, cmap='RdYlGn')
  for (a, b), value in np.ndenumerate(matrix):
    column[2].text(b, a, f'{value:.2f}', ha='center', va='center')
  column[2].set(xticks=range(3), xticklabels=STYLES, yticks=range(3), yticklabels=STYLES, xlabel='worse response', ylabel='better response')

# %% [markdown]
# ## What happens when one optimizes against them: the best of n
#
# The response with the highest reward of n, as n grows: the reward always rises, and gold does only as long as the model can be trusted. The distance from
# the unselected responses is log n - (n - 1) / n.


# %%
def best_of(scored):
  n = np.array([1, 2, 4, 8, 16])
  deviation = np.std(np.concatenate([record.rewards for record in scored]))
  best = [[(record.gold[k], record.rewards[k] / deviation) for record in scored for k in [np.argmax(record.rewards[:size])]] for size in n]
  gold, proxy = np.mean(best, 1).T
  return Curves(n.astype(float), gold - gold[0], (proxy - proxy[0])[:, None], np.log(n) - (n - 1) / n)


curves = {name: best_of(scored) for name, scored in models.items()}
out = Path(tempfile.mkdtemp()) / 'best_of_n.png'
Image(overoptimization_curves({name: [curve] for name, curve in curves.items()}, out, names=['reward']), width=1000)

# %% [markdown]
# ## The answer
#
# One line a model; differences in accuracy against gold are of the same pairs, with intervals over prompts. Two models may earn the same reward by
# best-of-n and differ in what it is worth.

# %%
for name, scored in models.items():
  figures, lost = summary(scored), overoptimization(curves[name], names=['reward'])
  print(f'{name:15s}', {key: round(figures[key], 3) for key in ('accuracy', 'gold_accuracy', 'bayes_accuracy', 'ece', 'length_spearman_within')}, end=' ')
  print(f'best of 16: gold {lost["gold_last"]:+.2f}, reward {lost["reward_last"]:+.2f} deviations')
  if name != 'good':
    difference = bootstrap.paired(right_by_gold(pairs['good']) - right_by_gold(pairs[name]), pairs['good'].groups)
    print(f'{"":15s} good - {name}: {difference.mean:+.3f} in [{difference.low:+.3f}, {difference.high:+.3f}], p = {difference.p_value:.3f}')
