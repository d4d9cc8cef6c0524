"""Writes a trained reward model as a Hugging Face directory.

  python -m experiments.export --checkpoint=DIR --output=HF_DIR [--best] [--dtype=bfloat16]

`transformers.AutoModelForSequenceClassification.from_pretrained(HF_DIR)` gives the same scores for the same token ids: those of prompt and
response as one text, with the tokenizer's end-of-text token after plain text, or as the chat template has it. A policy, by preferences or against rewards,
is written as the language model that it is, for `AutoModelForCausalLM`.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags
import jax

from experiments import cli
from rmjax.backbones import pretrained
from rmjax.backbones.decoder import DecoderConfig
from rmjax.backbones.lora import merge_lora
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.heads.implicit import ImplicitRewardHead
from rmjax.heads.scalar import ScalarHead
from rmjax.training.checkpoints import read_meta
from rmjax.training.mesh import one_device_mesh
from rmjax.training.saved import is_policy, load_policy, load_reward_model

CAUSAL = 'AutoModelForCausalLM'


def export(checkpoint: Path | str, output: Path | str, *, best: bool = False, dtype: str = 'float32') -> str:
  """Writes weights, config and tokenizer.

  Returns:
    The class of transformers that loads it.

  Raises:
    InputError: the head is neither scalar nor implicit, no Hugging Face architecture has the decoder, or no token can pad.
  """
  if is_policy(checkpoint):
    policy = load_policy(checkpoint, one_device_mesh(), best=best)
    _write(output, policy.decoder.config, policy.params, policy.tokenizer, dtype=dtype, extra={})
    return CAUSAL
  saved = load_reward_model(checkpoint, best=best)
  head = saved.model.head
  implicit = isinstance(head, ImplicitRewardHead)
  if not implicit and (not isinstance(head, ScalarHead) or 'head' not in saved.params):
    raise InputError(f'{checkpoint} has a {type(head).__name__}, and Hugging Face has a form for ScalarHead alone: without its head it is no reward model')
  params = saved.params['backbone']
  if any('_lora_' in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)):
    params = merge_lora(params, alpha=read_meta(checkpoint)['config']['model']['lora']['alpha'])
  # `rmjax` says how long a text may be, and the like.
  score = None if implicit else saved.params['head']['score']['kernel']
  _write(output, saved.model.backbone.config, params, saved.tokenizer, score=score, dtype=dtype, extra={'rmjax': saved.data})
  return CAUSAL if implicit else 'AutoModelForSequenceClassification'


def _write(
  output: Path | str, config: DecoderConfig, params: Any, tokenizer: Tokenizer, *, score: Any = None, dtype: str, extra: dict[str, Any]
) -> None:
  pad = padding_token(tokenizer)
  ids = dict(bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=pad)
  extra = {**{name: value for name, value in ids.items() if value >= 0}, **extra}
  pretrained.save(output, config, params, score=score, dtype=dtype, extra=extra)
  tokenizer.save(output)
  _set_padding(Path(output), tokenizer.backend.id_to_token(pad))


def padding_token(tokenizer: Tokenizer) -> int:
  """A token that ends no response. Hugging Face reads a reward at the last token that is not padding, so a pad that is EOS would move it.

  Returns:
    The tokenizer's own padding token, or else BOS, or else the unknown token.

  Raises:
    InputError: none of them will do.
  """
  ends = {tokenizer.eos_id, tokenizer.encode_path('a', 'b')[0][-1]}
  if tokenizer.has_chat_template:
    ends.add(tokenizer.encode_path([{'role': 'user', 'content': 'a'}], 'b')[0][-1])
  for candidate in (tokenizer.pad_id, tokenizer.bos_id, tokenizer.unk_id):
    if candidate >= 0 and candidate not in ends:
      return candidate
  raise InputError('the tokenizer has no token to pad with that ends no response: give it a pad_token that is not its eos_token')


def _set_padding(directory: Path, token: str) -> None:
  for name in ('tokenizer_config.json', 'special_tokens_map.json'):
    file = directory / name
    if file.is_file():
      config: dict[str, Any] = json.loads(file.read_text(encoding='utf-8'))
      file.write_text(json.dumps({**config, 'pad_token': token}, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def define_flags() -> None:
  """Defines the flags."""
  flags.DEFINE_string('checkpoint', None, 'The --workdir of a training run.', required=True)
  flags.DEFINE_string('output', None, 'Directory to write.', required=True)
  flags.DEFINE_bool('best', False, "Take the run's best checkpoint instead of its newest.")
  flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of the tensors.')


def main() -> None:
  """Exports what the flags say."""
  output = flags.FLAGS.output
  loader = export(flags.FLAGS.checkpoint, output, best=flags.FLAGS.best, dtype=flags.FLAGS.dtype)
  print(f"{output}: load it with transformers.{loader}.from_pretrained('{output}')")


if __name__ == '__main__':
  define_flags()
  cli.run(main)
