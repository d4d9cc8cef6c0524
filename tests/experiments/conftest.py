"""A tiny reward model on disk, as transformers would have saved it."""

import json

import jax
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from rmjax.backbones import pretrained
from rmjax.backbones.decoder import DecoderConfig
from rmjax.models import build
from rmjax.training.mesh import one_device_mesh
from rmjax.training.saved import init_params

WORDS = [f'w{i}' for i in range(60)]


def write_tokenizer(path, **special):
  """A tokenizer of one token a word, whose tokenizer_config.json names these special tokens."""
  backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(['<unk>', '<s>', '</s>', '<pad>', *WORDS])}, unk_token='<unk>'))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  backend.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 1)])
  backend.add_special_tokens(['<unk>', '<s>', '</s>', '<pad>'])
  backend.save(str(path / 'tokenizer.json'))
  (path / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': 'PreTrainedTokenizerFast', **special}))


@pytest.fixture(scope='session', name='write_tokenizer')
def _write_tokenizer():
  return write_tokenizer


@pytest.fixture(scope='session')
def reward_model(tmp_path_factory):
  """Directory of a random reward model over the words w0 to w59; paths have at most 64 tokens."""
  path = tmp_path_factory.mktemp('model')
  sizes = dict(hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, max_positions=64)
  config = DecoderConfig(vocab_size=64, **sizes)
  model = build(config, dtype='float32', remat='none', head=dict(name='rmjax.heads.scalar:ScalarHead'), lora=dict(rank=0))
  params = jax.tree.map(lambda x: 2 * x, init_params(model, '', one_device_mesh(), jax.random.key(0)))  # rewards that differ
  pretrained.save(path, config, params['backbone'], score=params['head']['score']['kernel'])
  write_tokenizer(path, bos_token='<s>', eos_token='</s>', unk_token='<unk>')
  return path
