"""Public formats give the records they mean, and every bad row says where and why."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from rmjax.data.formats import to_record
from rmjax.data.records import BadRecord

SYSTEM = {'role': 'system', 'content': 'be kind'}
USER = {'role': 'user', 'content': 'hi'}
SAYS = lambda text: {'role': 'assistant', 'content': text}
ONE_WINS = [[0, 1], [0, 0]]
VOTES = dict(annotator1=1, annotator2=0, annotator3=1.0)


def read(**row):
  return to_record(row, where='f.jsonl:3')


@pytest.mark.parametrize(
  ('row', 'prompt', 'responses', 'wins'),
  [
    (dict(prompt='p', chosen='a', rejected='b', id=7, subset='s', chosen_model='m'), 'p', ('a', 'b'), ONE_WINS),
    (dict(prompt=[USER], chosen='a', rejected='b'), [USER], ('a', 'b'), ONE_WINS),
    (dict(prompt=[USER], chosen=[SAYS('a')], rejected=[SAYS('b')]), [USER], ('a', 'b'), ONE_WINS),
    (dict(prompt=[USER], chosen=[USER, SAYS('a')], rejected=[USER, SAYS('b')]), [USER], ('a', 'b'), ONE_WINS),
    (dict(prompt=[SYSTEM], chosen=[USER, SAYS('a')], rejected=[USER, SAYS('b')]), [SYSTEM, USER], ('a', 'b'), ONE_WINS),
    (dict(chosen=[USER, SAYS('a')], rejected=[USER, SAYS('b')]), [USER], ('a', 'b'), ONE_WINS),
    (dict(prompt=None, chosen=[USER, SAYS('a')], rejected=[USER, SAYS('b')]), [USER], ('a', 'b'), ONE_WINS),
    (dict(chosen=[USER, SAYS('x'), USER, SAYS('a')], rejected=[USER, SAYS('x'), USER, SAYS('b')]), [USER, SAYS('x'), USER], ('a', 'b'), ONE_WINS),
    (dict(prompt='hi', chosen=[SAYS('a')], rejected=[SAYS('b')]), [USER], ('a', 'b'), ONE_WINS),
    (dict(prompt='hi', chosen=[SYSTEM, USER, SAYS('a')], rejected=[SYSTEM, USER, SAYS('b')]), [SYSTEM, USER], ('a', 'b'), ONE_WINS),
    (dict(chosen='\n\nHuman: hi\n\nAssistant: a', rejected='\n\nHuman: hi\n\nAssistant: b'), [USER], ('a', 'b'), ONE_WINS),
    (
      dict(chosen='\n\nHuman: hi\n\nAssistant: x\n\nHuman: hi\n\nAssistant: a', rejected='\n\nHuman: hi\n\nAssistant: x\n\nHuman: hi\n\nAssistant: b'),
      [USER, SAYS('x'), USER], ('a', 'b'), ONE_WINS,
    ),
    (dict(chosen='good', rejected='bad'), '', ('good', 'bad'), ONE_WINS),
    (dict(prompt='p', chosen=['a'], rejected=['b', 'c'], num_correct=1), 'p', ('a', 'b', 'c'), [[0, 1, 1], [0, 0, 0], [0, 0, 0]]),
    (dict(prompt='p', chosen=['a', 'b'], rejected=['c']), 'p', ('a', 'b', 'c'), [[0, 0, 1], [0, 0, 1], [0, 0, 0]]),
    (dict(prompt='p', responses=['a', 'b', 'c'], ratings=[1, 3, 1]), 'p', ('a', 'b', 'c'), [[0, 0, 0.5], [1, 0, 1], [0.5, 0, 0]]),
    (dict(prompt='p', responses=['a', 'b', 'a'], ratings=[1, 3, 2]), 'p', ('a', 'b', 'a'), [[0, 0, 0], [1, 0, 1], [0, 0, 0]]),
    (dict(prompt='p', responses=['a', 'b', 'c'], ratings=[1, None, 2]), 'p', ('a', 'b', 'c'), [[0, 0, 0], [0, 0, 0], [1, 0, 0]]),
    (dict(prompt='p', responses=['a', 'b'], ranks=[1, 2]), 'p', ('a', 'b'), ONE_WINS),
    (dict(prompt='p', responses=['a', 'b'], wins=[[0, 0.7], [0.3, 0]], ratings=[1, 2]), 'p', ('a', 'b'), [[0, 0.7], [0.3, 0]]),
    (dict(prompt=[USER], responses=('a', 'b')), [USER], ('a', 'b'), [[0, 0], [0, 0]]),
    (dict(instruction='p', completions=[dict(response='a', overall_score=7.5), dict(response='b', overall_score=2)]), 'p', ('a', 'b'), ONE_WINS),
    (dict(input='p', output_1='a', output_2='b', label=1), 'p', ('a', 'b'), ONE_WINS),
    (dict(input='p', output_1='a', output_2='b', label=2), 'p', ('a', 'b'), [[0, 0], [1, 0]]),
    (dict(question='p', response_A='a', response_B='b', label='A>B'), 'p', ('a', 'b'), ONE_WINS),
    (dict(question='p', response_A='a', response_B='b', label='B>A'), 'p', ('a', 'b'), [[0, 0], [1, 0]]),
    (dict(prompt='p', completion_a='a', completion_b='b', preference='a-is-slightly-better'), 'p', ('a', 'b'), ONE_WINS),
    (dict(prompt='p', completion_a='a', completion_b='b', preference='tie'), 'p', ('a', 'b'), [[0, 0.5], [0.5, 0]]),
    (dict(prompt='p', completion_a='a', completion_b='b', preference='b-is-better'), 'p', ('a', 'b'), [[0, 0], [1, 0]]),
    (dict(instruction='p', input='x', response1='a', response2='b', **VOTES), 'p\n\nx', ('a', 'b'), [[0, 5 / 6], [1 / 6, 0]]),
    (dict(instruction='p', input='', response1='a', response2='b', annotator1=2, annotator2=2, annotator3=0), 'p', ('a', 'b'), [[0, 1 / 6], [5 / 6, 0]]),
  ],
)  # fmt: skip
def test_preferences(row, prompt, responses, wins):
  record = read(**row)
  assert (record.prompt, record.responses, record.where) == (prompt, responses, 'f.jsonl:3')
  np.testing.assert_allclose(record.wins, wins, rtol=1e-6)
  assert record.wins.dtype == record.ratings.dtype == np.float32


@pytest.mark.parametrize(
  ('row', 'prompt', 'rating'),
  [
    (dict(prompt='p', completion='a', label=True), 'p', 1.0),
    (dict(prompt=[USER], completion=[SAYS('a')], label=False), [USER], 0.0),
    (dict(prompt='p', response='a', helpfulness=3, verbosity=1), 'p', 3.0),
    (dict(prompt='p', response='a', rating=0.5), 'p', 0.5),
    (dict(prompt='p', response='a'), 'p', np.nan),
    (dict(prompt='p', completion='a', rating=-2), 'p', -2.0),
    (dict(prompt=[USER], response='a', rating=None), [USER], np.nan),
    (dict(original='p', translation='a', scores=[1], mean=70.0, z_mean=-0.2), 'p', -0.2),
    (dict(original='p', translation='a', mean=70.0), 'p', 70.0),
  ],
)
def test_single_responses(row, prompt, rating):
  record = read(**row)
  assert (record.prompt, record.responses) == (prompt, ('a',))
  np.testing.assert_allclose(record.ratings, [rating], rtol=1e-6)
  assert record.wins.tolist() == [[0]]


def test_ratings_are_kept_beside_the_wins_they_give():
  np.testing.assert_array_equal(read(prompt='p', responses=['a', 'b'], ratings=[1, None]).ratings, [1, np.nan])
  np.testing.assert_array_equal(read(prompt='p', chosen='a', rejected='b', score_chosen=4, score_rejected=1.5).ratings, [4, 1.5])
  completions = [dict(response='a', overall_score=7.5), dict(response='b', overall_score=None)]
  np.testing.assert_array_equal(read(instruction='p', completions=completions).ratings, [7.5, np.nan])


def test_margins_weights_subsets_and_further_labels():
  record = read(prompt='p', responses=['a', 'b'], margin=2, weight=0.5, subset='s', labels=dict(gold=[0.5, 1], level=3))
  assert (record.margin, record.weight, record.subset) == (2.0, 0.5, 's')
  np.testing.assert_array_equal(record.labels['gold'], np.array([0.5, 1], np.float32))
  assert record.labels['level'].shape == () and record.labels['level'].dtype == np.int32


def test_renamed_columns():
  row = dict(question='p', answer='a', bad='b', prompt='another', source='s')
  columns = dict(prompt='question', chosen='answer', rejected='bad', subset='source')
  record = to_record(row, where='f:1', columns=columns)
  assert (record.prompt, record.responses, record.subset) == ('p', ('a', 'b'), 's')
  swapped = to_record(dict(prompt='p', chosen='a', rejected='b'), where='f:1', columns=dict(chosen='rejected', rejected='chosen'))
  assert swapped.responses == ('b', 'a')
  single = to_record(dict(prompt='p', chosen='a', rejected='b'), where='f:1', columns=dict(response='chosen'))  # no longer a pair
  assert single.responses == ('a',)
  with pytest.raises(BadRecord, match="^f:1: column 'question': missing; it was to be read as 'prompt'$"):
    to_record(dict(chosen='a', rejected='b'), where='f:1', columns={'prompt': 'question'})


def test_dialogues_that_part_before_their_last_turn():
  head = '\n\nHuman: hi\n\nAssistant: '
  record = read(chosen=head + 'yes\n\nHuman: more\n\nAssistant: a', rejected=head + 'no')
  assert record.prompt == [USER]
  assert record.responses == ('yes\n\nHuman: more\n\nAssistant: a', 'no')


PAIR = dict(prompt='p', chosen='a', rejected='b')
JUDGED = dict(input='p', output_1='a', output_2='b')
VOTED = dict(instruction='p', input='x', response1='a', response2='b')
TWO = dict(prompt='p', responses=['a', 'b'])


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    # Columns
    (dict(prompt='p', chosen='a'), "column 'rejected': missing; the columns are prompt, chosen; one of these is wanted: chosen+rejected, prompt+responses"),
    (JUDGED, "column 'label': missing; the columns are input, output_1, output_2;"),
    (dict(text='p', score=1), 'no known format; the columns are text, score;'),
    (dict(prompt='p'), 'no known format; the columns are prompt;'),
    # Nothing to prefer, nothing to score
    (dict(PAIR, rejected='a'), "column 'rejected': the same as chosen: there is nothing to prefer"),
    (dict(chosen=[USER, SAYS('a')], rejected=[USER, SAYS('a')]), "column 'rejected': the same as chosen"),
    (dict(chosen='\n\nHuman: hi\n\nAssistant: a', rejected='\n\nHuman: hi\n\nAssistant: a'), "column 'rejected': the same as chosen"),
    (dict(PAIR, chosen=['a', 'b'], rejected=['c', 'b']), "column 'rejected[1]': the same as chosen[1]"),
    (dict(JUDGED, output_2='a', label=1), "column 'output_2': the same as output_1"),
    (dict(VOTED, response2='a', **VOTES), "column 'response2': the same as response1"),
    (dict(PAIR, rejected=' \n'), "column 'rejected': an empty response: there is nothing to score"),
    (dict(PAIR, chosen=[SAYS('')], rejected=[SAYS('b')]), "column 'chosen': an empty response"),
    (dict(chosen='\n\nHuman: hi\n\nAssistant: a', rejected='\n\nHuman: hi\n\nAssistant:'), "column 'rejected': an empty response"),
    (dict(PAIR, chosen=['a'], rejected=['b', '']), "column 'rejected[1]': an empty response"),
    (dict(TWO, responses=['a', '']), "column 'responses[1]': an empty response"),
    (dict(instruction='p', completions=[dict(response='')]), "column 'completions[0]': an empty response"),
    (dict(prompt='p', response=''), "column 'response': an empty response"),
    (dict(original='p', translation=''), "column 'translation': an empty response"),
    (dict(JUDGED, output_1='', label=1), "column 'output_1': an empty response"),
    # Wrong types
    (dict(PAIR, prompt=3), "column 'prompt': text or a list of messages is wanted, not 3"),
    (dict(PAIR, prompt=None), "column 'prompt': text or a list of messages is wanted, not None"),
    (dict(PAIR, prompt=[]), "column 'prompt': text or a list of messages is wanted, not []"),
    (dict(PAIR, chosen=None), "column 'chosen': text or a list of messages is wanted, not None"),
    (dict(PAIR, rejected=5), "column 'rejected': text is wanted, not 5"),
    (dict(PAIR, rejected='\ud83d'), "column 'rejected': character 1 is half of a surrogate pair"),
    (dict(PAIR, chosen=[]), "column 'chosen': a list of texts is wanted, not []"),
    (dict(PAIR, chosen='a', rejected=['b']), "column 'chosen': a list of texts is wanted, not 'a'"),
    (dict(TWO, responses='ab'), "column 'responses': a list of texts is wanted, not 'ab'"),
    (dict(TWO, responses=['a', 1]), "column 'responses[1]': text is wanted, not 1"),
    (dict(instruction='p', completions=[{}]), "column 'completions': a list of objects with 'response' is wanted, not [{}]"),
    (dict(instruction=1, completions=[dict(response='a')]), "column 'instruction': text is wanted, not 1"),
    (dict(VOTED, input=True, **VOTES), "column 'input': text is wanted, not True"),
    # Messages
    (dict(chosen=[{'role': 'robot', 'content': 'a'}], rejected=[SAYS('b')]), "column 'chosen': message 0 has role 'robot', not one of system, user"),
    (dict(chosen=[{'role': 'user', 'content': None}], rejected=[SAYS('b')]), "column 'chosen': message 0 has content None, not text"),
    (dict(chosen=[{**SAYS(''), 'tool_calls': [{}]}], rejected=[SAYS('b')]), "column 'chosen': message 0 has tool_calls"),
    (dict(prompt=[{'content': 'x'}], chosen='a', rejected='b'), "column 'prompt': message 0 has role None"),
    (dict(chosen=[USER, SAYS('a'), USER], rejected=[USER, SAYS('b')]), "column 'chosen': after the messages that all responses share"),
    (dict(chosen=[USER, SAYS('a')], rejected=[USER, USER]), "column 'rejected': after the messages that all responses share"),
    (dict(PAIR, chosen=[USER, SAYS('a')], rejected=[SAYS('b')]), "column 'chosen': begins with the user's turn and not as the prompt does"),
    (dict(PAIR, chosen=[SYSTEM, USER, SAYS('a')], rejected=[SAYS('b')]), "column 'chosen': begins with the system's turn and not as the prompt does"),
    # Numbers
    (dict(PAIR, margin='x'), "column 'margin': a finite number is wanted, not 'x'"),
    (dict(PAIR, margin=float('nan')), "column 'margin': a finite number is wanted, not nan"),
    (dict(PAIR, margin=True), "column 'margin': a finite number is wanted, not True"),
    (dict(PAIR, weight=-1), "column 'weight': -1.0 is negative"),
    (dict(PAIR, score_chosen=float('inf')), "column 'score_chosen': a finite number is wanted, not inf"),
    (dict(prompt='p', response='a', rating=10**400), "column 'rating': a finite number is wanted, not 1000000"),
    (dict(prompt='p', response='a', helpfulness='4'), "column 'helpfulness': a finite number is wanted, not '4'"),
    (dict(original='p', translation='a', z_mean=float('nan')), "column 'z_mean': a finite number is wanted, not nan"),
    (dict(instruction='p', completions=[dict(response='a', overall_score='7')]), "column 'overall_score': a finite number is wanted, not '7'"),
    (dict(TWO, ratings=[1]), "column 'ratings': 2 numbers are wanted, one a response, not [1]"),
    (dict(TWO, ratings=5), "column 'ratings': 2 numbers are wanted, one a response, not 5"),
    (dict(TWO, ratings=[1, float('nan')]), "column 'ratings[1]': a finite number is wanted, not nan"),
    (dict(TWO, ranks=[1, 2, 3]), "column 'ranks': 2 numbers are wanted"),
    (dict(TWO, ranks=[1, '2']), "column 'ranks[1]': a finite number is wanted, not '2'"),
    (dict(TWO, wins=[[0, 1], [0, 0]], ratings=['x', 1]), "column 'ratings[0]': a finite number is wanted, not 'x'"),
    (dict(TWO, wins=[[0, 1], [1, 0]]), "column 'wins': for 2 responses a 2 x 2 matrix is wanted"),
    (dict(TWO, wins=[[0.5, 1], [0, 0.5]]), "column 'wins': for 2 responses a 2 x 2 matrix is wanted"),
    (dict(TWO, wins=[[0, 1.5], [-0.5, 0]]), "column 'wins': for 2 responses a 2 x 2 matrix is wanted"),
    (dict(TWO, wins=[[0, 1, 0], [0, 0, 0]]), "column 'wins': for 2 responses a 2 x 2 matrix is wanted"),
    (dict(TWO, wins=[[0, 1], [0]]), "column 'wins': numbers of 32 bits are wanted, not [[0, 1], [0]]"),
    (dict(TWO, wins='x'), "column 'wins': numbers of 32 bits are wanted, not 'x'"),
    (dict(TWO, labels=dict(gold=[1, 2, 3])), "column 'labels.gold': for 2 responses one number, 2 or 2 x 2 are wanted, not shape (3,)"),
    (dict(TWO, labels=dict(gold=['x', 'y'])), "column 'labels.gold': numbers of 32 bits are wanted, not ['x', 'y']"),
    (dict(TWO, labels=dict(gold=2**40)), "column 'labels.gold': numbers of 32 bits are wanted"),
    # Verdicts
    (dict(prompt='p', completion='a', label='good'), "column 'label': 'good' is neither true nor false"),
    (dict(prompt='p', completion='a', label=2), "column 'label': 2 is neither true nor false"),
    (dict(JUDGED, label=3), "column 'label': 3 is none of 1, 2"),
    (dict(JUDGED, label=[1]), "column 'label': [1] is none of 1, 2"),
    (dict(question='p', response_A='a', response_B='b', label='A'), "column 'label': 'A' is none of 'A>B', 'B>A', 'A=B'"),
    (dict(prompt='p', completion_a='a', completion_b='b', preference='c'), "column 'preference': 'c' is none of 'a-is-better'"),
    (dict(VOTED, **{**VOTES, 'annotator2': 3}), "column 'annotator2': 3 is none of 0, 1, 2"),
  ],
)
def test_a_bad_row_says_file_line_column_and_reason(row, message):
  with pytest.raises(BadRecord) as error:
    read(**row)
  assert str(error.value).startswith(f'f.jsonl:3: {message}') and '\n' not in str(error.value)


@pytest.mark.parametrize('row', [[1], 'text', None, 3])
def test_a_row_that_is_no_object(row):
  with pytest.raises(BadRecord, match='^f:1: a row is an object with columns, not '):
    to_record(row, where='f:1')


# One row of each format, all columns there.
WHOLE = [
  dict(PAIR, margin=1, weight=2, score_chosen=1, score_rejected=0, subset='s'),
  dict(prompt=[USER], chosen=[USER, SAYS('a')], rejected=[SAYS('b')]),
  dict(PAIR, chosen=['a'], rejected=['b']),
  dict(TWO, ratings=[1, 2], ranks=[2, 1], wins=[[0, 1], [0, 0]], labels=dict(gold=[1, 2])),
  dict(instruction='p', completions=[dict(response='a', overall_score=1)]),
  dict(prompt='p', completion_a='a', completion_b='b', preference='tie'),
  dict(question='p', response_A='a', response_B='b', label='A>B'),
  dict(JUDGED, label=1),
  dict(VOTED, **VOTES),
  dict(prompt='p', completion='a', label=True),
  dict(prompt='p', response='a', rating=1, helpfulness=1),
  dict(original='p', translation='a', z_mean=1, mean=1),
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(['role', 'content', 'response', 'x']), inner))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(row=st.sampled_from(WHOLE), data=st.data())
def test_whatever_a_column_holds_the_row_is_a_sound_record_or_one_line(row, data):
  assert read(**row).responses
  column = data.draw(st.sampled_from(sorted(row)))
  try:
    record = read(**{**row, column: data.draw(ANYTHING)})
  except BadRecord as e:
    assert str(e).startswith("f.jsonl:3: column '") and '\n' not in str(e)
    return
  count = len(record.responses)
  assert all(isinstance(text, str) and text.strip() for text in record.responses)
  assert record.wins.shape == (count, count) and np.isin(record.wins + record.wins.T, (0, 1)).all()
  assert record.ratings.shape == (count,) and not np.isinf(record.ratings).any()
  assert np.isfinite([record.weight, record.margin]).all() and isinstance(record.subset, str)
