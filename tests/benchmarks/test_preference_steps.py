"""What the benchmarks of training steps count, against the batch that they run."""

import pytest

from benchmarks import peers, preference_steps
from benchmarks.peers import LAYERS, LLAMA
from benchmarks.preference_steps import Work
from rmjax.trees import attention_mask

LENGTHS = [(3, [5, 4, 2, 6]), (1, [7, 1, 1, 2])]


@pytest.mark.parametrize(('system', 'passes'), [('reward', 3), ('dpo', 4), ('dpo_cached', 3)])
def test_operations_are_those_of_the_packed_batch(system, passes):
  batch, filled = preference_steps.packed(Work(system, '', LENGTHS))
  tokens, seen, answers = (batch.subtree_end > 0).sum(), attention_mask(batch.subtree_end).sum(), (batch.response_ids >= 0).sum()
  width, inner = LLAMA['hidden_size'], LLAMA['intermediate_size']
  forward = LAYERS * (2 * (4 * width * width + 3 * width * inner) * tokens + 4 * width * seen)
  forward += 0 if system == 'reward' else 2 * width * LLAMA['vocab_size'] * answers
  assert preference_steps.flop(system, LENGTHS) == passes * float(forward)
  assert filled == tokens / batch.tokens.size
  assert batch.labels['wins'].sum() == 4  # of each two responses one is preferred


def test_rows_of_a_length_hold_the_same_trees():
  whole, _ = preference_steps.packed(Work('reward', '', LENGTHS))
  rows, filled = preference_steps.packed(Work('reward', '', LENGTHS, columns=20))
  assert whole.tokens.shape[0] == 1 and rows.tokens.shape == (2, 20) and filled == 32 / 40
  assert sorted(whole.tokens[whole.subtree_end > 0].tolist()) == sorted(rows.tokens[rows.subtree_end > 0].tolist())
  with pytest.raises(ValueError, match='takes 20 tokens, and a row has 19'):
    preference_steps.packed(Work('reward', '', LENGTHS, columns=19))


@pytest.mark.parametrize('case', preference_steps.CASES)
def test_cases_have_their_ratio_and_the_same_tokens_for_trl(case):
  ratio, responses = case.split(':')
  lengths = preference_steps.realistic(float(ratio), int(responses))
  assert all(len(each) == int(responses) for _, each in lengths)
  prompts, answers = sum(prompt * int(responses) for prompt, _ in lengths), sum(sum(each) for _, each in lengths)
  assert prompts / answers == pytest.approx(float(ratio), rel=0.01, abs=0.01)
  paths = preference_steps.path_lengths(lengths)
  assert len(paths) == max(2 * preference_steps.PAIRS, int(responses)) and max(paths) <= preference_steps.LONGEST
  assert sum(paths) / len(paths) == pytest.approx(209.7, rel=0.01)


def test_a_part_of_the_peak_is_of_the_same_round():
  rounds = [(0.5, peers.Measured(2.0, 2.0, 0.0), peers.Measured(1.0, 2.0, 0.0))] * 2 + [(1.0, peers.Measured(4.0, 4.0, 0.0), peers.Measured(3.0, 6.0, 0.0))]
  flop, runs, products = zip(*rounds, strict=True)
  found = peers.part_of_peak([peers.MATMUL_FLOP * part for part in flop], runs, products)
  assert (found['fraction_of_peak'], found['cpu_fraction_of_peak']) == (0.25, 0.5)
