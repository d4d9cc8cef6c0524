"""Reward models on disk: rating tokens by their texts, output matrices of heads that read logits, how text was prepared."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from rmjax import trees
from rmjax.backbones import pretrained
from rmjax.backbones.decoder import DecoderConfig
from rmjax.data.pipeline import ShardedBatches
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.models import build
from rmjax.training.checkpoints import Checkpoints
from rmjax.training.mesh import one_device_mesh
from rmjax.training.saved import describe, init_params, load_reward_model, resolve_head
from rmjax.training.step import init_state

SIZES = dict(vocab_size=16, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, max_positions=64)
CONFIG, UNTIED = DecoderConfig(**SIZES), DecoderConfig(**SIZES, tie_embeddings=False)
TOKEN, SCALAR = 'rmjax.heads.ordinal:OrdinalTokenHead', 'rmjax.heads.scalar:ScalarHead'
BATCH = trees.pack([[trees.branch([1, 2, 3], [[4, 5], [6]])]], length=8, slots=1, responses=2)


@pytest.fixture(scope='module', name='directory')
def _directory(tmp_path_factory):
  """A tokenizer of words and of the digits 1 to 3."""
  backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(['<unk>', 'a', 'b', 'score', '3', '2', '1', 'seven'])}, unk_token='<unk>'))
  backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)])
  path = tmp_path_factory.mktemp('tokenizer')
  backend.save(str(path / 'tokenizer.json'))
  (path / 'tokenizer_config.json').write_text(json.dumps({'unk_token': '<unk>'}))
  return path


def model_of(config, **head):
  return build(config, dtype='float32', remat='none', head=head, lora=dict(rank=0))


def save_run(path, directory, head, data):
  """A run's directory after its first step, of the head that the config names."""
  tokenizer = Tokenizer.load(directory)
  model = model_of(UNTIED, **resolve_head(head, tokenizer, data.get('suffix', '')))
  state = init_state({'reward': init_params(model, '', one_device_mesh(), jax.random.key(1))}, {'reward': optax.identity()}, jax.random.key(0))
  config = {'model': dict(dtype='float32', remat='none', head=head, lora=dict(rank=0)), 'data': data}
  checkpoints = Checkpoints(path)
  nothing = ShardedBatches([], lambda record: 'none', rows=1, shards=1, own=())
  checkpoints.save(dataclasses.replace(state, step=state.step + 1), nothing, {'config': config, 'decoder': describe(UNTIED)})
  checkpoints.close()
  tokenizer.save(path / 'tokenizer')
  return model.apply({'params': state.params['reward']}, BATCH)


def test_texts_of_ratings_become_tokens(directory):
  tokenizer = Tokenizer.load(directory)
  head = dict(name=TOKEN, tokens=('1', '2', '3'))
  assert resolve_head(head, tokenizer, ' score ') == dict(name=TOKEN, token_ids=(6, 5, 4))
  assert head['tokens'] == ('1', '2', '3')  # the config is as it was
  assert resolve_head(dict(name=SCALAR), tokenizer, '') == dict(name=SCALAR)
  with pytest.raises(InputError, match="the tokenizer splits '12' after ' score ' into 2 tokens: 1 2"):
    resolve_head(dict(name=TOKEN, tokens=('1', '12')), tokenizer, ' score ')
  with pytest.raises(InputError, match='model.head has both tokens and token_ids'):
    resolve_head({**head, 'token_ids': (6, 5, 4)}, tokenizer, '')


def test_a_run_is_loaded_with_its_tokens_and_its_suffix(directory, tmp_path):
  data = dict(max_length=32, too_long='truncate', text_prompts='plain', suffix=' score ', layout='chain', separator=' 1 ')
  scores = save_run(tmp_path, directory, dict(name=TOKEN, tokens=['1', '2', '3']), data)
  saved = load_reward_model(tmp_path)
  assert saved.data == data and tuple(saved.model.head.token_ids) == (6, 5, 4)
  np.testing.assert_allclose(saved.model.apply({'params': saved.params}, BATCH), scores, atol=1e-6)


def test_a_run_from_before_there_were_suffixes_and_layouts_has_none(directory, tmp_path):
  save_run(tmp_path, directory, dict(name=SCALAR), dict(max_length=32, too_long='refuse', text_prompts='chat'))
  assert load_reward_model(tmp_path).data == dict(max_length=32, too_long='refuse', text_prompts='chat', suffix='', layout='branch', separator='')


@pytest.mark.parametrize('config', [CONFIG, UNTIED])
def test_a_head_that_reads_logits_takes_the_directory_s_output_matrix(tmp_path, config):
  head = dict(name=TOKEN, token_ids=(6, 5, 4))
  made = init_params(model_of(config, **head), '', one_device_mesh(), jax.random.key(1))
  pretrained.save(tmp_path, config, made['backbone'])
  loaded = init_params(model_of(config, **head), str(tmp_path), one_device_mesh(), jax.random.key(2))
  assert ('unembedding' in loaded['backbone']) == (not config.tie_embeddings)
  jax.tree.map(np.testing.assert_array_equal, loaded, made)
  scalar = init_params(model_of(config, name=SCALAR), str(tmp_path), one_device_mesh(), jax.random.key(2))
  assert 'unembedding' not in scalar['backbone'] and 'head' in scalar  # and others leave it where it is


def test_an_untied_directory_without_output_matrix_is_named(tmp_path):
  made = init_params(model_of(UNTIED, name=SCALAR), '', one_device_mesh(), jax.random.key(1))
  pretrained.save(tmp_path, UNTIED, made['backbone'], score=made['head']['score']['kernel'])
  with pytest.raises(InputError, match='has no tensor lm_head.weight'):
    init_params(model_of(UNTIED, name=TOKEN, token_ids=(6, 5)), str(tmp_path), one_device_mesh(), jax.random.key(2))
  assert load_reward_model_text(tmp_path)['suffix'] == ''


def load_reward_model_text(path):
  """How text is prepared for a Hugging Face directory, by words of its own."""
  backend = tokenizers.Tokenizer(models.WordLevel({'<unk>': 0}, unk_token='<unk>'))
  backend.save(str(path / 'tokenizer.json'))
  return load_reward_model(path).data
