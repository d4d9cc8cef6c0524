"""The world of sequences: text and rewards are what they say, and in small spaces everything exact agrees with itself and with sampling."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from rmjax import trees
from rmjax.data.tokenizer import Tokenizer
from rmjax.errors import InputError
from rmjax.worlds import sequences
from rmjax.worlds import sequences_exact as exact
from rmjax.worlds.sequences import build_tokenizer, features, gold_of, proxy_points, Sequences, Settings, TOKENIZER, word_weights

GOLDEN = ('forest and river :\n', 'brush brush finger cabbage button friday ice arm blanket jewel engine east bread egg')


def world(split='train', **settings):
  return Sequences(split=split, size=10_000, **settings)


def test_a_record_is_a_function_of_settings_seed_split_and_number():
  source, again = world(), Sequences(split='train', size=5)
  assert [source[i].responses for i in (4, 0, 4)] == [again[i].responses for i in (4, 0, 4)]
  assert (source[0].prompt, *source[0].responses) == GOLDEN  # and does not change between versions
  others = [source[1], Sequences(split='train', seed=1)[0], world('eval')[0], world(focus=0.9)[0]]
  assert len({record.responses for record in [source[0], *others]}) == 5
  assert len(list(again)) == 5


def test_the_splits_share_no_prompt_and_each_has_every_topic():
  prompts = {split: {world(split)[i].prompt for i in range(2000)} for split in ('train', 'eval')}
  assert len(prompts['train']) == 56 and len(prompts['eval']) == 8 and not prompts['train'] & prompts['eval']
  for split, place in itertools.product(prompts, (0, 2)):
    assert len({prompt.split()[place] for prompt in prompts[split]}) == 8


def test_answers_have_the_length_and_the_topics_that_are_set():
  focused, lengths = [], []
  for i in range(1500):
    record = world()[i]
    first, second = (sequences.PLACES.index(record.prompt.split()[k]) for k in (0, 2))
    words = record.responses[0].split()
    lengths.append(len(words))
    focused += [word in sequences.topic_words(second if 2 * k >= len(words) else first, Settings()) for k, word in enumerate(words)]
  assert set(lengths) == {10, 11, 12, 13, 14} and abs(np.mean(lengths) - 12) < 4 * np.sqrt(2 / 1500)
  expected = 0.5 + 0.5 / 8
  assert abs(np.mean(focused) - expected) < 4 * np.sqrt(expected * (1 - expected) / len(focused))
  assert {len(world(spread=0)[i].responses[0].split()) for i in range(20)} == {12}


@pytest.mark.parametrize('rho', [-1.0, -0.6, 0.0, 0.6, 1.0])
def test_weights_have_the_correlation_that_is_set(rho):
  s = Settings(correlation=rho, planting=3)
  weights = word_weights(s).reshape(8, 8, 2).astype(np.float64)
  np.testing.assert_allclose(weights.mean(1), 0.0, atol=1e-6)
  np.testing.assert_allclose((weights**2).mean(1), 1.0, rtol=1e-5)
  np.testing.assert_allclose(weights.prod(-1).mean(1), rho, atol=1e-6)
  np.testing.assert_array_equal(weights[..., 0], word_weights(Settings(planting=3)).reshape(8, 8, 2)[..., 0])  # a is the same whatever rho
  assert np.abs(weights - word_weights(Settings(correlation=rho)).reshape(8, 8, 2)).max() > 0.1


@pytest.mark.parametrize('rho', [-0.6, 0.0, 0.6])
def test_features_of_the_text_are_around_zero_and_correlated(rho):
  a, b = np.array([[record.labels['a'][0], record.labels['b'][0]] for record in (world(correlation=rho)[i] for i in range(2000))]).T
  assert abs(a.mean()) < 4 * a.std() / np.sqrt(2000) and abs(b.mean()) < 4 * b.std() / np.sqrt(2000)
  assert abs(a.std() - 12**-0.5) < 0.02 and abs(np.corrcoef(a, b)[0, 1] - rho) < 4 / np.sqrt(2000)


def test_gold_is_best_in_the_middle_and_concave_in_each_feature():
  s = Settings(best_a=0.8, best_b=0.5, coupling=1.0)
  a, b = np.meshgrid(np.linspace(-1, 3, 401), np.linspace(-1, 3, 401), indexing='ij')
  values = gold_of(a, b, s)
  i, j = np.unravel_index(values.argmax(), values.shape)
  np.testing.assert_allclose([a[i, j], b[i, j], values[i, j]], [0.8, 0.5, 0.65], atol=1e-9)
  for axis in (0, 1):
    assert (np.diff(values, 2, axis) < 1e-12).all()
  np.testing.assert_allclose(gold_of(0.2, 0.3, s), 0.2 - 0.04 / 1.6 + 0.3 - 0.09 / 1.0 - 0.6 * 0.2)
  np.testing.assert_allclose(proxy_points(Settings(best_a=0.8, saturation=2.0)), (2 * np.tanh(0.4), 0.6))


OPTIONS = dict(correlation=0.6, planting=2, topics=6, words=5, length=9)


def test_rewards_of_rollouts_are_those_of_their_text():
  tokenizer = Tokenizer.load(TOKENIZER)
  s = Settings(**OPTIONS, best_a=0.9, coupling=0.3, saturation=0.7)
  source = world(**dataclasses.asdict(s))
  records = [source[i] for i in range(5)]
  groups = [tokenizer.encode_record(record, max_length=64) for record in records]
  joined = trees.Tree((*groups[0].segments, trees.Segment(groups[1].segments[1].tokens, 0, 1)))  # two answers to a prompt
  plain = [trees.Tree(tree.segments) for tree in groups]
  batch = trees.pack([[joined, plain[2]], [plain[3]], [plain[4]]], length=64, slots=2, responses=2)
  places = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2, 0, 0)]
  functions = (
    functools.partial(sequences.proxy_a, **OPTIONS, saturation=0.7),
    functools.partial(sequences.proxy_b, **OPTIONS),
    functools.partial(sequences.gold, **OPTIONS, best_a=0.9, coupling=0.3),
  )
  found = jax.jit(lambda batch: [function(batch) for function in functions])(batch)
  for place, record in zip(places, records, strict=True):
    a, b = features(record.responses[0], s)
    expected = 0.7 * np.tanh(a / 0.7), b, gold_of(a, b, s)
    np.testing.assert_allclose([x[place] for x in found], expected, atol=1e-5)
    np.testing.assert_allclose([record.labels[name][0] for name in ('a', 'b', 'gold')], [a, b, expected[2]], rtol=1e-5, atol=1e-6)
  absent = np.ones((3, 2, 2), bool)
  absent[tuple(zip(*places, strict=True))] = False
  for x in found:
    assert x.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(x)[absent], 0.0)


def test_the_tokenizer_has_a_token_for_each_word_and_reads_what_is_written():
  assert TOKENIZER.read_text() == build_tokenizer()
  tokenizer = Tokenizer.load(TOKENIZER)
  for split in ('train', 'eval'):
    for i in range(100):
      record = world(split, topics=12, words=8)[i]
      ids, first = tokenizer.encode_path(record.prompt, record.responses[0])
      assert tokenizer.unk_id not in ids and ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
      assert tokenizer.backend.decode(ids[first:-1], skip_special_tokens=False) == record.responses[0]


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (dict(split='test'), "split 'test': there are 'train' and 'eval'"),
    (dict(colour='red'), 'world.colour: there is no such setting; there are topics, words'),
    (dict(topics=1), 'world.topics = 1: from 2 to 12'),
    (dict(words=13), 'world.words = 13: at least 4, and with 8 topics at most 12'),
    (dict(words=3), 'world.words = 3: at least 4'),
    (dict(spread=12), 'world.spread = 12: from 0 to below world.length = 12'),
    (dict(focus=1.5), 'world.focus = 1.5: it must be from 0 to 1'),
    (dict(correlation=float('nan')), 'world.correlation = nan: it must be from -1 to 1'),
    (dict(best_a=0.0), 'world.best_a = 0.0: it must be a number above 0'),
    (dict(saturation=float('inf')), 'world.saturation = inf: it must be a number above 0'),
    (dict(coupling=2.0), 'world.coupling = 2.0: from 0 to below'),
  ],
)
def test_settings_that_there_are_not(settings, message):
  with pytest.raises(InputError, match=message):
    Sequences(**{'split': 'train', **settings})


def test_settings_are_the_leaves_of_a_config():
  config = ml_collections.ConfigDict(dataclasses.asdict(Settings()))
  assert Sequences(split='train', **config.to_dict()).settings == Settings()


# Spaces of which everything is exact.


@pytest.mark.parametrize(('vocab', 'length', 'end', 'count'), [(4, 3, -1, 64), (4, 3, 3, 1 + 3 + 9 + 27), (2, 5, 0, 6), (1, 3, -1, 1), (3, 1, 2, 3)])
def test_all_responses_are_listed_once(vocab, length, end, count):
  s = exact.space(vocab, length, end=end)
  written = {tuple(t[m > 0].tolist()) for t, m in zip(s.tokens, s.mask, strict=True)}
  assert len(written) == len(s.tokens) == count
  for response in written:
    assert end not in response[:-1] and (len(response) == length or response[-1] == end)
  prefixes = {}
  for tokens, mask, numbers in zip(s.tokens, s.mask, s.prefixes, strict=True):
    for t in range(int(mask.sum())):
      assert prefixes.setdefault(int(numbers[t]), tuple(tokens[:t].tolist())) == tuple(tokens[:t].tolist())
  assert len(set(prefixes.values())) == len(prefixes) and prefixes[0] == () and max(prefixes) < s.shape[0]


@pytest.mark.parametrize('end', [-1, 2])
def test_probabilities_sum_to_one_and_are_chains(end):
  s = exact.space(3, 3, end=end)
  logits = jax.random.normal(jax.random.key(0), (2, *s.shape)) * 2
  np.testing.assert_allclose(jnp.exp(exact.log_probs(logits, s)).sum(-1), 1.0, rtol=1e-5)
  step = np.asarray(jax.nn.log_softmax(logits))[1]
  total = step[0, 1] + step[1 + 1, 0] + step[1 + 3 + 1 * 3 + 0, 1]
  (number,) = np.flatnonzero((s.tokens == [1, 0, 1]).all(1) & (s.mask.sum(1) == 3))
  np.testing.assert_allclose(exact.log_probs(logits, s)[1, number], total, rtol=1e-5)


def test_the_exact_gradient_is_the_policy_gradient():
  """Sum p r grad log p by hand, and by finite differences."""
  s = exact.space(3, 2, end=1)
  logits, rewards = jax.random.normal(jax.random.key(1), s.shape), jax.random.normal(jax.random.key(2), (len(s.tokens),))
  value, gradient = jax.value_and_grad(lambda x: exact.expected(rewards, x, s))(logits)
  jacobian = jax.jacobian(lambda x: exact.log_probs(x, s))(logits)
  np.testing.assert_allclose(gradient, jnp.einsum('y,y,ykv->kv', jnp.exp(exact.log_probs(logits, s)), rewards, jacobian), atol=1e-6)
  moved = logits.at[0, 2].add(0.05)
  np.testing.assert_allclose(exact.expected(rewards, moved, s) - value, 0.05 * gradient[0, 2], atol=1e-3)
  samples = jax.random.categorical(jax.random.key(3), exact.log_probs(logits, s), shape=(20_000,))
  assert abs(rewards[samples].mean() - value) < 4 * rewards.std() / np.sqrt(20_000)


def test_the_optimal_policy_is_the_best_there_is():
  s = exact.space(3, 3, end=0)
  ref, rewards, beta = jax.random.normal(jax.random.key(4), (2, *s.shape)), jax.random.normal(jax.random.key(5), (2, len(s.tokens))), 0.4
  best = exact.optimal_log_probs(rewards, exact.log_probs(ref, s), beta)
  table = exact.to_logits(best, s)
  np.testing.assert_allclose(exact.log_probs(table, s), best, atol=1e-5)  # a policy of tokens can be it
  objective = lambda logits: exact.expected(rewards, logits, s) - beta * exact.divergence(logits, ref, s)
  value = beta * jax.nn.logsumexp(exact.log_probs(ref, s) + rewards / beta, -1)
  np.testing.assert_allclose(objective(table), value, rtol=1e-5)
  np.testing.assert_allclose(jax.grad(lambda x: objective(x).sum())(table), 0.0, atol=1e-5)
  for key in range(5):
    assert (objective(table + 0.3 * jax.random.normal(jax.random.key(key), table.shape)) < value).all()
  np.testing.assert_allclose(exact.divergence(ref, ref, s), 0.0, atol=1e-6)


@pytest.mark.parametrize('end', [-1, 2])
def test_rollouts_are_packed_trees(end):
  s = exact.space(3, 3, end=end)
  chosen = jax.random.randint(jax.random.key(0), (2, 4), 0, len(s.tokens))
  batch = exact.rollout(chosen, s)
  texts = [[s.tokens[y][s.mask[y] > 0].tolist() for y in row] for row in np.asarray(chosen)]
  packed = trees.pack([[trees.branch([x], row)] for x, row in enumerate(texts)], length=13, slots=1, responses=4)
  lengths = trees.response_lengths(batch)
  np.testing.assert_array_equal(lengths, trees.response_lengths(packed))
  mask, expected_mask = (np.asarray(trees.attention_mask(jnp.asarray(x.subtree_end))) for x in (batch, packed))
  for x, g in np.ndindex(2, 4):
    ours, theirs = (np.flatnonzero(np.asarray(b.response_ids)[x] == g) for b in (batch, packed))
    assert ours[-1] == batch.response_ends[x, 0, g]
    for name in ('tokens', 'positions'):
      np.testing.assert_array_equal(np.asarray(getattr(batch, name))[x, ours], getattr(packed, name)[x, theirs])
    np.testing.assert_array_equal(np.asarray(batch.parents)[x, ours], [0, *ours[:-1]])
    for a, b in zip(ours, theirs, strict=True):
      assert mask[x, a].sum() == expected_mask[x, b].sum() and mask[x, a, 0] and mask[x, a, ours[: list(ours).index(a) + 1]].all()
  np.testing.assert_array_equal(batch.labels['mask'], batch.response_ids >= 0)
  logits = jax.random.normal(jax.random.key(1), (2, *s.shape))
  tokens = exact.rollout_log_probs(logits, chosen, s)
  np.testing.assert_allclose(trees.response_sums(tokens, batch)[:, 0], jnp.take_along_axis(exact.log_probs(logits, s), chosen, -1), rtol=1e-5)
  np.testing.assert_array_equal(tokens[batch.response_ids < 0], 0.0)


@pytest.mark.parametrize(('sizes', 'message'), [((0, 3), 'vocab = 0'), ((4, 11), r'4\^11 responses is too large to list'), ((4, 3, 4), 'end = 4')])
def test_spaces_that_there_are_not(sizes, message):
  with pytest.raises(InputError, match=message):
    exact.space(*sizes[:2], **dict(zip(('end',), sizes[2:], strict=False)))
