"""Generation against the training forward, for every family; its layout, its ends, and what may not be drawn."""

import dataclasses
import json
from pathlib import Path
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoder import abstract, KEY, KEYS, LENGTHS, no_repeats, PLAIN, plain, PROMPTS, responses_of, STOPS

from rmjax import trees
from rmjax.backbones import pretrained
from rmjax.backbones.decoder import Decoder
from rmjax.backbones.lora import add_lora, merge_lora
from rmjax.decoding.generate import generate, pack_prompts
from rmjax.decoding.sampling import Sampling, truncate
from rmjax.decoding.stops import stop_table
from rmjax.errors import InputError
from rmjax.training.mesh import make_mesh, shardings, use_mesh

GOLDENS = Path(__file__).parents[1] / 'goldens' / 'decoders'
FAMILIES = ['llama', 'llama3', 'llama_linear', 'mistral', 'qwen2', 'qwen3', 'gemma2', 'gemma3', 'gemma3_linear', 'qwen3_sliding']


def path_log_probs(decoder, params, batch, temperature=1.0):
  logits = decoder.apply({'params': params}, batch.tokens, batch.positions, batch.subtree_end, method=decoder.logits)
  return of_responses(logits / temperature, batch), logits


def of_responses(logits, batch):
  return jnp.where(batch.labels['mask'] > 0, trees.path_log_probs(logits, batch), 0.0)


def generate_and_check(decoder, params, prompts, lengths, keys, temperature, sampling, **options):
  sampling = dataclasses.replace(sampling, temperature=temperature)
  batch = generate(decoder, params, prompts, lengths, keys, sampling=sampling, **options)
  return batch, *path_log_probs(decoder, params, batch, jnp.where(temperature > 0, temperature, 1.0))


compiled = jax.jit(
  generate_and_check,
  static_argnames=('decoder', 'sampling', 'responses', 'max_new_tokens', 'stop_tokens', 'processor'),
  compiler_options={'xla_backend_optimization_level': 0},  # half the time to compile
)
DEFAULTS = dict(responses=3, max_new_tokens=12, stop_tokens=STOPS, budgets=np.full((4, 3), 12, np.int32), allowed=np.ones((4, 1, 48), bool))


def both(decoder, params, prompts=PROMPTS, lengths=LENGTHS, keys=KEYS, *, temperature=1.0, sampling=Sampling(), **options):  # noqa: B008
  """What is generated, and the log-probabilities and logits that the training forward gives it; most tests share one compilation."""
  return compiled(decoder, params, prompts, lengths, keys, jnp.float32(temperature), sampling, **DEFAULTS | options)


@pytest.mark.parametrize('family', FAMILIES)
def test_log_probs_are_those_of_the_training_forward(family):
  decoder = Decoder(pretrained.read_config(GOLDENS / family))
  params = pretrained.load_decoder(GOLDENS / family, abstract(decoder))
  for temperature in (1.0, 1.3, 0.0):
    batch, log_p, logits = both(decoder, params, temperature=temperature, allowed=None)
    # Moving every parameter by half a unit in its last place moves the forward's own log-probs by up to 1.7e-5 (of these families, 16 draws), and activations
    # round as well. A position or a mask that is off by one moves them by 3 and more.
    np.testing.assert_allclose(batch.labels['log_probs'], log_p, atol=3e-5)
    if temperature:
      np.testing.assert_array_equal(batch.labels['sampler_log_probs'], batch.labels['log_probs'])
    else:  # the most likely token of the full forward
      best = trees.gather(logits.argmax(-1), batch.parents)
      np.testing.assert_array_equal(np.where(batch.labels['mask'] > 0, batch.tokens - best, 0), 0)
      np.testing.assert_array_equal(batch.labels['sampler_log_probs'], 0.0)


def test_the_layout_is_that_of_a_packed_tree():
  batch, *_ = both(*plain(), budgets=np.tile(np.int32([12, 0, 3]), (4, 1)))
  mask = np.asarray(trees.attention_mask(batch.subtree_end))
  assert batch.tokens.shape == (4, 10 + 3 * 12)
  for row in range(4):
    prompt = PROMPTS[row, : LENGTHS[row]].tolist()
    packed = trees.pack([[trees.branch(prompt, [r for r in responses_of(batch, row) if r])]], length=46, slots=1, responses=3)
    used = np.flatnonzero(batch.subtree_end[row])
    place = np.r_[used, -1]  # of the packed column, here
    np.testing.assert_array_equal(batch.tokens[row, used], packed.tokens[0, : used.size])
    np.testing.assert_array_equal(batch.positions[row, used], packed.positions[0, : used.size])
    np.testing.assert_array_equal(batch.parents[row, used], place[packed.parents[0, : used.size]])
    np.testing.assert_array_equal(batch.subtree_end[row, used], place[packed.subtree_end[0, : used.size] - 1] + 1)
    np.testing.assert_array_equal(mask[row][np.ix_(used, used)], trees.attention_mask(packed.subtree_end)[0, : used.size, : used.size])
    assert batch.prompt_ends[row, 0] == LENGTHS[row] - 1
    assert batch.response_ends[row, 0, 1] == -1
    for n in (0, 2):
      assert batch.response_ends[row, 0, n] == 10 + 12 * n + len(responses_of(batch, row)[n]) - 1
    unused = np.delete(np.arange(46), used)
    for values, padding in ((batch.parents, -1), (batch.response_ids, -1), (batch.positions, 0), (batch.labels['mask'], 0)):
      np.testing.assert_array_equal(values[row, unused], padding)
    np.testing.assert_array_equal(batch.labels['mask'][row] > 0, batch.response_ids[row] >= 0)


def test_a_response_does_not_depend_on_what_else_is_generated():
  together, *_ = both(*plain())
  for row, n in ((0, 0), (1, 2), (3, 1)):
    alone, *_ = both(*plain(), PROMPTS[row : row + 1], LENGTHS[row : row + 1], KEYS[row : row + 1, n : n + 1], responses=1, budgets=None, allowed=None)
    assert responses_of(alone, 0)[0] == responses_of(together, row)[n]
    here, there = slice(10 + 12 * n, 22 + 12 * n), slice(10, 22)
    np.testing.assert_allclose(alone.labels['log_probs'][0, there], together.labels['log_probs'][row, here], atol=1e-5)


def test_responses_end_with_a_stop_token_or_with_their_budget():
  budgets = np.int32([[12, 7, 1], [3, 12, 0], [12, 12, 12], [99, 2, 12]])
  batch, *_ = both(*plain(), budgets=budgets)
  for row in range(4):
    for n, response in enumerate(responses_of(batch, row)):
      assert not set(response[:-1]) & set(STOPS)
      finished = bool(response) and response[-1] in STOPS
      assert batch.labels['finished'][row, 0, n] == finished
      assert len(response) == min(budgets[row, n], 12) or (finished and len(response) < budgets[row, n])
  assert 0 < batch.labels['finished'].sum() < 12


STEPS = []  # that a processor has seen


def watched(logits, progress):
  jax.debug.callback(lambda step: STEPS.append(int(step)), progress.step)
  return no_repeats(logits, progress)


def test_a_processor_sees_the_tokens_so_far():
  batch, log_p, _ = both(*plain(), processor=watched)
  for row in range(4):
    for response in responses_of(batch, row):
      assert len(set(response) - set(PROMPTS[row, : LENGTHS[row]].tolist())) == len(response) > 0
  np.testing.assert_allclose(batch.labels['log_probs'], log_p, atol=1e-5)


def test_it_stops_when_all_responses_have_ended():
  def steps(**options):
    STEPS.clear()
    jax.block_until_ready(both(*plain(), processor=watched, **options))
    jax.effects_barrier()
    return sorted(set(STEPS))

  assert steps(allowed=np.tile(~np.isin(np.arange(48), STOPS), (4, 1, 1)), budgets=np.tile(np.int32([3, 5, 2]), (4, 1))) == [0, 1, 2, 3, 4]
  assert steps(allowed=np.tile(np.isin(np.arange(48), STOPS), (4, 1, 1))) == [0]


def test_forbidden_tokens_are_never_drawn_and_log_probs_stay_the_models():
  allowed = np.random.default_rng(1).random((4, 1, 48)) < 0.2
  for temperature in (1.0, 2.0, 0.0):
    batch, log_p, logits = both(*plain(), temperature=temperature, allowed=allowed)
    for row in range(4):
      assert allowed[row, 0, batch.tokens[row, batch.response_ids[row] >= 0]].all()
    np.testing.assert_allclose(batch.labels['log_probs'], log_p, atol=1e-5)
    if temperature:
      drawn_from = jnp.where(allowed, logits / temperature, -jnp.inf)
      np.testing.assert_allclose(batch.labels['sampler_log_probs'], of_responses(drawn_from, batch), atol=1e-5)
      assert (batch.labels['sampler_log_probs'] > batch.labels['log_probs'])[batch.labels['mask'] > 0].all()


def test_truncated_draws_have_the_truncated_log_probs():
  sampling = Sampling(top_k=9, top_p=0.8, min_p=0.05)
  batch, log_p, logits = both(*plain(), temperature=1.5, sampling=sampling)
  np.testing.assert_allclose(batch.labels['log_probs'], log_p, atol=1e-5)
  expected = of_responses(truncate(logits / 1.5, sampling), batch)
  assert np.isfinite(expected).all()
  np.testing.assert_allclose(batch.labels['sampler_log_probs'], expected, atol=1e-5)


def test_stop_strings_end_a_response_where_its_text_is_complete():
  alphabet = 'abcdefghijkl'
  table = stop_table([alphabet[i % 12].encode() * (1 + i % 2) for i in range(48)], ['bb', 'e'])
  batch, *_ = both(*plain(), stop_table=table, stop_tokens=())
  ended = 0
  for row in range(4):
    for n, response in enumerate(responses_of(batch, row)):
      text = lambda ids: ''.join(alphabet[i % 12] * (1 + i % 2) for i in ids)
      complete = lambda ids, text=text: 'bb' in text(ids) or 'e' in text(ids)
      assert not complete(response[:-1])
      assert batch.labels['finished'][row, 0, n] == complete(response)
      ended += complete(response)
  assert 0 < ended < 12


def test_lanes_of_a_vmap_are_the_runs_one_by_one():
  decoder, _ = plain()
  params, keys, temperatures = [plain(seed)[1] for seed in (0, 1)], jax.random.split(KEY, (2, 4, 3)), jnp.array([1.0, 1.6])
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
  budgets = jnp.stack([jnp.full((4, 3), 3), jnp.full((4, 3), 12)])  # one lane ends well before the other
  options = dict(sampling=Sampling(), **DEFAULTS)
  lane = lambda params, keys, temperature, budgets: generate_and_check(decoder, params, PROMPTS, LENGTHS, keys, temperature, **options | dict(budgets=budgets))[
    0
  ]
  lanes = jax.jit(jax.vmap(lane))(stacked, keys, temperatures, budgets)
  for i in range(2):
    alone, *_ = both(decoder, params[i], keys=keys[i], temperature=temperatures[i], budgets=budgets[i])
    compare = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5) if a.dtype == jnp.float32 else np.testing.assert_array_equal(a, b)
    jax.tree.map(compare, jax.tree.map(lambda leaf, i=i: leaf[i], lanes), alone)


def test_lanes_of_a_vmap_do_not_copy_the_cache_of_those_that_are_done():
  decoder, params = plain()
  run = lambda key: generate(decoder, params, PROMPTS, LENGTHS, key, responses=2, max_new_tokens=8, stop_tokens=(2,))
  text = str(jax.make_jaxpr(jax.vmap(run))(jax.random.split(KEY, 4)))
  cache = r'f32\[4,8,2,7,4\]'  # lanes, responses, key heads, slots, head size
  assert re.search(f'{cache} = dynamic_update_slice|{cache} = scatter', text)
  assert not re.search(f'{cache} = select_n', text)


def test_the_cache_of_a_prompt_is_not_copied_for_its_responses():
  decoder, params = plain()
  run = lambda: generate(decoder, params, PROMPTS, LENGTHS, KEY, responses=3, max_new_tokens=8)
  text = str(jax.make_jaxpr(run)())
  assert 'f32[4,2,10,4]' in text  # prompts, key heads, columns, head size
  assert not re.search(r'f32\[(12|4,3),2,10,4\]|f32\[4,2,3,10,4\]|f32\[(12|4,3),10,2,4\]', text)


def test_rows_without_a_prompt_have_no_responses():
  prompts, lengths = pack_prompts([[3, 4]], length=10, rows=4)
  batch, *_ = both(*plain(), prompts, lengths)
  np.testing.assert_array_equal(batch.prompt_ends, [[1], [-1], [-1], [-1]])
  np.testing.assert_array_equal(batch.response_ends[1:], -1)
  assert not batch.subtree_end[1:].any() and not batch.labels['mask'][1:].any()
  assert np.isfinite(batch.labels['log_probs']).all()


def test_one_token_alone():
  batch, log_p, _ = both(*plain(), max_new_tokens=1)
  np.testing.assert_array_equal(trees.response_lengths(batch), 1)
  np.testing.assert_allclose(batch.labels['log_probs'], log_p, atol=1e-5)


def test_bfloat16_is_near_its_own_training_forward():
  decoder, params = Decoder(PLAIN, dtype=jnp.bfloat16), plain()[1]
  batch, log_p, _ = both(decoder, params, allowed=None)
  assert batch.labels['log_probs'].dtype == jnp.float32
  assert np.abs(batch.labels['log_probs'] - log_p).max() < 0.1


def test_adapters_are_merged_and_not_forgotten():
  plain_decoder, params = plain()
  decoder = add_lora(plain_decoder, rank=2, alpha=3.0, modules='layers/attention/(query|value)')
  fill = lambda leaf: 0.3 * jax.random.normal(jax.random.key(5), leaf.shape)
  adapted = jax.tree.map(fill, abstract(decoder))
  for name in ('query', 'value'):
    assert 'kernel_lora_a' in adapted['layers']['attention'][name]
  with pytest.raises(InputError, match='merge them first'):
    generate(decoder, adapted, PROMPTS, LENGTHS, KEY, responses=1, max_new_tokens=2)
  merged = merge_lora(adapted, alpha=3.0)
  batch, log_p, _ = both(plain_decoder, merged)
  np.testing.assert_allclose(batch.labels['log_probs'], log_p, atol=1e-5)
  log_p, _ = jax.jit(lambda params: path_log_probs(decoder, params, batch))(adapted)
  np.testing.assert_allclose(batch.labels['log_probs'], log_p, atol=1e-5)
  assert jax.tree.structure(merged) == jax.tree.structure(params)


def test_a_mesh_generates_what_one_device_does():
  decoder, params = plain()
  one, *_ = both(decoder, params)
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  rows = jax.NamedSharding(mesh, jax.P(('data', 'fsdp')))
  with use_mesh(mesh):
    laid_out = jax.device_put(params, shardings(abstract(decoder, boxed=True), mesh))
    many, *_ = both(decoder, laid_out, *jax.device_put((PROMPTS, LENGTHS), rows))
  np.testing.assert_array_equal(many.tokens, one.tokens)
  np.testing.assert_allclose(many.labels['log_probs'], one.labels['log_probs'], atol=2e-5)


def test_greedy_text_of_a_real_llama(real_data):
  path = real_data / 'checkpoints' / 'stories260K'
  decoder = Decoder(pretrained.read_config(path / 'hf'))
  params = pretrained.load_decoder(path / 'hf', abstract(decoder))
  items = json.loads((path / 'golden.json').read_text())['items']
  prompts, lengths = pack_prompts([item['ids'] for item in items], length=20)
  batch, *_ = both(
    decoder, params, prompts, lengths, temperature=0.0, max_new_tokens=64, stop_tokens=(), budgets=None, allowed=None,
  )  # fmt: skip
  for row, item in enumerate(items):
    assert responses_of(batch, row) == [item['greedy_ids_64']] * 3


def run_with(**options):
  decoder, params = plain()
  options = dict(decoder=decoder, params=params, prompts=PROMPTS, lengths=LENGTHS, key=KEY, responses=2, max_new_tokens=4) | options
  return generate(**options)


@pytest.mark.parametrize(
  ('action', 'message'),
  [
    (lambda: pack_prompts([[1], []], length=4), 'prompt 1 is empty: give it at least one token'),
    (lambda: pack_prompts([[1] * 5], length=4), 'prompt 0 has 5 tokens, and the cache has length = 4'),
    (lambda: pack_prompts([[1, -1]], length=4), 'prompt 0 has the token -1'),
    (lambda: pack_prompts([[1], [2]], length=4, rows=1), '2 prompts: there must be at least one and at most rows = 1'),
    (lambda: pack_prompts([], length=4), '0 prompts: there must be at least one'),
    (lambda: run_with(max_new_tokens=55), 'need 65 positions, and the decoder has 64'),
    (lambda: run_with(responses=0), 'responses = 0, max_new_tokens = 4: they must be at least 1'),
    (lambda: run_with(key=KEYS), 'key has shape (4, 3): give one key, or responses = 2 for each of 4 prompts'),
    (lambda: run_with(cache_dtype='int4'), "cache_dtype = 'int4': choose one of bfloat16, int8, or None"),
    (lambda: run_with(stop_tokens=(-1,)), 'stop token -1 is not in the vocabulary of 48'),
    (lambda: run_with(stop_table=np.zeros((2, 7), np.int32)), 'the stop table is for 7 tokens, and the decoder has 48'),
    (lambda: run_with(allowed=np.zeros(48, bool)), 'allowed leaves no token somewhere'),
    (lambda: run_with(prompts=PROMPTS + 40), 'and the vocabulary has 48: use the tokenizer'),
    (lambda: run_with(lengths=LENGTHS + 9), 'a prompt has 19 tokens, and the cache has 10 columns'),
    (lambda: run_with(decoder=Decoder(dataclasses.replace(PLAIN, tie_embeddings=False))), 'have no output matrix'),
  ],
)
def test_bad_input_is_named(action, message):
  with pytest.raises(InputError, match=re.escape(message)):
    action()
