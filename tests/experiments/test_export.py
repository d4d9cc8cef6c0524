"""The export program: the same scores after a round trip, here and in transformers."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest

from configs import bradley_terry
from experiments import export, inference, train_reward
from rmjax.data.records import Record
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.training.saved import load_reward_model

TEXTS = ['w1 w2 w3', 'w7', 'w9 ' * 20, 'w4 w4 w8 w1']


def rewards(directory):
  scorer = inference.load(directory, rows=8, length=64)
  records = [Record('w5 w6 ', (text, text + ' w0'), np.zeros((2, 2), np.float32), np.full(2, np.nan, np.float32)) for text in TEXTS]
  return np.array([item.rewards for item in scorer.score(records, scorer.encode)])


@pytest.fixture(scope='module', name='run')
def _run(reward_model, tmp_path_factory):
  """A short training run of adapters on the tiny model, so violent that they matter."""
  workdir = tmp_path_factory.mktemp('run')
  data = workdir / 'data.jsonl'
  data.write_text(''.join(json.dumps(dict(prompt='w5 ', chosen=f'w{i} w1', rejected=f'w{i + 1} w2')) + '\n' for i in range(16)))
  config = bradley_terry.get_config()
  config.update_from_flattened_dict({
    'model.path': str(reward_model), 'model.lora.rank': 2, 'model.dtype': 'float32', 'data.train': str(data), 'data.eval': str(data), 'data.max_length': 64,
    'optimizer.learning_rate': 0.03, 'train.steps': 4, 'train.rows': 8, 'train.length': 64, 'train.log_every': 4, 'train.eval_every': 4, 'train.save_every': 4,
  })  # fmt: skip
  train_reward.train(config.lock(), workdir / 'run')
  return workdir / 'run'


def test_a_trained_run_survives_the_round_trip_adapters_merged(run, reward_model, tmp_path):
  before, after = (dict(jax.tree_util.tree_leaves_with_path(load_reward_model(path).params)) for path in (reward_model, run))
  moved = {jax.tree_util.keystr(path) for path, leaf in after.items() if path not in before or np.any(np.asarray(leaf) != np.asarray(before[path]))}
  assert moved and all('lora' in name or 'head' in name for name in moved)  # adapters and head trained alone
  export.export(run, tmp_path)
  found = rewards(tmp_path)
  np.testing.assert_allclose(found, rewards(run), atol=1e-5)
  assert np.abs(found - rewards(reward_model)).max() > 0.05  # training did something that had to survive
  again = tmp_path / 'again'
  export.export(tmp_path, again)
  np.testing.assert_array_equal(rewards(again), found)


def test_bfloat16_tensors_keep_the_rewards_to_their_precision(reward_model, tmp_path):
  export.export(reward_model, tmp_path, dtype='bfloat16')
  half = (tmp_path / 'model.safetensors').stat().st_size / (reward_model / 'model.safetensors').stat().st_size
  assert half < 0.7
  np.testing.assert_allclose(rewards(tmp_path), rewards(reward_model), atol=0.1 * np.ptp(rewards(reward_model)))


@pytest.mark.parametrize(
  'special, expected',
  [
    (dict(eos_token='</s>', pad_token='<pad>', bos_token='<s>'), '<pad>'),
    (dict(eos_token='</s>', pad_token='</s>', bos_token='<s>'), '<s>'),  # pad == eos would pool at the wrong token
    (dict(eos_token='</s>', bos_token='<s>'), '<s>'),
    (dict(eos_token='</s>', unk_token='<unk>'), '<unk>'),
    (dict(eos_token='</s>', pad_token='</s>'), None),
  ],
)
def test_the_padding_token_ends_no_response(reward_model, write_tokenizer, tmp_path, special, expected):
  for name in ('config.json', 'model.safetensors'):
    (tmp_path / name).write_bytes((reward_model / name).read_bytes())
  write_tokenizer(tmp_path, **special)
  if expected is None:
    with pytest.raises(InputError, match='no token to pad with'):
      export.export(tmp_path, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    return
  export.export(tmp_path, tmp_path / 'out')
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config['pad_token_id'] == Tokenizer.load(tmp_path).backend.token_to_id(expected)
  assert json.loads((tmp_path / 'out' / 'tokenizer_config.json').read_text())['pad_token'] == expected


def test_a_chat_template_that_ends_with_the_padding_token_rules_it_out(reward_model, write_tokenizer, tmp_path):
  template = '{% for m in messages %}<s> {{ m.content }} <pad> {% endfor %}'
  write_tokenizer(tmp_path, eos_token='</s>', pad_token='<pad>', bos_token='<s>', chat_template=template)
  assert export.padding_token(Tokenizer.load(tmp_path)) == 1


def test_a_head_without_a_hugging_face_form_is_refused(reward_model, monkeypatch, tmp_path):
  class OtherHead(nn.Module):
    pass

  saved = load_reward_model(reward_model)
  monkeypatch.setattr(export, 'load_reward_model', lambda *_, **__: saved._replace(model=saved.model.clone(head=OtherHead())))
  with pytest.raises(InputError, match='OtherHead, and Hugging Face has a form for ScalarHead alone'):
    export.export(reward_model, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_a_directory_without_a_head_is_refused(reward_model, tmp_path):
  from rmjax.backbones import pretrained

  saved = load_reward_model(reward_model)
  pretrained.save(tmp_path, saved.model.backbone.config, saved.params['backbone'])
  saved.tokenizer.save(tmp_path)
  with pytest.raises(InputError, match='no reward head'):
    export.export(tmp_path, tmp_path / 'out')


@pytest.mark.slow
def test_transformers_gives_the_same_scores(run, tmp_path):
  torch = pytest.importorskip('torch', reason='needs the extra `oracle`: torch and transformers')
  transformers = pytest.importorskip('transformers', reason='needs the extra `oracle`: torch and transformers')
  export.export(run, tmp_path)
  saved = load_reward_model(run)
  model, loading = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
  assert not loading['missing_keys'] and not loading['unexpected_keys']
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  texts = [saved.tokenizer.encode_path('w5 w6 ', response)[0] for text in TEXTS for response in (text, text + ' w0')]
  assert tokenizer('w5 w6 w1 w2 w3')['input_ids'] + [saved.tokenizer.eos_id] == texts[0]
  batch = tokenizer.pad({'input_ids': texts}, padding=True, padding_side='right', return_tensors='pt')  # ragged: pooling must find each end
  with torch.no_grad():
    scores = model.eval()(**batch).logits[:, 0]
  np.testing.assert_allclose(scores.reshape(-1, 2), rewards(run), atol=1e-4)
