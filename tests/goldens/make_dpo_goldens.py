"""Makes tests/goldens/dpo/trl.json: what TRL's own losses on preferences give, and their gradients by the log-probs of the policy, in float64.

  python tests/goldens/make_dpo_goldens.py     (made with trl 1.16.0, torch 2.13.0, transformers 5.23.0)

`DPOTrainer._compute_loss`, `KTOTrainer._compute_loss`, `CPOTrainer.cpo_loss` and `ORPOTrainer.odds_ratio_loss` run as they are, on a stand-in for the
trainer; the forward pass gives log-probs that are drawn here. ORPO's function casts to float32 itself. `forward` is a real one: the log-probs that
transformers gives two responses under tests/goldens/decoders/llama (policy) and the same with its last norm halved (reference), summed by TRL.
"""

import collections
import json
from pathlib import Path
import types

import numpy as np
import torch
import transformers
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

OUT = Path(__file__).parent / 'dpo' / 'trl.json'
PAIRS, LENGTH = 3, 7
DPO = {
  'sigmoid': dict(loss_types=['sigmoid']),
  'hinge': dict(loss_types=['hinge']),
  'ipo': dict(loss_types=['ipo']),
  'robust': dict(loss_types=['robust'], label_smoothing=0.2),
  'sigmoid_norm': dict(loss_types=['sigmoid_norm']),
  'wpo': dict(loss_types=['sigmoid'], use_weighting=True),
  'sft': dict(loss_types=['sft']),
}
SHARED = dict(beta=0.3, label_smoothing=0.0, use_weighting=False, loss_weights=[1.0], ld_alpha=None, f_divergence_type='reverse_kl')
CPO = {  # of average log-probs, as the trainer hands them to 'simpo'
  'simpo': dict(loss_type='simpo', beta=2.0, simpo_gamma=0.7, label_smoothing=0.0),
  'cdpo': dict(loss_type='sigmoid', beta=0.3, simpo_gamma=0.0, label_smoothing=0.2),  # without a reference; `DPOTrainer` has no smoothing of 'sigmoid'
}


def stand_in(**options) -> types.SimpleNamespace:
  """What the losses read of a trainer: one process, a reference whose log-probs come with the batch."""
  same = lambda x, **_: x
  return types.SimpleNamespace(
    **options,
    accelerator=types.SimpleNamespace(device='cpu', gather=same, gather_for_metrics=same),
    model=types.SimpleNamespace(training=False),
    precompute_ref_logps=True,
    aux_loss_enabled=False,
    _total_train_tokens=0,
    _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
  )


def output(log_probs: torch.Tensor, squares: torch.Tensor | None = None) -> types.SimpleNamespace:
  """What TRL's forward pass gives: figures of each token."""
  zeros = torch.zeros_like(log_probs)
  return types.SimpleNamespace(log_probs=log_probs, log_sum_sq_probs=zeros if squares is None else squares, entropy=zeros, mean_logits=zeros, is_top1=zeros > 1)


def dpo(options: dict, drawn: dict[str, np.ndarray]) -> dict:
  """Loss, gradient and figures of `DPOTrainer`."""
  tensors = {name: torch.tensor(x) for name, x in drawn.items()}
  log_probs, mask = tensors['log_probs'].requires_grad_(), tensors['mask']
  masked = log_probs * mask
  completion = torch.nn.functional.pad(mask.long(), (1, 0))
  sums = (tensors['ref_log_probs'] * mask).sum(1).chunk(2)
  inputs = dict(
    input_ids=completion, attention_mask=torch.ones_like(completion), completion_mask=completion,
    ref_chosen_logps=sums[0], ref_rejected_logps=sums[1],
  )  # fmt: skip
  trainer = stand_in(**{**SHARED, **options})
  loss = DPOTrainer._compute_loss(trainer, lambda **_: output(masked, tensors['squares'] * mask), inputs, False)
  loss.backward()
  figures = {name: values[-1] for name, values in trainer._metrics['eval'].items() if name.startswith(('rewards/', 'logps/'))}
  return dict(loss=loss.item(), gradient=(log_probs.grad * mask).tolist(), figures=figures)


def kto(drawn: dict[str, np.ndarray], desirable: float, shift: float) -> dict:
  """Loss and gradient of `KTOTrainer`: the first three responses are desirable. `shift` moves the mismatched ones' log-probs."""
  tensors = {name: torch.tensor(x) for name, x in drawn.items()}
  log_probs, mask = tensors['log_probs'].requires_grad_(), tensors['mask']
  mismatched = tensors['mismatched'] + shift
  completion = torch.nn.functional.pad(mask.long(), (1, 0))
  inputs = dict(
    input_ids=completion, attention_mask=torch.ones_like(completion), completion_mask=completion, label=torch.arange(2 * PAIRS) < PAIRS,
    ref_logps=(tensors['ref_log_probs'] * mask).sum(1), ref_KL_logps=tensors['ref_mismatched'],
  )  # fmt: skip
  options = dict(beta=0.3, loss_type='kto', desirable_weight=desirable, undesirable_weight=1.0, calculate_KL=True)
  trainer = stand_in(**options, _compute_kl_logps=lambda *_: mismatched)
  loss = KTOTrainer._compute_loss(trainer, lambda **_: output(log_probs * mask), inputs, False)
  loss.backward()
  return dict(loss=loss.item(), gradient=(log_probs.grad * mask).tolist(), desirable=desirable, shift=shift)


def cpo(options: dict, drawn: dict[str, np.ndarray]) -> dict:
  """Losses of `CPOTrainer`."""
  chosen, rejected = averages(drawn).chunk(2)
  losses, _, _ = CPOTrainer.cpo_loss(stand_in(alpha=0.0, **options), chosen, rejected)
  return dict(losses=losses.tolist(), **options)


def averages(drawn: dict[str, np.ndarray]) -> torch.Tensor:
  """Mean log-prob of a token of each response."""
  return torch.tensor((drawn['log_probs'] * drawn['mask']).sum(1) / drawn['mask'].sum(1))


def forward() -> dict:
  """Summed log-probs of two responses, by transformers."""
  rng = np.random.default_rng(1)
  prompt, *responses = (rng.integers(3, 48, size).tolist() for size in (5, 4, 6))
  policy = transformers.AutoModelForCausalLM.from_pretrained(Path(__file__).parent / 'decoders' / 'llama').double().eval()
  out = dict(prompt=prompt, responses=responses, log_probs=[], ref_log_probs=[], confidence=[])
  for name, scale in (('log_probs', 1.0), ('ref_log_probs', 0.5)):
    with torch.no_grad():
      policy.model.norm.weight *= scale
      for response in responses:
        log_p = policy(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        picked = log_p.gather(1, torch.tensor(response)[:, None])[:, 0]
        out[name].append(picked.sum().item())
        if scale == 1.0:
          out['confidence'].append((picked - log_p.exp().square().sum(-1).log()).mean().item())
  return out


def main() -> None:
  """Writes the file."""
  rng = np.random.default_rng(0)
  lengths = rng.integers(2, LENGTH + 1, 2 * PAIRS)
  shape = 2 * PAIRS, LENGTH
  drawn = dict(
    log_probs=-rng.exponential(1.0, shape), ref_log_probs=-rng.exponential(1.0, shape), squares=-rng.exponential(1.0, shape),
    mask=(np.arange(LENGTH) < lengths[:, None]).astype(np.float64),
    mismatched=-rng.exponential(5.0, 2 * PAIRS), ref_mismatched=-rng.exponential(5.0, 2 * PAIRS),
  )  # fmt: skip
  chosen, rejected = averages(drawn).chunk(2)
  losses, *_, log_odds = ORPOTrainer.odds_ratio_loss(stand_in(beta=0.1), chosen, rejected)
  golden = dict(
    drawn={name: x.tolist() for name, x in drawn.items()},
    beta=SHARED['beta'],
    dpo={name: {**dpo(options, drawn), 'label_smoothing': options.get('label_smoothing', 0.0)} for name, options in DPO.items()},
    kto=[kto(drawn, desirable, shift) for desirable, shift in ((1.0, 20.0), (1.3, 20.0), (1.0, -20.0))],
    cpo={name: cpo(options, drawn) for name, options in CPO.items()},
    orpo=dict(losses=losses.tolist(), beta=0.1, log_odds=log_odds.item()),
    forward=forward(),
  )
  OUT.parent.mkdir(exist_ok=True)
  OUT.write_text(json.dumps(golden) + '\n')


if __name__ == '__main__':
  main()
