"""A queue of responses: the same as `generate` gives, in the steps that a greedy schedule of so many slots takes."""

import dataclasses
import functools
import heapq
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_decoder import abstract, KEY, KEYS, LENGTHS, no_repeats, PLAIN, plain, PROMPTS, STOPS

from rmjax.backbones.decoder import Decoder
from rmjax.decoding import continuous
from rmjax.decoding.continuous import generate_queue
from rmjax.decoding.generate import generate
from rmjax.decoding.sampling import Sampling
from rmjax.decoding.steps import forward
from rmjax.decoding.stops import stop_table
from rmjax.errors import InputError
from rmjax.training.mesh import make_mesh, shardings, use_mesh
from rmjax.trees import response_lengths

NEW = 12
# One layer, which compiles the sooner, with or without a window; two query heads share a key head.
SMALL, WINDOWED = (Decoder(dataclasses.replace(PLAIN, num_layers=1, windows=windows)) for windows in ((), (4,)))
FULL = np.full((4, 3), NEW, np.int32)
ANY = np.ones((4, 1, 48), bool)
STEPS = []  # that the network has taken


@functools.cache
def small_params():
  params = plain()[1]
  return {**params, 'layers': jax.tree.map(lambda leaf: leaf[:1], params['layers'])}


def counted(*args):
  jax.debug.callback(lambda: STEPS.append(1))
  return forward(*args)


TABLE = stop_table([b'abcdefghijkl'[i % 12 : i % 12 + 1] * (1 + i % 2) for i in range(48)], ['bb', 'ea'])
RICH = dict(processor=no_repeats, sampling=Sampling(1.3, top_k=9), stop_table=TABLE, stop_tokens=(), cache_dtype='int8')


def runner(slots, rich=False):
  """`generate_queue` with so many slots, or `generate` where there are none."""

  def run(params, temperature, budgets, allowed, prompts, lengths, keys):
    shared = dict(responses=3, max_new_tokens=NEW, stop_tokens=STOPS, sampling=Sampling(temperature), budgets=budgets, allowed=allowed) | (RICH if rich else {})
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(continuous, 'forward', counted)
      call = functools.partial(generate_queue, slots=slots) if slots else generate
      return call(SMALL if rich else WINDOWED, params, prompts, lengths, keys, **shared)

  return run


quick = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})  # half the time to compile
compiled = functools.cache(lambda *args: quick(runner(*args)))


def compare(found, expected, atol=1e-5):
  leaf = lambda a, b: np.testing.assert_allclose(a, b, atol=atol) if a.dtype == jnp.float32 else np.testing.assert_array_equal(a, b)
  jax.tree.map(leaf, found, expected)


def both(slots, temperature=1.0, budgets=FULL, allowed=ANY, lengths=LENGTHS, keys=KEYS, rich=False, atol=1e-5):
  """What a queue gives, after it has been compared with what `generate` does, and the steps that it took."""
  STEPS.clear()
  arguments = small_params(), jnp.float32(temperature), budgets, allowed, PROMPTS, lengths, keys
  expected, found = (jax.block_until_ready(compiled(n, rich)(*arguments)) for n in (0, slots))
  jax.effects_barrier()
  compare(found, expected, atol)
  return found, len(STEPS)


def schedule(lengths, slots):
  """When the last of these responses ends, of which each waits for the first slot that is free; the first token of a response takes no step."""
  ends = [0] * slots
  for length in lengths:
    if length > 1:
      heapq.heappush(ends, heapq.heappop(ends) + length - 1)
  return max(ends)


@pytest.mark.parametrize('slots', [1, 2, 12])
def test_a_queue_gives_what_generate_does_in_the_steps_of_a_greedy_schedule(slots):
  rng = np.random.default_rng(3)
  finished = 0
  for temperature in (1.0, 1.4, 0.0):
    budgets = rng.integers(0, NEW + 1, (4, 3)).astype(np.int32)
    found, steps = both(slots, temperature, budgets)
    assert steps == schedule(np.asarray(response_lengths(found)).ravel(), slots)
    finished += found.labels['finished'].sum()
  assert 0 < finished < 36  # some end with a stop token, some with their budget
  found, _ = both(slots, lengths=LENGTHS * np.int32([1, 0, 1, 0]))  # rows without a prompt
  np.testing.assert_array_equal(found.response_ends[1::2], -1)


def test_one_long_response_does_not_hold_the_others():
  allowed = np.tile(~np.isin(np.arange(48), STOPS), (4, 1, 1))
  budgets = np.full((4, 3), 3, np.int32)
  budgets[0, 0] = NEW
  _, steps = both(2, budgets=budgets, allowed=allowed)
  # The long one has 11 steps and the others 2 each: one slot ends at 11, 13, 15, 17, the other at 2, 4, ..., 16.
  assert steps == 17
  assert steps < -(-12 // 2) * (NEW - 1) == 66  # in batches of 2, each as long as it may be
  _, steps = both(2, allowed=allowed)
  assert steps == 66  # where all have the same length there is nothing to gain


def test_whatever_changes_a_draw_is_that_of_the_response():
  allowed = np.random.default_rng(1).random((4, 1, 48)) < 0.5
  # What an int8 cache holds is rounded, and numbers that differ in their last bit may go to different sides.
  found, _ = both(5, allowed=allowed, keys=KEY, rich=True, atol=5e-3)
  for row in range(4):
    assert allowed[row, 0, found.tokens[row, found.response_ids[row] >= 0]].all()
  assert 0 < found.labels['finished'].sum() < 12


def test_lanes_of_a_vmap_are_the_runs_one_by_one():
  params = small_params()
  arguments = lambda keys, budgets: (params, jnp.float32(1.0), budgets, ANY, PROMPTS, LENGTHS, keys)
  lane = lambda keys, budgets: runner(2)(*arguments(keys, budgets))
  keys, budgets = jax.random.split(KEY, (2, 4, 3)), np.stack([FULL * 0 + 3, FULL])  # one lane ends well before the other
  found = quick(jax.vmap(lane))(keys, budgets)
  for i in range(2):
    compare(jax.tree.map(lambda leaf, i=i: leaf[i], found), compiled(2, False)(*arguments(keys[i], budgets[i])))
  text = str(jax.make_jaxpr(jax.vmap(lane))(keys, budgets))
  for cache in (r'f32\[2,2,2,11,4\]', r'f32\[2,2,2,10,4\]'):  # lanes, slots, key heads, columns of responses and of prompts, head size
    assert re.search(f'{cache} = dynamic_update_slice|{cache} = scatter', text)
    assert not re.search(f'{cache} = select_n', text)


def test_a_step_copies_no_cache():
  run = jax.jit(lambda params, key: generate_queue(SMALL, params, PROMPTS, LENGTHS, key, slots=3, responses=4, max_new_tokens=8))
  text = run.lower(small_params(), KEY).compile().as_text()
  loops, _, once = text.partition('\nENTRY ')
  assert once
  for columns in (7, 10):  # of responses and of prompts
    assert f'f32[3,2,{columns},4]' in loops
    assert not re.search(rf'= f32\[3,2,{columns},4\]\S* copy\(', loops)


def test_one_token_alone():
  found = jax.eval_shape(lambda: generate_queue(*plain(), PROMPTS, LENGTHS, KEYS, slots=2, responses=3, max_new_tokens=1))
  assert found.tokens.shape == (4, 10 + 3)


@pytest.mark.slow
def test_a_mesh_generates_what_one_device_does():
  arguments = jnp.float32(1.0), FULL, ANY, PROMPTS, LENGTHS, KEYS
  one = compiled(0, False)(small_params(), *arguments)
  mesh = make_mesh(data=2, fsdp=2, tensor=2)
  rows = jax.NamedSharding(mesh, jax.P(('data', 'fsdp')))
  with use_mesh(mesh):
    params = jax.device_put(small_params(), shardings(abstract(WINDOWED, boxed=True), mesh))
    many = compiled(4, False)(params, *arguments[:3], *jax.device_put((PROMPTS, LENGTHS), rows), KEYS)
  np.testing.assert_array_equal(many.tokens, one.tokens)
  np.testing.assert_allclose(many.labels['log_probs'], one.labels['log_probs'], atol=2e-5)


def test_there_must_be_a_slot():
  with pytest.raises(InputError, match='slots = 0: there must be at least 1'):
    generate_queue(*plain(), PROMPTS, LENGTHS, KEYS, slots=0, responses=3, max_new_tokens=1)
