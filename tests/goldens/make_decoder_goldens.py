"""Makes tests/goldens/decoders: tiny random models of every family, and the logits and scores that transformers computes with them.

  python tests/goldens/make_decoder_goldens.py     (made with torch 2.13.0, transformers 5.23.0; float64, so that the golden's own error does not count)

Every parameter is drawn at random, norms and biases too, so that no two can be mixed up unseen. Windows are shorter than the text.
"""

from pathlib import Path
import shutil

import numpy as np
import torch
import transformers

OUT = Path(__file__).parent / 'decoders'
SIZES = dict(vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
LLAMA3 = dict(rope_type='llama3', rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
FAMILIES = {
  'llama': ('Llama', dict(head_dim=8, tie_word_embeddings=True)),
  'llama3': ('Llama', dict(head_dim=8, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True)),
  'llama_linear': ('Llama', dict(head_dim=8, num_key_value_heads=4, rope_parameters=dict(rope_type='linear', rope_theta=1e4, factor=2.0))),
  'mistral': ('Mistral', dict(head_dim=8, sliding_window=5)),
  'qwen2': ('Qwen2', dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)),
  'qwen3': ('Qwen3', dict(head_dim=16, tie_word_embeddings=True)),
  'gemma2': ('Gemma2', dict(head_dim=16, sliding_window=5, query_pre_attn_scalar=24, attn_logit_softcapping=5.0, final_logit_softcapping=3.0)),
  'gemma3': ('Gemma3Text', dict(head_dim=16, sliding_window=5, query_pre_attn_scalar=24,
                                layer_types=['sliding_attention', 'full_attention', 'sliding_attention'])),
  'gemma3_linear': ('Gemma3Text', dict(head_dim=8, sliding_window=5, query_pre_attn_scalar=8, tie_word_embeddings=False, attention_bias=True,
                                       layer_types=['sliding_attention', 'full_attention', 'sliding_attention'],
                                       rope_parameters=dict(full_attention=dict(rope_type='linear', rope_theta=1e3, factor=4.0),
                                                            sliding_attention=dict(rope_type='default', rope_theta=50.0)))),
  'qwen3_sliding': ('Qwen3', dict(head_dim=8, use_sliding_window=True, sliding_window=5, max_window_layers=2, attention_bias=True)),
}  # fmt: skip


def random_model(family: str, kind: str, seed: int) -> torch.nn.Module:
  """A float32 model of a family with every parameter drawn at random."""
  name, options = FAMILIES[family]
  config = getattr(transformers, f'{name}Config')(**{**SIZES, **options})
  config._attn_implementation = 'eager'  # the one that knows soft caps
  if kind == 'SequenceClassification':
    config.num_labels = 1
  class_name = f'{name}For{kind}' if hasattr(transformers, f'{name}For{kind}') else f'{name.removesuffix("Text")}For{kind}'
  model = getattr(transformers, class_name)(config).eval()
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      parameter.copy_(noise * 0.3 if parameter.ndim > 1 else (noise * 0.2 + (0 if 'gemma' in family else 1)))
  return model


def main() -> None:
  """Writes every family's directory."""
  shutil.rmtree(OUT, ignore_errors=True)
  ids = torch.tensor(np.random.default_rng(0).integers(3, SIZES['vocab_size'], (2, 14)))
  for seed, family in enumerate(FAMILIES):
    model = random_model(family, 'CausalLM', seed)
    model.save_pretrained(OUT / family)
    (OUT / family / 'generation_config.json').unlink(missing_ok=True)
    with torch.no_grad():
      logits = model.double()(ids).logits
    np.savez(OUT / family / 'golden.npz', ids=ids.numpy().astype(np.int32), logits=logits.numpy().astype(np.float32))
    print(family, float(logits.abs().max()))


if __name__ == '__main__':
  main()
