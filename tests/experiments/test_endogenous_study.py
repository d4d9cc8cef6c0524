"""The endogenous reward as a user meets it: its study end to end and part by part, and a language model's directory as a reward model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import endorm
from experiments import endogenous, inference, policy_rewards, reproduce, score
from rmjax import trees
from rmjax.backbones import pretrained
from rmjax.backbones.decoder import DecoderConfig
from rmjax.data.records import pairwise_wins, Record
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.evaluation.claims import named_arms
from rmjax.models import build
from rmjax.rewards.endogenous import decoder_endogenous_reward, sequence_endogenous_reward
from rmjax.training.mesh import one_device_mesh
from rmjax.training.saved import init_params, load_reward_model
from rmjax.worlds import sequences_exact as exact

HEAD = 'rmjax.rewards.endogenous:EndogenousHead'


@pytest.fixture(scope='module', name='p')
def _problem():
  return endogenous.problem(np.random.default_rng(0), 3, alpha=0.5)


def test_a_state_is_the_step_and_the_last_two_tokens(p):
  """And a prefix of the space has the state of all responses that begin with it."""
  y = int(np.flatnonzero((p.space.tokens == [2, 3, 1]).all(1))[0])
  np.testing.assert_array_equal(p.states[y], [0, 21 + 1 + 2, 42 + 1 + 4 + 4 * 2 + 3])
  np.testing.assert_array_equal(p.prefix_states[p.space.prefixes], p.states)
  assert len(np.unique(p.states)) == 1 + 4 + 16
  np.testing.assert_allclose(p.expert, jax.nn.log_softmax(2 * p.gold), atol=1e-5)
  longer = endogenous.problem(np.random.default_rng(0), 4, alpha=0.5)  # the same reward, one token more, which the last two decide
  more = (longer.gold - np.repeat(p.gold, 4)).reshape(4, 16, 4)
  np.testing.assert_allclose(*np.broadcast_arrays(more, more[:1]))


def test_a_table_of_the_expert_s_own_probabilities_orders_as_gold(p):
  """With no error of the fit the endogenous reward is gold up to a constant, whatever each state's logits are shifted by."""
  table = np.zeros((p.states.max() + 1, endogenous.VOCAB))
  table[p.prefix_states] = jax.nn.log_softmax(exact.to_logits(jnp.asarray(p.expert), p.space))
  np.testing.assert_allclose(endogenous.table_log_probs(p, table), p.expert, atol=1e-4)
  shifted = table + np.random.default_rng(1).normal(size=(len(table), 1))
  for logits in (table, shifted):
    off = endogenous.endogenous_rewards(p, logits, alpha=0.5) - p.gold
    assert np.ptp(off) < 1e-4


def test_counts_are_the_most_likely_table(p):
  responses = np.random.default_rng(2).integers(0, 64, 500)
  found = endogenous.table_log_probs(p, endogenous.fit_table(p, responses, prior=1e-9))[responses].mean()
  for seed in range(5):
    other = endogenous.fit_table(p, responses, prior=1e-9) + np.random.default_rng(seed).normal(size=(p.states.max() + 1, 4)) * 0.1
    assert endogenous.table_log_probs(p, other)[responses].mean() < found


def test_noise_mixes_each_token_with_a_uniform_one(p):
  np.testing.assert_allclose(endogenous.noisy(p, 1.0), -3 * np.log(4), atol=1e-5)
  np.testing.assert_allclose(endogenous.noisy(p, 1e-7), p.expert, atol=1e-3)
  first = lambda log_probs: np.exp(log_probs).reshape(4, -1).sum(1)
  np.testing.assert_allclose(first(endogenous.noisy(p, 0.2)), 0.8 * first(p.expert) + 0.05, atol=1e-5)


def test_bradley_terry_finds_gold_where_there_are_pairs_enough(p):
  rng = np.random.default_rng(3)
  pairs = rng.integers(0, 64, (6000, 2))
  first = rng.random(len(pairs)) < 1 / (1 + np.exp(p.gold[pairs[:, 1]] - p.gold[pairs[:, 0]]))
  found = endogenous.fit_bradley_terry(p, np.where(first[:, None], pairs, pairs[:, ::-1]))
  assert np.corrcoef(found, p.gold)[0, 1] > 0.98
  np.testing.assert_allclose(found - found.mean(), p.gold - p.gold.mean(), atol=0.6)


def test_sharpened_to_an_entropy(p):
  logits = np.random.default_rng(4).normal(size=(p.states.max() + 1, 4))
  policy = lambda sharpness: endogenous.table_log_probs(p, sharpness * logits)
  assert endogenous.entropy(np.full(64, -np.log(64))) == pytest.approx(np.log(64))
  assert endogenous.entropy(endogenous.at_entropy(policy, 1.0)) == pytest.approx(1.0, abs=1e-3)
  np.testing.assert_allclose(endogenous.at_entropy(policy, endogenous.entropy(policy(3.0))), policy(3.0), atol=1e-2)


def test_every_arm_of_the_claim_runs(tmp_path):
  config = endorm.get_config()
  assert config.system == 'endorm' and set().union(*map(named_arms, config.claims)) <= set(config.arms)
  config.claims = tuple(tuple(str(part).replace('_8', '_4') for part in claim[:3]) + claim[3:] for claim in config.claims)
  report = reproduce.reproduce(config, tmp_path, smoke=True)
  assert len(report['claims']) == len(config.claims)
  arms = report['arms']
  assert arms['medium']['regret_rl_4'][0] == pytest.approx(arms['medium']['regret_again_4'][0], abs=0.05)  # it is one response already
  assert arms['gentle']['entropy_rl_4'][0] > arms['medium']['entropy_rl_4'][0]
  assert arms['gentle']['entropy_rl_4'] == pytest.approx(arms['gentle']['entropy_sharpened_4'], abs=0.01)
  assert all(-arm['best_4'][0] <= arm['regret_rl_4'][0] + 1e-4 for arm in arms.values())


@pytest.fixture(scope='module', name='language_model')
def _language_model(tmp_path_factory, write_tokenizer):
  """A language model's directory, without a reward head."""
  path = tmp_path_factory.mktemp('language_model')
  config = DecoderConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, max_positions=64)
  model = build(config, dtype='float32', remat='none', head=dict(name=HEAD), lora=dict(rank=0))
  pretrained.save(path, config, init_params(model, '', one_device_mesh(), jax.random.key(3))['backbone'])
  write_tokenizer(path, bos_token='<s>', eos_token='</s>', unk_token='<unk>')
  return path


def test_a_directory_of_a_language_model_scores(language_model):
  """By the programs' own way, the end-of-text token scored."""
  with pytest.raises(InputError, match='has no reward head.*--head=rmjax.rewards.endogenous:EndogenousHead'):
    inference.load(str(language_model))
  saved = load_reward_model(language_model, head=dict(name=HEAD))
  assert set(saved.params) == {'backbone'}
  for text, mode in ((HEAD, 'sum'), (f'{HEAD},mode=mean,alpha=0.5', 'mean')):
    head = inference.read_head(text)
    scorer = inference.load(str(language_model), head=head)
    record = Record('w1 w2', (' w3', ' w4 w5'), pairwise_wins(2, [(0, 1, 1.0)]), np.full(2, np.nan, np.float32))
    (scored,) = scorer.score([record], scorer.encode)
    tree = scorer.encode(record)
    assert [tree.segments[n].tokens[-1] for n in (1, 2)] == [2, 2]  # </s>
    batch = trees.pack([[tree]], length=16, slots=1, responses=2)
    token = jax.jit(lambda batch: decoder_endogenous_reward(saved.model.backbone, saved.params['backbone'], batch, alpha=head.get('alpha', 1.0)))  # noqa: B023
    np.testing.assert_allclose(scored.rewards, sequence_endogenous_reward(token(batch), batch, mode=mode)[0, 0], atol=2e-5)


def test_a_wrong_head_is_named(language_model):
  with pytest.raises(InputError, match='wants the parameters head, which'):
    load_reward_model(language_model, head=dict(name='rmjax.heads.scalar:ScalarHead'))
  with pytest.raises(InputError, match='--head=a,b: give a name and then fields'):
    inference.read_head('a,b')
  assert inference.read_head("m:YesNo,tokens=(' yes',' no'),x=1") == dict(name='m:YesNo', tokens=(' yes', ' no'), x=1)


def test_a_file_is_scored_and_a_policy_rewarded(language_model, tmp_path):
  """`experiments.score` writes what the rollout's own reward gives, on the device."""
  rows = tmp_path / 'rows.jsonl'
  rows.write_text(json.dumps({'prompt': 'w1 w2', 'chosen': ' w3', 'rejected': ' w4 w5'}) + '\n')
  scorer = inference.load(str(language_model), head=dict(name=HEAD))
  assert score.score_file(scorer, rows, tmp_path / 'out.jsonl')['scored'] == 1
  written = json.loads((tmp_path / 'out.jsonl').read_text())['reward']
  tokenizer, spec = Tokenizer.load(language_model), dict(weight=1.0, checkpoint=str(language_model), head=dict(name=HEAD, mode='sum'))
  rewards = policy_rewards.build_rewards({'endogenous': spec}, tokenizer, one_device_mesh())
  record = Record('w1 w2', (' w3', ' w4 w5'), pairwise_wins(2, [(0, 1, 1.0)]), np.full(2, np.nan, np.float32))
  batch = trees.pack([[scorer.encode(record)]], length=16, slots=1, responses=2)
  found = policy_rewards.on_device(rewards)(rewards.params, batch)['endogenous']
  np.testing.assert_allclose(found[0, 0], written, atol=2e-5)
