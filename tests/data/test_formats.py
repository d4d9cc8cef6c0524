"""Public formats give the records they mean, and every bad row says where and why."""

import numpy as np
import pytest

from rmjax.data.formats import to_record
from rmjax.data.records import BadRecord

USER = {'role': 'user', 'content': 'hi'}
SAYS = lambda text: {'role': 'assistant', 'content': text}
ONE_WINS = [[0, 1], [0, 0]]


def read(**row):
  return to_record(row, where='f.jsonl:3')


@pytest.mark.parametrize(
  ('row', 'prompt', 'responses', 'wins'),
  [
    (dict(prompt='p', chosen='a', rejected='b'), 'p', ('a', 'b'), ONE_WINS),
    (dict(prompt=[USER], chosen=[SAYS('a')], rejected=[SAYS('b')]), [USER], ('a', 'b'), ONE_WINS),
    (dict(prompt=[USER], chosen=[USER, SAYS('a')], rejected=[USER, SAYS('b')]), [USER], ('a', 'b'), ONE_WINS),
    (dict(chosen=[USER, SAYS('a')], rejected=[USER, SAYS('b')]), [USER], ('a', 'b'), ONE_WINS),
    (dict(prompt='hi', chosen=[SAYS('a')], rejected=[SAYS('b')]), [USER], ('a', 'b'), ONE_WINS),
    (dict(chosen='\n\nHuman: hi\n\nAssistant: a', rejected='\n\nHuman: hi\n\nAssistant: b'), [USER], ('a', 'b'), ONE_WINS),
    (dict(chosen='good', rejected='bad'), '', ('good', 'bad'), ONE_WINS),
    (dict(prompt='p', chosen=['a'], rejected=['b', 'c']), 'p', ('a', 'b', 'c'), [[0, 1, 1], [0, 0, 0], [0, 0, 0]]),
    (dict(prompt='p', responses=['a', 'b', 'c'], ratings=[1, 3, 1]), 'p', ('a', 'b', 'c'), [[0, 0, 0.5], [1, 0, 1], [0.5, 0, 0]]),
    (dict(prompt='p', responses=['a', 'b'], ranks=[1, 2]), 'p', ('a', 'b'), ONE_WINS),
    (dict(prompt='p', responses=['a', 'b'], wins=[[0, 0.7], [0.3, 0]]), 'p', ('a', 'b'), [[0, 0.7], [0.3, 0]]),
    (dict(prompt='p', responses=['a', 'b']), 'p', ('a', 'b'), [[0, 0], [0, 0]]),
    (
      dict(instruction='p', completions=[dict(response='a', overall_score=7.5), dict(response='b', overall_score=2)]), 'p', ('a', 'b'), ONE_WINS
    ),
    (dict(input='p', output_1='a', output_2='b', label=2), 'p', ('a', 'b'), [[0, 0], [1, 0]]),
    (dict(question='p', response_A='a', response_B='b', label='A>B'), 'p', ('a', 'b'), ONE_WINS),
    (dict(prompt='p', completion_a='a', completion_b='b', preference='tie'), 'p', ('a', 'b'), [[0, 0.5], [0.5, 0]]),
    (
      dict(instruction='p', input='x', response1='a', response2='b', annotator1=1, annotator2=0, annotator3=1),
      'p\n\nx', ('a', 'b'), [[0, 5 / 6], [1 / 6, 0]],
    ),
  ],
)  # fmt: skip
def test_preferences(row, prompt, responses, wins):
  record = read(**row)
  assert (record.prompt, record.responses, record.where) == (prompt, responses, 'f.jsonl:3')
  np.testing.assert_allclose(record.wins, wins, rtol=1e-6)


@pytest.mark.parametrize(
  ('row', 'rating'),
  [
    (dict(prompt='p', completion='a', label=True), 1.0),
    (dict(prompt='p', completion=[SAYS('a')], label=False), 0.0),
    (dict(prompt='p', response='a', helpfulness=3, verbosity=1), 3.0),
    (dict(prompt='p', response='a', rating=0.5), 0.5),
    (dict(prompt='p', response='a'), np.nan),
    (dict(original='p', translation='a', scores=[1], mean=70.0, z_mean=-0.2), -0.2),
  ],
)
def test_single_responses(row, rating):
  record = read(**row)
  assert record.responses == ('a',)
  np.testing.assert_allclose(record.ratings, [rating], rtol=1e-6)
  assert record.wins.sum() == 0


def test_margins_scores_weights_subsets_and_renamed_columns():
  record = to_record(
    dict(question='p', good='a', rejected='b', margin=2, score_chosen=4, score_rejected=1.5, weight=0.5, subset='s'),
    where='f:1', columns={'prompt': 'question', 'chosen': 'good'},
  )  # fmt: skip
  assert (record.prompt, record.margin, record.weight, record.subset) == ('p', 2.0, 0.5, 's')
  np.testing.assert_array_equal(record.ratings, [4, 1.5])


def test_dialogues_that_part_before_their_last_turn():
  head = '\n\nHuman: hi\n\nAssistant: '
  record = read(chosen=head + 'yes\n\nHuman: more\n\nAssistant: a', rejected=head + 'no')
  assert record.prompt == [USER]
  assert record.responses == ('yes\n\nHuman: more\n\nAssistant: a', 'no')


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    (dict(prompt='p', chosen='a', rejected='a'), "column 'rejected': the same as chosen"),
    (dict(prompt='p', chosen='a', rejected=' '), "column 'chosen or rejected': an empty response"),
    (dict(prompt='p', chosen='a'), 'columns prompt, chosen are no known format'),
    (dict(prompt=3, chosen='a', rejected='b'), "column 'prompt': text or a list of messages is wanted, not 3"),
    (dict(prompt='p', chosen='a', rejected='b', margin='x'), "column 'margin': a finite number is wanted, not 'x'"),
    (dict(prompt='p', chosen='a', rejected='b', margin=float('nan')), "column 'margin': a finite number is wanted, not nan"),
    (dict(chosen=[{'role': 'robot', 'content': 'a'}], rejected=[SAYS('b')]), "column 'chosen': message 0 has role 'robot'"),
    (dict(chosen=[{'role': 'user', 'content': None}], rejected=[SAYS('b')]), "column 'chosen': message 0 has content None, not text"),
    (dict(chosen=[USER, SAYS('a'), USER], rejected=[USER, SAYS('b')]), "column 'chosen': after the messages that all responses share"),
    (dict(prompt='p', responses=['a', 'b'], ratings=[1]), "column 'ratings': 1 values for 2 responses"),
    (dict(prompt='p', responses='ab'), "column 'responses': a list of texts is wanted, not 'ab'"),
    (dict(prompt='p', responses=['a', 'b'], wins=[[0, 1], [1, 0]]), "column 'wins': for 2 responses a 2 x 2 matrix is wanted"),
    (dict(prompt='p', completion='a', label='good'), "column 'label': 'good' is neither true nor false"),
    (dict(input='p', output_1='a', output_2='b', label=3), "column 'label': 3 is none of 1, 2"),
    (dict(instruction='p', completions=[{}]), "column 'completions': a list of objects with `response` is wanted"),
  ],
)
def test_a_bad_row_says_file_line_column_and_reason(row, message):
  with pytest.raises(BadRecord) as error:
    read(**row)
  assert str(error.value).startswith(f'f.jsonl:3: {message}') and '\n' not in str(error.value)


def test_a_renamed_column_that_is_missing():
  with pytest.raises(BadRecord, match="f:1: column 'question': missing; it was to be read as 'prompt'"):
    to_record(dict(chosen='a', rejected='b'), where='f:1', columns={'prompt': 'question'})
