"""Low-rank adapters on a decoder, through qwix (the extra `lora`)."""

from typing import Any

from rmjax.backbones.decoder import Decoder
from rmjax.errors import InputError

FROZEN = r'^backbone/(?!.*_lora_[ab]$)'  # paths of a reward model's parameters that rest while adapters and head train


def add_lora(decoder: Decoder, *, rank: int, alpha: float, modules: str) -> Decoder:
  """A decoder whose matching projections compute x (W + alpha / rank A B).

  Each adapted module gains `kernel_lora_a` (drawn) and `kernel_lora_b` (zero), so that it starts as it was.

  Args:
    decoder: the network.
    rank: of A B.
    alpha: scale.
    modules: regular expression of module paths such as 'layers/attention/query'.

  Raises:
    InputError: qwix is not installed.

  Reference: Hu et al., LoRA (2021), eq. 3.
  """
  try:
    import qwix
  except ImportError as e:
    raise InputError("config.model.lora needs qwix: pip install 'rmjax[lora]'") from e
  return qwix.apply_lora_to_model(decoder, qwix.LoraProvider([qwix.LoraRule(module_path=modules, rank=rank, alpha=alpha)]))


def merge_lora(params: Any, *, alpha: float) -> Any:
  """Parameters of the plain decoder that computes the same: every kernel + alpha / rank A B, the adapters gone."""
  if not isinstance(params, dict):
    return params
  merged = {name: merge_lora(value, alpha=alpha) for name, value in params.items() if not name.endswith(('_lora_a', '_lora_b'))}
  if 'kernel_lora_a' in params:
    a, b = params['kernel_lora_a'], params['kernel_lora_b']
    merged['kernel'] = merged['kernel'] + alpha / a.shape[-1] * (a @ b)
  return merged
