"""The implicit reward on packed trees: transformers' log-probs, what it does not depend on, references, gradients, figures."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import models, trees
from rmjax.backbones import pretrained
from rmjax.backbones.decoder import DecoderConfig
from rmjax.errors import InputError
from rmjax.heads.implicit import ImplicitRewardHead, ImplicitScores
from rmjax.losses.preference import preference_cross_entropy
from rmjax.models import build
from rmjax.training.mesh import one_device_mesh
from rmjax.training.saved import init_params

GOLDENS = Path(__file__).parents[1] / 'goldens'
FORWARD = json.loads((GOLDENS / 'dpo' / 'trl.json').read_text())['forward']
CONFIG = DecoderConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2)
HEAD = 'rmjax.heads.implicit:ImplicitRewardHead'
LORA = dict(rank=2, alpha=4.0, modules='.*/(query|value)$')
RNG = np.random.default_rng(0)
TEXT = [RNG.integers(0, 32, size).tolist() for size in (5, 3, 6, 4)]  # a prompt and three responses
WINS = np.array([[0, 1, 1], [0, 0, 0.5], [0, 0.5, 0]], np.float32)


def model_of(config=CONFIG, lora=None, **head):
  return build(config, dtype='float32', remat='none', head=dict(name=HEAD, **head), lora=lora or dict(rank=0))


def batch_of(*groups, responses=3, length=40, slots=2):
  labels = lambda answers: {'wins': WINS[: len(answers), : len(answers)]}
  return trees.pack([[trees.branch(prompt, answers, labels(answers)) for prompt, *answers in groups]], length=length, slots=slots, responses=responses)


@functools.cache
def start(adapters=False):
  """Parameters at the start."""
  return init_params(model_of(lora=LORA if adapters else None), '', one_device_mesh(), jax.random.key(0))


def two_params():
  """A policy, and beside it another as its reference."""
  turned = jax.tree.map(lambda x: x[..., ::-1], start()['backbone'])
  return {**start(), 'reference': turned}


@functools.cache
def run(reference='frozen'):
  model = model_of(reference=reference)
  return jax.jit(lambda params, batch: model.apply({'params': params}, batch))


def test_log_probs_are_those_of_transformers():
  """Prompt and both responses in one packed row, the reference beside; float32 against float64."""
  config = pretrained.read_config(GOLDENS / 'decoders' / 'llama')
  model = model_of(config, beta=0.1)
  params = init_params(model, str(GOLDENS / 'decoders' / 'llama'), one_device_mesh(), jax.random.key(0))
  params['reference']['norm']['scale'] = 0.5 * params['reference']['norm']['scale']
  batch = batch_of([FORWARD['prompt'], *FORWARD['responses']], responses=2, length=20, slots=1)
  scores = jax.jit(model.apply)({'params': params}, batch)
  for name in ('log_probs', 'ref_log_probs', 'confidence'):
    np.testing.assert_allclose(getattr(scores, name)[0, 0], FORWARD[name], atol=2e-4)
  np.testing.assert_array_equal(scores.num_tokens[0, 0], [4, 6])
  expected = 0.1 * (np.array(FORWARD['log_probs']) - FORWARD['ref_log_probs'])  # sums: a mean would be 4 and 6 times smaller
  np.testing.assert_allclose(model.head.reward(scores)[0, 0], expected, atol=5e-5)
  mean = ImplicitRewardHead(beta=0.1, average=True).reward(scores)
  np.testing.assert_allclose(mean[0, 0], expected / [4, 6], atol=2e-5)


def test_no_score_depends_on_padding_packing_or_how_logits_are_cut(monkeypatch):
  params, scores = two_params(), run()(two_params(), batch_of(TEXT))
  monkeypatch.setattr(models, 'CHUNK', 7)
  model, other = model_of(), [[4, 5], [6], [7, 8]]
  apply = jax.jit(lambda batch: model.apply({'params': params}, batch))
  for batch in (batch_of(TEXT, other), batch_of(other, TEXT), batch_of(other, TEXT, responses=5, length=57)):
    slot = int(batch.prompt_ends[0, 0] != batch_of(TEXT).prompt_ends[0, 0])
    for found, expected in zip(apply(batch)[:4], scores[:4], strict=True):
      np.testing.assert_allclose(found[0, slot, :3], expected[0, 0], atol=1e-5)
      assert (np.where(np.asarray(batch.response_ends) < 0, found, 0) == 0).all()
  for n, response in enumerate(TEXT[1:]):  # each path alone
    alone = apply(batch_of([TEXT[0], response]))
    np.testing.assert_allclose(alone.log_probs[0, 0, 0], scores.log_probs[0, 0, n], atol=1e-5)


def test_a_longer_prompt_adds_nothing_of_its_own():
  """A network that sees the last token alone gives a response the same log-probability after any prompt that ends alike."""
  params = jax.tree_util.tree_map_with_path(lambda path, x: jnp.zeros_like(x) if "['output']" in jax.tree_util.keystr(path) else x, two_params())
  short, long = (run()(params, batch_of([prompt, *TEXT[1:]])).log_probs for prompt in ([3], [9, 8, 7, 6, 5, 4, 3]))
  np.testing.assert_allclose(short, long, atol=1e-5)
  assert np.abs(run()(params, batch_of([[9, 8], *TEXT[1:]])).log_probs - short).max() > 1e-3


@pytest.mark.parametrize('adapters', [False, True])
def test_at_the_start_the_loss_is_ln_2_and_its_gradient_half_of_beta(adapters):
  model, params, batch = model_of(beta=0.3, lora=LORA if adapters else None), start(adapters), batch_of(TEXT[:3])

  def loss_and_gap(params):
    scores = model.apply({'params': params}, batch)
    gap = scores.log_probs[0, 0, 0] - scores.log_probs[0, 0, 1]
    return jnp.stack([preference_cross_entropy(model.head.preference_logits(scores), batch.labels['wins'])[0, 0], gap]), scores

  jacobian, scores = jax.jit(jax.jacrev(loss_and_gap, has_aux=True))(params)
  np.testing.assert_allclose(scores.log_probs, scores.ref_log_probs, atol=1e-5)
  np.testing.assert_allclose(preference_cross_entropy(model.head.preference_logits(scores), batch.labels['wins'])[0, 0], np.log(2), atol=1e-6)
  jax.tree.map(lambda x: np.testing.assert_allclose(x[0], -0.15 * x[1], rtol=1e-3, atol=1e-5), jacobian['backbone'])
  assert max(float(jnp.abs(x[0]).max()) for x in jax.tree.leaves(jacobian['backbone'])) > 1e-3
  assert ('reference' in params) != adapters
  assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(jacobian.get('reference', {})))


def test_the_reference_of_adapters_is_the_policy_without_them():
  model = model_of(lora=LORA)
  apply = jax.jit(lambda params: model.apply({'params': params}, batch_of(TEXT)))
  base = apply(start(adapters=True))
  scores = apply(jax.tree_util.tree_map_with_path(lambda path, x: x + 0.3 if '_lora_b' in jax.tree_util.keystr(path) else x, start(adapters=True)))
  np.testing.assert_allclose(scores.ref_log_probs, base.log_probs, atol=1e-5)
  assert np.abs(scores.log_probs - base.log_probs).max() > 0.1


def test_a_cached_reference_is_a_live_one():
  """As a label of responses, NaN where absent, or of their tokens; without it a cached head says what is missing."""
  params, batch = two_params(), batch_of(TEXT, [[4, 5], [6], [7, 8]])
  live = run()(params, batch)
  policy = {'backbone': params['backbone']}
  label = np.where(np.asarray(batch.response_ends) < 0, np.nan, live.ref_log_probs)
  decoder = model_of().backbone
  logits = jax.jit(lambda params: decoder.apply({'params': params}, batch.tokens, batch.positions, batch.subtree_end, method='logits'))(params['reference'])
  for value in (label, np.asarray(trees.path_log_probs(logits, batch))):
    scores = run(reference='cached')(policy, trees.Trees(**{**vars(batch), 'labels': {**batch.labels, 'ref_log_probs': value}}))
    np.testing.assert_allclose(scores.ref_log_probs, live.ref_log_probs, atol=1e-5)
  with pytest.raises(InputError, match='the data have no label `ref_log_probs`'):
    run(reference='cached')(policy, batch)
  free = run(reference='none')(policy, batch)
  assert (np.asarray(free.ref_log_probs) == 0).all()
  np.testing.assert_array_equal(free.log_probs, live.log_probs)
  assert set(jax.eval_shape(model_of(reference='none').init, jax.random.key(0), batch)['params']) == {'backbone'}


def test_figures_are_trl_s():
  """One comparison is tied and does not count; the response that wins two comparisons counts twice."""
  head = ImplicitRewardHead(beta=0.5)
  log_probs, reference = jnp.array([[[-1.0, -4.0, -2.0]]]), jnp.array([[[-2.0, -3.0, -5.0]]])
  scores = ImplicitScores(log_probs, reference, jnp.ones((1, 1, 3), jnp.int32), jnp.zeros((1, 1, 3)), jnp.full((1, 1), 0.5))
  sums, counts = head.metrics(scores, batch_of(TEXT, slots=1))
  means = {name: float(sums[name] / counts[name]) for name in sums}
  expected = {
    'rewards/chosen': 0.5, 'rewards/rejected': (-0.5 + 1.5) / 2, 'rewards/accuracies': 0.5, 'rewards/margins': 0.0,
    'logps/chosen': -1.0, 'logps/rejected': -3.0,
  }  # fmt: skip
  assert means == pytest.approx(expected) and {float(count) for count in counts.values()} == {2.0}


def test_a_wrong_head_is_named():
  with pytest.raises(InputError, match='model.head.beta = 0.0: it must be positive'):
    model_of(beta=0.0)
  with pytest.raises(InputError, match="model.head.reference = 'live': choose one of frozen, cached, none"):
    model_of(reference='live')
