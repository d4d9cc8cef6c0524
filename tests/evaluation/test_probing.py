"""Representations by column, probes against closed forms and independent optimisers, and the traps of MRMBench."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from rmjax import trees
from rmjax.backbones.decoder import Decoder, DecoderConfig
from rmjax.data.records import Record
from rmjax.errors import InputError
from rmjax.evaluation import probing
from rmjax.heads.implicit import ImplicitRewardHead
from rmjax.heads.scalar import ScalarHead
from rmjax.models import RewardModel
from rmjax.training.mesh import one_device_mesh
from rmjax.training.saved import init_params

CONFIG = DecoderConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=1)
LONGER = functools.partial(probing.fit_linear_probe, learning_rate=1e-2, epochs=20)
SHAPE = dict(rows=2, length=64, slots=3, responses=2)


def encode(record):
  if record.prompt == 'refuse':
    return 'too long'
  tokens = lambda text: [ord(c) % 60 for c in text]
  return trees.branch(tokens(record.prompt), list(map(tokens, record.responses)), {'truncated': np.int32(0)})


def record(prompt, *responses):
  return Record(prompt, responses, np.zeros((len(responses),) * 2, np.float32), np.full(len(responses), np.nan, np.float32))


RECORDS = [record('ab', 'cde', 'f'), record('refuse', 'x', 'y'), record('b', 'a<a<', 'a<'), record('xyz', 'q')]  # '<' is token 0, the pad


@pytest.fixture(scope='module', name='system')
def _system():
  model = RewardModel(backbone=Decoder(CONFIG), head=ScalarHead())
  mesh = one_device_mesh()
  return model, jax.tree.map(lambda x: 3 * x, init_params(model, '', mesh, jax.random.key(0))), mesh


def blobs(seed=0, count=600, distance=6.0):
  """Two round clouds in the plane, and which one each point is of."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 2, count).astype(np.int32)
  return (rng.normal(size=(count, 2)) + distance * np.stack([labels, -labels], -1)).astype(np.float32), labels


def test_features_are_the_hidden_states_of_last_tokens_even_where_these_are_pads(system):
  model, params, mesh = system
  found = probing.features(model, params, RECORDS, encode, mesh=mesh, **SHAPE)
  assert found.shape == (7, 16) and found.dtype == np.float32
  assert np.isnan(found[2:4]).all() and not np.isnan(np.delete(found, (2, 3), 0)).any()
  paths = [(r.prompt, text) for r in RECORDS for text in r.responses]
  for row, (prompt, text) in zip(found, paths, strict=True):
    if prompt != 'refuse':
      alone = trees.pack([[encode(record(prompt, text))]], length=32, slots=1, responses=1)
      hidden = model.bind({'params': params}).backbone(alone.tokens, alone.positions, alone.subtree_end)
      np.testing.assert_allclose(row, hidden[0, len(prompt) + len(text) - 1], atol=1e-5)
  assert np.abs(found[4] - found[5]).max() > 0.1  # 'a<a<' and 'a<' end in the same pad token


def test_a_linear_head_on_the_features_is_the_reward(system):
  model, params, mesh = system
  scored = list(probing.represent(model, params, RECORDS[:1], encode, mesh=mesh, **SHAPE))
  plain = trees.pack([[encode(RECORDS[0])]], length=64, slots=1, responses=2)
  np.testing.assert_allclose(scored[0].scores @ np.asarray(params['head']['score']['kernel'])[:, 0], model.apply({'params': params}, plain)[0, 0], atol=1e-5)


def test_an_implicit_reward_model_has_representations_too(system):
  _, params, mesh = system
  model = RewardModel(Decoder(CONFIG), ImplicitRewardHead(reference='frozen'), Decoder(CONFIG))
  found = probing.features(model, {'backbone': params['backbone'], 'reference': params['backbone']}, RECORDS[:1], encode, mesh=mesh, **SHAPE)
  np.testing.assert_allclose(found, probing.features(*system[:2], RECORDS[:1], encode, mesh=mesh, **SHAPE), atol=1e-6)
  with pytest.raises(InputError, match='too long'):
    probing.features(*system[:2], RECORDS[1:2], encode, mesh=mesh, **SHAPE)


def test_the_random_backbone_has_the_same_shapes_and_other_numbers(system):
  model, params, mesh = system
  random = probing.random_params(model, mesh, seed=3)
  assert jax.tree.map(jnp.shape, random) == {'backbone': jax.tree.map(jnp.shape, params['backbone'])}
  found = probing.features(model, random, RECORDS[:1], encode, mesh=mesh, **SHAPE)
  assert np.abs(found - probing.features(model, params, RECORDS[:1], encode, mesh=mesh, **SHAPE)).max() > 0.1


def test_a_bag_counts_the_tokens_of_prompt_and_response():
  encoded = [encode(r) for r in RECORDS]
  vocabulary = probing.common_tokens(encoded, 3)
  frequent = {ord('a') % 60, ord('b') % 60}  # 'a' stands in one prompt and two responses, 'b' in two prompts; nothing else as often but '<'
  np.testing.assert_array_equal(vocabulary, sorted({*frequent, 0}))
  bag = probing.bag_of_tokens(encoded, [len(r.responses) for r in RECORDS], vocabulary)
  count = lambda text: [np.log1p(sum(ord(c) % 60 == token for c in text)) for token in vocabulary]
  expected = [count(r.prompt + text) if r.prompt != 'refuse' else [np.nan] * 3 for r in RECORDS for text in r.responses]
  np.testing.assert_allclose(bag, expected, rtol=1e-6)


@pytest.mark.parametrize('fit', [lambda x, y: LONGER(x, y, 2), lambda x, y: probing.fit_logistic_probe(x, y, 2)])
def test_separable_blobs_are_all_right(fit):
  (x, y), (held_out, truth) = blobs(0), blobs(1)
  x, held_out = x - 3 * np.array([1, -1], np.float32), held_out - 3 * np.array([1, -1], np.float32)  # the border passes through 0: no bias is needed
  assert probing.right(fit(x, y), held_out, truth).mean() == 1.0


def test_shuffled_labels_are_as_right_as_the_prior():
  x, held_out = blobs(0)[0], blobs(1)[0]
  y, truth = (np.random.default_rng(0).random((2, 600)) > 0.7).astype(np.int32)  # have nothing to do with x
  error, prior = np.sqrt(0.7 * 0.3 / 600), probing.majority(y, truth)
  assert probing.right(probing.fit_logistic_probe(x, y, 2), held_out, truth).mean() == pytest.approx(prior, abs=3 * error)
  assert probing.right(probing.fit_linear_probe(x, y, 2), held_out, truth).mean() < prior + 3 * error  # without a bias it need not reach the prior


def test_a_constant_shift_changes_only_the_probe_that_neither_centres_nor_has_a_bias():
  (x, y), (held_out, truth) = blobs(0, distance=1.5), blobs(1, distance=1.5)
  shift = np.array([40.0, 25.0], np.float32)
  accuracy = lambda fit, by: probing.right(fit(x + by), held_out + by, truth).mean()
  logistic = lambda x: probing.fit_logistic_probe(x, y, 2)
  paper = lambda x: LONGER(x, y, 2)
  assert accuracy(logistic, shift) == pytest.approx(accuracy(logistic, 0 * shift), abs=0.003) and accuracy(logistic, shift) > 0.8
  assert accuracy(paper, shift) < accuracy(logistic, shift) - 0.1


def test_small_features_leave_the_papers_probe_untrained_and_not_the_converged_one():
  rng = np.random.default_rng(0)
  y = rng.integers(0, 2, 1200).astype(np.int32)
  x = rng.normal(size=(1200, 32)) + 1.5 * np.where(np.arange(32) < 8, 2 * y[:, None] - 1, 0)
  x = x.astype(np.float32)
  paper = lambda scale: probing.right(probing.fit_linear_probe(scale * x[:600], y[:600], 2), scale * x[600:], y[600:]).mean()
  logistic = lambda scale: probing.right(probing.fit_logistic_probe(scale * x[:600], y[:600], 2), scale * x[600:], y[600:]).mean()
  assert logistic(1e-3) == logistic(1.0) > 0.99
  assert paper(1e-3) < 0.95  # 5 steps of 5e-5 against initial weights of about 1 / 10
  assert probing.right(LONGER(x[:600], y[:600], 2), x[600:], y[600:]).mean() > 0.99


def test_the_logistic_probe_is_what_another_optimiser_finds():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(300, 4)) * [1, 5, 0.2, 2] + [0, 3, 1, -2]
  y = np.argmax(x @ rng.normal(size=(4, 3)) + rng.gumbel(size=(300, 3)), -1).astype(np.int32)
  z = (x - x.mean(0)) / x.std(0)

  def loss(flat):
    weights, bias = flat[:12].reshape(4, 3), flat[12:]
    logits = z @ weights + bias
    return np.mean(np.logaddexp.reduce(logits, 1) - logits[np.arange(300), y]) + 0.5 * 1e-2 * np.sum(weights**2)

  expected = optimize.minimize(loss, np.zeros(15), method='BFGS', options=dict(gtol=1e-7)).x
  probe = probing.fit_logistic_probe(x.astype(np.float32), y, 3, ridge=1e-2, iterations=500, tolerance=1e-6)
  np.testing.assert_allclose(probe.weights, expected[:12].reshape(4, 3), atol=2e-3)
  np.testing.assert_allclose(probe.bias - probe.bias.mean(), expected[12:] - expected[12:].mean(), atol=2e-3)


def test_one_step_of_the_papers_probe_by_hand():
  x, y = blobs(0, count=128)
  rate, decay = 5e-3, 0.1
  probe = probing.fit_linear_probe(x, y, 2, learning_rate=rate, weight_decay=decay)
  start = probing.fit_linear_probe(x, y, 2, learning_rate=0.0)
  weights = np.asarray(start.weights, np.float64)
  p = np.exp(x @ weights) / np.exp(x @ weights).sum(1, keepdims=True)
  gradient = x.T @ (p - np.eye(2)[y]) / 128
  np.testing.assert_allclose(probe.weights, weights - rate * (np.sign(gradient) + decay * weights), atol=1e-5)  # Adam's first step has size 1


@pytest.mark.parametrize('fit', [probing.fit_linear_probe, probing.fit_logistic_probe])
def test_dimensions_with_gaps_are_probed_side_by_side(fit):
  x, y = blobs(0, distance=2.0)
  labels = np.stack([y, np.where(np.arange(600) < 100, -1, 1 - y)])
  labels[:, :3] = -1
  unknown = np.where(labels[1, :, None] < 0, np.float32(1e3), x)
  x[:3] = np.nan  # refused
  together = jax.vmap(lambda labels: fit(x, labels, 2))(labels)
  assert np.isfinite(together.weights).all()
  for row, alone in enumerate((fit(x, labels[0], 2), fit(unknown, labels[1], 2))):  # what the features of unlabelled responses are matters nowhere
    np.testing.assert_allclose(together.weights[row], alone.weights, atol=2e-3)
  found = probing.right(alone, x, labels[1])
  assert np.isnan(found[:100]).all() and not np.isnan(found[100:]).any()


def test_merged_levels_are_those_of_the_card():
  harm = np.array([0, 1, 2, 3, np.nan])
  np.testing.assert_array_equal(probing.merge_levels(harm, (1,)), [0, 1, 1, 1, -1])
  np.testing.assert_array_equal(probing.merge_levels(harm, (1, 2)), [0, 1, 2, 2, -1])


def test_cuts_balance_the_classes():
  levels = np.repeat([0.0, 1, 2, 3, 4], [10, 20, 30, 60, 80])
  assert probing.balanced_cuts(levels, 2) == (4,)  # 120 against 80, where (3,) is 60 against 140
  assert probing.balanced_cuts(np.repeat([0.0, 1, 2, 3], [50, 20, 20, 10]), 2) == (1,)
  assert probing.balanced_cuts(np.repeat([0.0, 1, 2, 3], [50, 25, 15, 10]), 3) == (1, 2)
  rng = np.random.default_rng(0)
  continuous = np.append(rng.normal(size=3000), np.nan)
  shares = np.bincount(probing.merge_levels(continuous, probing.balanced_cuts(continuous, 3))[:-1]) / 3000
  np.testing.assert_allclose(shares, 1 / 3, atol=0.03)
  with pytest.raises(InputError, match=r'2 levels \(0, 1\) do not make 3 classes'):
    probing.balanced_cuts(np.array([0.0, 1, 1, np.nan]), 3)


def test_majority_says_what_is_frequent_in_training():
  assert probing.majority(np.array([0, 0, 1, -1, -1, -1]), np.array([0, 1, 1, 1, -1])) == 0.25
