"""Files are read by line, with every bad line named; nothing is lost on the way."""

import gzip
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from rmjax.data.records import BadRecord
from rmjax.data.sources import open_source, rows, stream
from rmjax.errors import InputError

ROWS = [dict(prompt=f'p{i}', chosen=f'good {i} é', rejected=f'bad {i}') for i in range(5)]


def write(path, lines):
  data = '\n'.join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines).encode()
  with (gzip.open if path.suffix == '.gz' else open)(path, 'wb') as file:
    file.write(data)
  return str(path)


def write_parquet(path, items=ROWS):
  pyarrow.parquet.write_table(pa.Table.from_pylist(items), path, row_group_size=2)
  return str(path)


@pytest.mark.parametrize('name', ['a.b.jsonl', 'a.b.jsonl.gz', 'a.b.json.gz', 'a.b.parquet'])
def test_every_kind_of_file(tmp_path, name):
  path = (write_parquet if name.endswith('parquet') else write)(tmp_path / name, ROWS)
  source = open_source(path)
  assert [source[i].responses[0] for i in (4, 0, 2, 3, 1)] == [f'good {i} é' for i in (4, 0, 2, 3, 1)]
  assert (len(source), source[2].where, source[2].subset, source.bad) == (5, f'{name}:3', 'a.b', [])
  assert list(rows(path)) == [(f'{name}:{i + 1}', row) for i, row in enumerate(ROWS)]


def test_parquet_messages_and_nulls(tmp_path):
  talk = lambda text: [dict(role='user', content='hi', name=None), dict(role='assistant', content=text, name='x')]
  source = open_source(write_parquet(tmp_path / 'a.parquet', [dict(chosen=talk('a'), rejected=talk('b'), margin=m) for m in (None, 1.5)]))
  assert [source[i].margin for i in range(2)] == [0.0, 1.5]
  assert source[1].prompt == [dict(role='user', content='hi')] and source[1].responses == ('a', 'b')


def test_several_files_and_patterns(tmp_path):
  write(tmp_path / 'x1.jsonl', ROWS[:2])
  write(tmp_path / 'x2.jsonl', ROWS[2:3])
  write(tmp_path / 'y.jsonl', ROWS[3:])
  source = open_source(f'{tmp_path}/x*.jsonl, {tmp_path}/y.jsonl')
  assert [source[i].where for i in range(5)] == ['x1.jsonl:1', 'x1.jsonl:2', 'x2.jsonl:1', 'y.jsonl:1', 'y.jsonl:2']
  with pytest.raises(IndexError):
    source[5]


def test_subsets_are_the_row_s_own_or_the_file_s_name_without_its_shard(tmp_path):
  write(tmp_path / 'train-00001-of-00002.jsonl', [ROWS[0], dict(ROWS[1], subset='own'), dict(ROWS[2], kind='k')])
  source = open_source(f'{tmp_path}/train-00001-of-00002.jsonl')
  assert [source[i].subset for i in range(3)] == ['train', 'own', 'train']
  source = open_source(f'{tmp_path}/train-00001-of-00002.jsonl', columns={'subset': 'kind'}, bad_rows='lenient')
  assert (source[0].subset, len(source.bad)) == ('k', 2)


def test_windows_line_ends_byte_order_marks_and_blank_lines(tmp_path):
  text = json.dumps(ROWS[0]) + '\r\n\r\n  \r\n' + json.dumps(ROWS[1])
  for opening, lines in (('\ufeff', [1, 4]), ('\ufeff\r\n', [2, 5])):
    (tmp_path / 'a.jsonl').write_bytes((opening + text).encode())
    source = open_source(str(tmp_path / 'a.jsonl'))
    assert [source[i].where for i in range(len(source))] == [f'a.jsonl:{line}' for line in lines]
    assert [where for where, _ in rows(tmp_path / 'a.jsonl')] == [f'a.jsonl:{line}' for line in lines]


BAD_LINES = {
  '{"prompt": "x", ': 'character 17: malformed JSON: Expecting property name enclosed in double quotes',
  'nonsense': 'character 1: malformed JSON: Expecting value',
  json.dumps(ROWS[0]) + json.dumps(ROWS[1]): 'character 65: malformed JSON: Extra data',
  b'{"prompt": "\xff\xfe"}': 'byte 13: not UTF-8',
  '[' * 100_000: 'JSON that cannot be read: maximum recursion depth',
  '{"prompt": ' + '1' * 5000 + '}': 'JSON that cannot be read: Exceeds the limit',
  '[1]': 'a row is an object with columns, not [1]',
  'null': 'a row is an object with columns, not None',
  json.dumps(dict(ROWS[0], rejected='good 0 é')): "column 'rejected': the same as chosen: there is nothing to prefer",
  json.dumps(dict(prompt='p', chosen='a')): "column 'rejected': missing",
}


@pytest.mark.parametrize('line', BAD_LINES)
@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz'])
def test_strict_stops_and_lenient_counts(tmp_path, line, name):
  content = [json.dumps(ROWS[0]).encode(), line if isinstance(line, bytes) else line.encode(), json.dumps(ROWS[1]).encode()]
  with (gzip.open if name.endswith('gz') else open)(tmp_path / name, 'wb') as file:
    file.write(b'\n'.join(content))
  path = str(tmp_path / name)
  with pytest.raises(BadRecord) as error:
    open_source(path)
  assert str(error.value).startswith(f'{name}:2: {BAD_LINES[line]}') and '\n' not in str(error.value)
  source = open_source(path, bad_rows='lenient')
  assert [source[i].prompt for i in range(len(source))] == ['p0', 'p1']
  assert source.bad == [str(error.value)]
  (_, first), (_, bad), (_, last) = stream(path)
  assert (first.prompt, str(bad), last.prompt) == ('p0', str(error.value), 'p1')


def test_streaming_gives_every_row_in_order_with_all_its_columns(tmp_path):
  path = write(tmp_path / 'a.jsonl.gz', [ROWS[0], 'nonsense', dict(prompt='p', chosen='a', extra=7), dict(ROWS[1], extra=8)])
  (row, record), (nothing, unread), (other, bad), (last, _) = stream(path)
  assert row == ROWS[0] and record.prompt == 'p0' and record.subset == 'a'
  assert nothing is None and isinstance(unread, BadRecord)
  assert other['extra'] == 7 and isinstance(bad, BadRecord)
  assert last == dict(ROWS[1], extra=8)


@pytest.mark.parametrize('name', ['a.jsonl.gz', 'a.parquet'])
def test_streaming_holds_a_few_rows_and_not_the_file(tmp_path, name):
  items = (dict(prompt=f'{i} ' * 50, response=f'{i} ' * 200) for i in range(20_000))
  if name.endswith('gz'):
    with gzip.open(tmp_path / name, 'wt', compresslevel=1) as file:
      file.writelines(json.dumps(item) + '\n' for item in items)
  else:
    pyarrow.parquet.write_table(pa.Table.from_pylist(list(items)), tmp_path / name, row_group_size=1000)
  tracemalloc.start()
  arrow, count = pa.total_allocated_bytes(), 0
  peak = 0
  for _ in rows(tmp_path / name):
    count += 1
    peak = max(peak, pa.total_allocated_bytes() - arrow)
  python_peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert count == 20_000
  assert python_peak + peak < 8e6  # the rows are 28 MB


def test_opening_a_file_does_not_hold_its_text(tmp_path):
  with (tmp_path / 'a.jsonl').open('w') as file:
    file.writelines(json.dumps(dict(prompt=f'{i} ' * 50, response=f'{i} ' * 200)) + '\n' for i in range(5000))
  tracemalloc.start()
  source = open_source(str(tmp_path / 'a.jsonl'))
  held = tracemalloc.get_traced_memory()[0]
  tracemalloc.stop()
  assert len(source) == 5000 and held < 100 * 5000


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('{0}/none.jsonl', 'none.jsonl does not exist'),
    ('{0}/*.jsonl', r'\*.jsonl matches no file'),
    ('{0}/a.txt', r'a.txt is of no kind that can be read: .jsonl, .jsonl.gz'),
    ('{0}', r'is a directory, and not one that TFDS prepared: name its files, as in .*/\*.jsonl'),
    ('', "'' names no data"),
    ('{0}/a.txt,,', 'names no data'),
    ('{0}/plain.jsonl.gz', 'plain.jsonl.gz is damaged, or not what its name says: Not a gzipped file'),
    ('{0}/short.jsonl.gz', 'short.jsonl.gz is damaged, or not what its name says: Compressed file ended'),
    ('{0}/flipped.jsonl.gz', 'flipped.jsonl.gz is damaged, or not what its name says: '),
    ('{0}/plain.parquet', 'plain.parquet is damaged, or not what its name says: '),
    ('{0}/short.parquet', 'short.parquet is damaged, or not what its name says: '),
    ('{0}/empty.json.gz', 'has no row that can be used: it is empty'),
  ],
)
def test_files_that_cannot_be_read_are_named_in_one_line(tmp_path, spec, message):
  whole = gzip.compress(json.dumps(ROWS[0]).encode() * 100)
  write_parquet(tmp_path / 'short.parquet')
  contents = {
    'a.txt': b'', 'plain.jsonl.gz': b'{}', 'short.jsonl.gz': whole[:-20], 'flipped.jsonl.gz': whole[:20] + bytes(20) + whole[40:],
    'plain.parquet': b'{}' * 20, 'short.parquet': (tmp_path / 'short.parquet').read_bytes()[:-9], 'empty.json.gz': gzip.compress(b'\n'),
  }  # fmt: skip
  for name, data in contents.items():
    (tmp_path / name).write_bytes(data)
  with pytest.raises(InputError, match=message) as error:
    open_source(spec.format(tmp_path))
  assert '\n' not in str(error.value)
  if spec.endswith(('short.jsonl.gz', 'plain.jsonl.gz', '.parquet')):
    with pytest.raises(InputError, match=message):
      list(rows(spec.format(tmp_path)))


def test_a_source_of_bad_rows_alone_is_none(tmp_path):
  path = write(tmp_path / 'a.jsonl', ['nonsense'])
  with pytest.raises(InputError, match='a.jsonl. has no row that can be used: a.jsonl:1: character 1: malformed JSON'):
    open_source(path, bad_rows='lenient')


def test_bad_rows_is_strict_or_lenient():
  with pytest.raises(InputError, match="data.bad_rows = 'some': choose 'strict' or 'lenient'"):
    open_source('a.jsonl', bad_rows='some')


# Rows of the real files, and those of them that nobody can learn from: equal or empty responses, and an answer that is `true`.
REAL = {
  'llmbar/llmbar': (449, ['the same as'] * 1),
  'judgebench/*': (313, []),
  'rm_bench/*': (394, []),
  'hh_harmless_base/test': (1608, ['an empty response'] * 4),
  'hhh_alignment/hhh': (124, []),
  'tulu_human_eval/annotations': (621, ['the same as'] * 16),
  'pandalm_human/testset_v1': (507, ['an empty response'] * 26 + ['text is wanted, not True'] * 6),
  'mlqe_pe/*': (23647, []),
}


@pytest.mark.parametrize('name', REAL)
def test_real_files_are_read_to_the_last_row(real_data, name):
  source = open_source(f'{real_data}/{name}.jsonl.gz', bad_rows='lenient')
  count, bad = REAL[name]
  assert len(source) + len(source.bad) == count
  assert sorted(reason for line in source.bad for reason in set(bad) if reason in line) == bad
  for i in range(0, len(source), 10):
    record = source[i]
    assert all(text.strip() for text in record.responses) and record.prompt
    assert record.wins.shape == (len(record.responses),) * 2 and np.isin(record.wins + record.wins.T, (0, 1)).all()
    assert (record.wins.sum() > 0) == (len(record.responses) > 1) and np.isfinite(record.ratings).all() == (len(record.responses) == 1)


def test_labels_of_real_data_are_those_of_its_documentation(real_data):
  bench = open_source(f'{real_data}/rm_bench/chat_filtered.jsonl.gz')
  assert len(bench[0].responses) == 6 and bench[0].wins[:3, 3:].all() and bench[0].wins.sum() == 9
  pandalm = open_source(f'{real_data}/pandalm_human/testset_v1.jsonl.gz', bad_rows='lenient')
  votes = 6 * np.array([pandalm[i].wins[0, 1] for i in range(len(pandalm))])  # three votes of 0, 1/2 or 1
  np.testing.assert_allclose(np.unique(votes.round(4)), np.arange(7))
  dialogues = open_source(f'{real_data}/hh_harmless_base/test.jsonl.gz', bad_rows='lenient')
  assert all(dialogues[i].prompt[-1]['role'] == 'user' for i in range(len(dialogues)))
