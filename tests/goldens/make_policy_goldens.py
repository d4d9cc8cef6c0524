"""Makes tests/goldens/policy/trl.json: what TRL's own GRPO and RLOO losses give, and their gradients, in float64.

  python tests/goldens/make_policy_goldens.py     (made with trl 1.16.0, torch 2.13.0)

`GRPOTrainer._compute_loss` and `RLOOTrainer._compute_loss` run as they are, on a stand-in for the trainer whose forward pass gives the log-probs drawn
here. TRL has no function for advantages: they are inside the method that samples. `advantages` below writes out in NumPy what that method does with
its masked means and deviations (sum_then_normalize; RLOO without KL), and is as good as our reading of it.
"""

import collections
import itertools
import json
from pathlib import Path
import types

import numpy as np
import torch
import trl
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

OUT = Path(__file__).parent / 'policy' / 'trl.json'
MAX_LENGTH = 8
BASE = dict(loss_type='dapo', importance_sampling_level='token', beta=0.0, epsilon_low=0.2, epsilon_high=0.2, delta=None, use_bias_correction_kl=False)
CASES = {
  **{name: dict(loss_type=name) for name in ('grpo', 'dr_grpo', 'bnpo', 'dapo')},
  **{f'{name}_kl': dict(loss_type=name, beta=0.3) for name in ('grpo', 'dr_grpo', 'dapo')},
  'clip_higher': dict(epsilon_high=0.28),
  'delta': dict(delta=1.5),
  'cispo': dict(loss_type='cispo', epsilon_high=1.4),
  'gspo': dict(loss_type='grpo', importance_sampling_level='sequence', epsilon_low=0.05, epsilon_high=0.06),
  'gspo_kl': dict(loss_type='grpo', importance_sampling_level='sequence', epsilon_low=0.05, epsilon_high=0.06, beta=0.3),
}


def stand_in(trainer: type, log_probs: torch.Tensor, options: dict) -> types.SimpleNamespace:
  """What `_compute_loss` reads of a trainer, with one process, no accumulation, no entropy bonus."""
  same = lambda x, **_: x
  return types.SimpleNamespace(
    **{**options, 'args': types.SimpleNamespace(**options)},
    _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None),
    accelerator=types.SimpleNamespace(gather=same, gather_for_metrics=same, reduce=same, num_processes=1),
    model=types.SimpleNamespace(training=False),
    max_completion_length=MAX_LENGTH,
    current_gradient_accumulation_steps=1,
    aux_loss_enabled=False,
    top_entropy_quantile=1.0,
    off_policy_mask_threshold=None,
    use_vllm=False,
    _entropy_bonus_enabled=False,
    _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
  )


def loss_and_gradient(trainer: type, options: dict, drawn: dict[str, np.ndarray], **more: torch.Tensor) -> dict:
  """The loss and its gradient by the log-probs of the policy."""
  tensors = {name: torch.tensor(x, dtype=torch.float64) for name, x in drawn.items()}
  log_probs = tensors['log_probs'].requires_grad_()
  ids = torch.zeros(log_probs.shape, dtype=torch.long)
  inputs = dict(prompt_ids=ids[:, :1], prompt_mask=ids[:, :1] + 1, completion_ids=ids, completion_mask=tensors['mask'], advantages=tensors['advantages'])
  inputs |= dict(old_per_token_logps=tensors['old_log_probs'], ref_per_token_logps=tensors['ref_log_probs'], num_items_in_batch=tensors['mask'].sum())
  inputs |= dict(old_logps=(tensors['old_log_probs'] * tensors['mask']).sum(1))
  loss = trainer._compute_loss(stand_in(trainer, log_probs, options), None, inputs)
  loss.backward()
  return dict(loss=loss.item(), gradient=log_probs.grad.tolist())


def advantages(scores: np.ndarray, scale: str) -> np.ndarray:
  """TRL's advantages [P, G] of scores that are NaN where no reward applies; see the top."""
  count = (~np.isnan(scores)).sum(1, keepdims=True)
  with np.errstate(invalid='ignore', divide='ignore'):
    if scale == 'rloo':
      out = scores - (np.nansum(scores, 1, keepdims=True) - scores) / (count - 1)
    else:
      out = scores - np.nanmean(scores, 1, keepdims=True)
      if scale != 'none':
        out = out / (np.nanstd(scores, axis=1 if scale == 'group' else None, ddof=1, keepdims=True) + 1e-4)
  return np.nan_to_num(out, nan=0.0)


def main() -> None:
  """Writes the file."""
  rng = np.random.default_rng(0)
  lengths = (6, 3, 1, 8, 4)
  mask = (np.arange(MAX_LENGTH) < np.array(lengths)[:, None]).astype(float)
  mask[0, 2] = mask[3, 0] = 0  # tokens of a tool
  old = -rng.exponential(size=mask.shape)
  drawn = dict(log_probs=np.minimum(old + rng.normal(size=mask.shape) * 0.5, 0), old_log_probs=old, ref_log_probs=old + rng.normal(size=mask.shape) * 0.5)
  drawn |= dict(mask=mask, advantages=np.array([1.3, -0.7, 0.4, -1.1, 0.1]))
  drawn = {name: x.round(4) for name, x in drawn.items()}

  cases = {name: {**BASE, **options} for name, options in CASES.items()}
  results = {name: loss_and_gradient(GRPOTrainer, options, drawn) for name, options in cases.items()}
  cases['rloo'] = dict(epsilon_low=0.2, epsilon_high=0.2)
  results['rloo'] = loss_and_gradient(RLOOTrainer, cases['rloo'], drawn)
  for (a, x), (b, y) in itertools.combinations(results.items(), 2):
    assert {a, b} == {'dapo', 'bnpo'} or abs(x['loss'] - y['loss']) > 1e-4, (a, b)  # every case can be told from the others

  scores = np.array([[1.0, 0.0, 0.5, 0.2], [np.nan, 3.0, 1.0, 1.5], [0.25] * 4, [np.nan, np.nan, np.nan, 2.0]])
  golden = dict(
    made_by=f'tests/goldens/make_policy_goldens.py, trl {trl.__version__}, torch {torch.__version__}, float64',
    max_length=MAX_LENGTH,
    lengths=lengths,
    inputs={name: x.tolist() for name, x in drawn.items()},
    options=cases,
    losses=results,
    scores=[[None if np.isnan(x) else x for x in group] for group in scores],
    advantages={name: advantages(scores, name).tolist() for name in ('group', 'batch', 'none', 'rloo')},
  )
  OUT.parent.mkdir(exist_ok=True)
  OUT.write_text(json.dumps(golden, indent=1) + '\n')
  print(*((name, result['loss']) for name, result in results.items()), sep='\n')


if __name__ == '__main__':
  main()
