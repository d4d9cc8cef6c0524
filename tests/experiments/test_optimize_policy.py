"""The policy program as a user runs it: on the device and with functions of text, through failures, and into walls."""

import json

import jax
import numpy as np
import pytest

from configs import grpo
from experiments import export, optimize_policy
from experiments.policy_setup import setup
from experiments.train_reward import open_batches
from rmjax.backbones import pretrained
from rmjax.backbones.decoder import DecoderConfig
from rmjax.errors import InputError
from rmjax.models import build
from rmjax.rewards.functions import RewardFailed
from rmjax.training.checkpoints import restore_params
from rmjax.training.mesh import one_device_mesh, shard_batch, use_mesh
from rmjax.training.saved import init_params, load_reward_model


@pytest.fixture(scope='module', name='policy')
def _policy(tmp_path_factory, write_tokenizer):
  """Directory of a random language model over the words w0 to w59 that is nearly uniform."""
  path = tmp_path_factory.mktemp('policy')
  config = DecoderConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, max_positions=64)
  model = build(config, dtype='float32', remat='none', head=dict(name='rmjax.heads.scalar:ScalarHead'), lora=dict(rank=0))
  params = init_params(model, '', one_device_mesh(), jax.random.key(0))['backbone']
  params['embedding']['embedding'] *= 0.1
  pretrained.save(path, config, params)
  write_tokenizer(path, bos_token='<s>', eos_token='</s>', unk_token='<unk>')
  return path


@pytest.fixture(scope='module', name='prompts')
def _prompts(tmp_path_factory):
  path = tmp_path_factory.mktemp('data') / 'prompts.jsonl'
  rows = [{'prompt': f'w{i} w{i + 1} w{i + 2}', 'answer': i % 3 if i % 2 else None} for i in range(20)]
  rows += [{'prompt': [{'role': 'user', 'content': f'w{i}'}], 'answer': 1} for i in range(4)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def tiny(policy, prompts, *, variant='grpo', rewards=None, **changes):
  config = grpo.get_config(variant)
  config.model.update(path=str(policy), dtype='float32', remat='none')
  config.data.update(train=str(prompts), max_length=12)
  config.sampling.update(responses=4, max_new_tokens=6)
  config.optimizer.learning_rate = config.critic.optimizer.learning_rate = 1e-2
  config.rewards = rewards or dict(words=dict(name='reward_functions:words', weight=1.0), half=dict(name='reward_functions:half', weight=0.5))
  config.train.update(steps=4, prompts=8, eval_every=0, save_every=2)
  config.mesh.update(data=1, fsdp=-1)
  config.update_from_flattened_dict(changes)
  return config.lock()


def params_of(workdir, config):
  return jax.tree.map(np.asarray, restore_params(workdir, {'policy': setup(config).init(jax.random.key(0)).params['policy']})['policy'])


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module', name='whole')
def _whole(tmp_path_factory, policy, prompts):
  """A run that nothing interrupts."""
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, optimize_policy.optimize(tiny(policy, prompts), workdir)


def test_a_run_leaves_what_it_says(whole):
  workdir, result = whole
  for name in ('config.json', 'metrics.jsonl', 'result.json', 'samples.jsonl', 'tokenizer/tokenizer.json', 'figures/training.png'):
    assert (workdir / name).stat().st_size > 0
  names = {'reward', 'reward_std', 'frac_reward_zero_std', 'kl', 'entropy', 'clip_ratio/region_mean', 'completions/mean_length', 'completions/clipped_ratio'}
  assert names | {'rewards/words/mean', 'rewards/half/std', 'eval_reward', 'loss', 'grad_norm', 'num_tokens', 'learning_rate'} <= result.keys()
  # Words are the tokens but for the stop token; a prompt of messages gets an answer in messages.
  for line in lines(workdir / 'samples.jsonl'):
    text = line['completion'] if isinstance(line['completion'], str) else line['completion'][0]['content']
    assert isinstance(line['completion'], str) == isinstance(line['prompt'], str)
    assert line['rewards']['words'] == len(text.split()) <= 6
    assert line['rewards']['half'] is None or line['rewards']['half'] in (0, 1, 2)
  metrics = lines(workdir / 'metrics.jsonl')
  first = metrics[0]
  assert first['val/ratio'] == pytest.approx(1, abs=1e-4)
  assert first['kl'] == pytest.approx(0, abs=1e-6)
  assert first['completions/mean_length'] <= 6


def test_a_reward_function_that_fails_costs_nothing(whole, policy, prompts, tmp_path, monkeypatch):
  """One line, the state saved; and the run that goes on ends where one that nothing stopped does."""
  broken = tmp_path / 'broken'
  broken.write_text('')
  monkeypatch.setenv('RMJAX_TEST_BROKEN', str(broken))
  rewards = dict(words=dict(name='reward_functions:fragile', weight=1.0), half=dict(name='reward_functions:half', weight=0.5))
  config = tiny(policy, prompts, rewards=rewards)
  with pytest.raises(RewardFailed, match="'words' raised ValueError: the judge is down; saved at step 2: the same command goes on from there"):
    optimize_policy.optimize(config, tmp_path / 'run')
  broken.unlink()
  optimize_policy.optimize(config, tmp_path / 'run')
  jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path / 'run', config), params_of(whole[0], config))
  assert lines(tmp_path / 'run' / 'samples.jsonl') == lines(whole[0] / 'samples.jsonl')


def test_a_trained_reward_model_is_a_reward(policy, prompts, reward_model, tmp_path, write_tokenizer):
  """On the device where the tokenizers agree, by text where they do not; the same rewards either way."""
  other = tmp_path / 'other'
  other.mkdir()
  for file in reward_model.iterdir():
    (other / file.name).write_bytes(file.read_bytes())
  tokenizer = json.loads((other / 'tokenizer.json').read_text())
  tokenizer['added_tokens'][0]['single_word'] = True  # another tokenizer, though it splits text alike
  (other / 'tokenizer.json').write_text(json.dumps(tokenizer))
  rewards = dict(
    near=dict(checkpoint=str(reward_model), weight=1.0),
    far=dict(checkpoint=str(other), weight=0.0),
    both=dict(checkpoint=f'{reward_model},{other}', weight=0.0, uncertainty=1.0),
  )
  changes = {'train.steps': 2, 'train.samples': 64, 'algorithm.minibatches': 1, 'sampling.max_new_tokens': 30}
  config = tiny(policy, prompts, variant='ppo', rewards=rewards, **changes)
  run = setup(config)
  assert list(run.rewards.on_device) == ['near'] and list(run.rewards.on_text) == ['both', 'far']
  optimize_policy.optimize(config, tmp_path / 'run')
  compared = 0
  for line in lines(tmp_path / 'run' / 'samples.jsonl'):
    # Text ends with EOS, which an answer cut short does not have, nor special tokens that the policy happened to say.
    if line['finished'] and isinstance(line['prompt'], str) and 0 < len(line['completion'].split()) == line['tokens'] - 1:
      assert line['rewards']['near'] == pytest.approx(line['rewards']['far'], abs=1e-5)
      assert line['rewards']['both'] == pytest.approx(line['rewards']['near'], abs=1e-5)  # two that agree have no spread
      compared += 1
  assert compared


def test_a_policy_is_exported_and_started_from(whole, policy, prompts, tmp_path):
  workdir, _ = whole
  assert export.export(workdir, tmp_path / 'hf') == 'AutoModelForCausalLM'
  from_run, from_export = (setup(tiny(path, prompts)).init(jax.random.key(0)).params['policy'] for path in (workdir, tmp_path / 'hf'))
  jax.tree.map(np.testing.assert_array_equal, from_run, from_export)
  jax.tree.map(np.testing.assert_array_equal, from_run, params_of(workdir, tiny(policy, prompts)))
  with pytest.raises(InputError, match='is a policy'):
    load_reward_model(workdir)


def test_adapters_train_alone(policy, prompts, tmp_path):
  config = tiny(policy, prompts, **{'model.lora.rank': 2, 'train.steps': 2, 'algorithm.epochs': 2, 'sampling.stop': ('w7', 'w9')})
  result = optimize_policy.optimize(config, tmp_path)
  assert result['kl'] > 0  # measured from the policy without its adapters
  before = jax.tree_util.tree_leaves_with_path(setup(config).init(jax.random.key(0)).params['policy'])
  after = dict(jax.tree_util.tree_leaves_with_path(params_of(tmp_path, config)))
  moved = {jax.tree_util.keystr(path) for path, x in before if np.abs(np.asarray(x) - after[path]).max() > 0}
  assert moved and all('_lora_' in name for name in moved)
  texts = [line['completion'] for line in lines(tmp_path / 'samples.jsonl') if isinstance(line['completion'], str)]
  assert all('w7' not in text.split()[:-1] and 'w9' not in text.split()[:-1] for text in texts if text)  # a stop string ends the response that says it


def test_a_queue_samples_what_all_at_once_do(policy, prompts):
  """The same responses of the same iteration; with a quantized cache the update computes its own log-probabilities."""
  found = []
  for changes in ({}, {'sampling.slots': 3}, {'sampling.slots': 3, 'sampling.cache_dtype': 'int8', 'algorithm.recompute': True}):
    config = tiny(policy, prompts, **{'mesh.fsdp': 1, 'mesh.data': 8, **changes})
    run = setup(config)
    batches = open_batches(run, config)
    with use_mesh(run.mesh):
      state = run.init(jax.random.key(0))
      found.append(jax.jit(run.sample)(state.params, shard_batch(next(batches).trees, run.mesh), jax.random.key(1)))
  np.testing.assert_array_equal(found[1].tokens, found[0].tokens)
  np.testing.assert_allclose(found[1].labels['log_probs'], found[0].labels['log_probs'], atol=1e-5)
  assert found[2].tokens.shape == found[0].tokens.shape


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'data.train': ''}, 'config.data.train is empty'),
    ({'data.max_length': 60}, 'config.data.max_length = 66, and the network has 64 positions'),
    ({'algorithm.minibatches': 3}, 'train.prompts = 8 cannot be split into algorithm.minibatches = 3'),
    ({'train.prompts': 4}, 'train.prompts / algorithm.minibatches / train.accumulate = 4 cannot be split 8 ways'),
    ({'reference': 'none'}, "reference = 'none' and a KL divergence is wanted"),
    ({'constraints.names': ('words',), 'constraints.senses': ('>=',)}, '1 names and 0 thresholds'),
    ({'constraints.names': ('gold',), 'constraints.senses': ('>=',), 'constraints.thresholds': (1.0,)}, "there is no reward 'gold'; there are half, words"),
    ({'sampling.top_p': 0.0}, 'top_p = 0.0'),
    ({'sampling.cache_dtype': 'int8'}, 'set algorithm.recompute'),
    ({'rewards.words.name': 'reward_functions:gone'}, "rewards.words.name = 'reward_functions:gone'"),
  ],
)
def test_bad_settings_are_one_line(policy, prompts, changes, message):
  with pytest.raises(InputError) as caught:
    setup(tiny(policy, prompts, **changes))
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)
