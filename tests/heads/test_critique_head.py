"""The critique scorer: what it reads, which tokens are critiques, and that a packed row says what each path says alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax import trees
from rmjax.backbones.decoder import DecoderConfig
from rmjax.data.records import BadRecord, Record, wins_from_ratings
from rmjax.data.tokenizer import Tokenizer
from rmjax.heads.critique import critique_mask
from rmjax.models import build
from rmjax.training.mesh import one_device_mesh
from rmjax.training.reward import reward_objective
from rmjax.training.saved import init_params
from rmjax.worlds.preferences import TOKENIZER as PATH

TOKENIZER = Tokenizer.load(PATH)
SIZES = DecoderConfig(vocab_size=TOKENIZER.vocab_size, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=2)
RESPONSES, CRITIQUES = ('apple arm .', 'baby .', 'bacon basket bread .'), ('plus .', '', 'arm egg minus .')


def record(responses=RESPONSES, critiques=CRITIQUES):
  count = len(responses)
  return Record('who asks : box ?\n', responses, wins_from_ratings(np.arange(count)), np.full(count, np.nan, np.float32), where='f:1', critiques=critiques)


def batch_of(*records, length=64, **text):
  return trees.pack([[TOKENIZER.encode_record(one, max_length=48, **text) for one in records]], length=length, slots=2, responses=3)


def model_of(**head):
  model = build(SIZES, dtype='float32', remat='none', head=dict(name='rmjax.heads.critique:CritiqueScorer', **head), lora=dict(rank=0))
  return model, init_params(model, '', one_device_mesh(), jax.random.key(0))


MODEL, PARAMS = model_of()
APPLY = jax.jit(lambda batch: MODEL.apply({'params': PARAMS}, batch))
BATCH = batch_of(record())


def test_critiques_are_a_responses_last_tokens():
  """The label counts them; a word of the response that a critique says too ('arm') is none of them."""
  plain = batch_of(record(critiques=()))
  assert 'critique_lengths' not in plain.labels and not critique_mask(plain).any()
  np.testing.assert_array_equal(BATCH.labels['critique_lengths'], [[[3, 0, 5], [-1] * 3]])
  mask = np.asarray(critique_mask(BATCH))
  words = [TOKENIZER.backend.id_to_token(token) for token in BATCH.tokens[mask]]
  assert words == ['plus', '.', '<eos>', 'arm', 'egg', 'minus', '.', '<eos>'] and mask[0, BATCH.response_ends[0, 0, [0, 2]]].all()
  said = [TOKENIZER.backend.id_to_token(token) for token in BATCH.tokens[(BATCH.response_ids >= 0) & ~mask]]
  assert said == ['apple', 'arm', '.', '<eos>', 'baby', '.', '<eos>', 'bacon', 'basket', 'bread', '.', '<eos>']
  np.testing.assert_array_equal(trees.response_lengths(BATCH)[0, 0], [7, 3, 10])


def test_the_reward_is_read_after_the_critique_or_if_not_conditioned_before():
  """Another critique is another reward; without one it is the response's; the control's reward never sees a critique."""
  blind, params = model_of(conditioned=False)
  control = jax.jit(lambda batch: blind.apply({'params': params}, batch).reward)
  other, plain = batch_of(record(critiques=('minus .', '', 'arm egg plus .'))), batch_of(record(critiques=()))
  ours, theirs, none = (np.asarray(APPLY(batch).reward)[0, 0] for batch in (BATCH, other, plain))
  assert (np.abs(ours - theirs)[[0, 2]] > 1e-4).all() and (np.abs(ours - none)[[0, 2]] > 1e-4).all()
  assert abs(ours[1] - theirs[1]) < 1e-6 and abs(ours[1] - none[1]) < 1e-6
  for batch in (other, plain):
    np.testing.assert_allclose(control(batch), control(BATCH), atol=1e-6)
  np.testing.assert_allclose(control(plain), APPLY(plain).reward, atol=1e-6)  # the same parameters: the same key


def test_log_probabilities_are_those_of_each_path_alone():
  """sum_t log p(c_t | c_<t, x, y), against the decoder's logits of prompt, response and critique as one text."""
  expected = []
  for response, critique in zip(RESPONSES, CRITIQUES, strict=True):
    path, own = TOKENIZER.encode_path('who asks : box ?\n', response)[0], TOKENIZER.backend.encode(critique, add_special_tokens=False).ids
    ids = jnp.array([[*path, *own, *([TOKENIZER.eos_id] if own else [])]])
    column = jnp.arange(ids.shape[1])[None]
    logits = MODEL.backbone.apply({'params': PARAMS['backbone']}, ids, column, jnp.full_like(ids, ids.shape[1]), method='logits')
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits)[:, :-1], ids[:, 1:, None], -1)[0, :, 0]
    expected.append(-float(log_p[len(path) - 1 :].sum()))
  found = np.asarray(APPLY(BATCH).critique_nll)
  np.testing.assert_allclose(found[0, 0], expected, atol=1e-4)
  assert expected[0] > 1 and (found[0, 1] == 0).all()


def test_scores_do_not_depend_on_what_else_is_in_the_row():
  both = batch_of(record(('egg .', 'fork .'), ('minus .', 'plus plus .')), record())
  for name in ('reward', 'critique_nll'):
    np.testing.assert_allclose(getattr(APPLY(both), name)[0, 1], getattr(APPLY(BATCH), name)[0, 0], atol=1e-5)


def test_the_joint_loss_counts_the_tokens_of_critiques_alone():
  """A mean over 8 tokens; nothing of the response is learned as language."""
  losses = dict(
    critique=dict(name='rmjax.losses.critique:critique_negative_log_likelihood', per='critique'),
    preference=dict(name='rmjax.losses.critique:bradley_terry_with_ties'),
  )
  sums, counts = reward_objective(MODEL, losses)({'reward': PARAMS}, BATCH, jax.random.key(0), jnp.int32(0))
  assert counts['loss']['critique'] == 8 and counts['loss']['preference'] == 3 and counts['critique_nll'] == 8
  np.testing.assert_allclose(sums['loss']['critique'], APPLY(BATCH).critique_nll.sum(), rtol=1e-5)
  np.testing.assert_allclose(sums['critique_nll'], sums['loss']['critique'], rtol=1e-5)
  with pytest.raises(Exception, match='losses.critique needs `critique_lengths`'):
    reward_objective(MODEL, losses)({'reward': PARAMS}, batch_of(record(critiques=())), jax.random.key(0), jnp.int32(0))


def test_only_what_precedes_is_shortened():
  """A row too short cuts the responses, not the critiques; each has room for its own."""
  long = dataclasses.replace(record(('apple ' * 20 + '.', 'baby .', 'egg .'), ('plus .', '', 'arm egg minus .')))
  tree = TOKENIZER.encode_record(long, max_length=20)
  assert tree.labels['truncated'] == 1
  one, two, three = (list(segment.tokens) for segment in tree.segments[1:])
  critique = TOKENIZER.backend.encode('plus .', add_special_tokens=False).ids
  assert one[-3:] == [*critique, TOKENIZER.eos_id] and len(one) + len(tree.segments[0].tokens) == 20
  assert len(two) == 3 and len(three) == 8
  assert 'max_length is 6' in TOKENIZER.encode_record(long, max_length=6)
  with pytest.raises(BadRecord, match='f:1: 2 critiques for 3 responses'):
    TOKENIZER.encode_record(record(critiques=('plus .', '')), max_length=48)
