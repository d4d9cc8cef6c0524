"""Files are read by line, lazily, with every bad line named; nothing is lost on the way."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from rmjax.data.records import BadRecord
from rmjax.data.sources import open_source, stream
from rmjax.errors import InputError

ROWS = [dict(prompt=f'p{i}', chosen=f'good {i} é', rejected=f'bad {i}') for i in range(5)]


def write(path, lines):
  data = '\n'.join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines).encode()
  (gzip.open if path.suffix == '.gz' else open)(path, 'wb').write(data)
  return str(path)


@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz', 'a.json.gz', 'a.parquet'])
def test_every_kind_of_file(tmp_path, name):
  if name.endswith('parquet'):
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / name, row_group_size=2)
  else:
    write(tmp_path / name, ROWS)
  source = open_source(str(tmp_path / name))
  assert [source[i].responses[0] for i in (4, 0, 2, 3, 1)] == [f'good {i} é' for i in (4, 0, 2, 3, 1)]
  assert (len(source), source[2].where, source[2].subset) == (5, f'{name}:3', 'a')


def test_several_files_and_patterns(tmp_path):
  write(tmp_path / 'x1.jsonl', ROWS[:2])
  write(tmp_path / 'x2.jsonl', ROWS[2:3])
  write(tmp_path / 'y.jsonl', ROWS[3:])
  source = open_source(f'{tmp_path}/x*.jsonl,{tmp_path}/y.jsonl')
  assert [source[i].where for i in range(5)] == ['x1.jsonl:1', 'x1.jsonl:2', 'x2.jsonl:1', 'y.jsonl:1', 'y.jsonl:2']


def test_windows_line_ends_byte_order_marks_and_blank_lines(tmp_path):
  text = '\ufeff' + json.dumps(ROWS[0]) + '\r\n\r\n  \r\n' + json.dumps(ROWS[1])
  (tmp_path / 'a.jsonl').write_bytes(text.encode())
  source = open_source(str(tmp_path / 'a.jsonl'))
  assert [source[i].where for i in range(len(source))] == ['a.jsonl:1', 'a.jsonl:4']


def test_strict_stops_and_lenient_counts(tmp_path):
  path = write(tmp_path / 'a.jsonl', [ROWS[0], '{"prompt": "x", ', dict(prompt='p', chosen='a', rejected='a'), ROWS[1], '[1]', b'"\xff"'.decode('latin-1')])
  with pytest.raises(BadRecord, match='a.jsonl:2: character 18: malformed JSON: Expecting property name'):
    open_source(path)
  source = open_source(path, bad_rows='lenient')
  assert [source[i].prompt for i in range(len(source))] == ['p0', 'p1']
  assert [line.split(': ')[0] for line in source.bad] == ['a.jsonl:2', 'a.jsonl:3', 'a.jsonl:5', 'a.jsonl:6']


def test_streaming_gives_every_row_in_order(tmp_path):
  path = write(tmp_path / 'a.jsonl.gz', [ROWS[0], 'nonsense', dict(ROWS[1], extra=7)])
  (row, record), (nothing, bad), (other, _) = stream(path)
  assert row == ROWS[0] and record.prompt == 'p0'
  assert nothing is None and str(bad).startswith('a.jsonl.gz:2: character 1: malformed JSON')
  assert other['extra'] == 7


def test_bad_bytes_are_named(tmp_path):
  (tmp_path / 'a.jsonl').write_bytes(b'{"prompt": "\xff\xfe"}\n')
  with pytest.raises(BadRecord, match='a.jsonl:1: byte 12: not UTF-8'):
    open_source(str(tmp_path / 'a.jsonl'))


@pytest.mark.parametrize(
  ('spec', 'message'),
  [('{0}/none.jsonl', 'none.jsonl does not exist'), ('{0}/*.jsonl', 'matches no file'), ('{0}/a.txt', 'of no kind that can be read: .jsonl')],
)
def test_files_that_cannot_be_read(tmp_path, spec, message):
  (tmp_path / 'a.txt').write_text('')
  with pytest.raises(InputError, match=message):
    open_source(spec.format(tmp_path))
  with pytest.raises(InputError, match="bad_rows = 'some'"):
    open_source(str(tmp_path), bad_rows='some')


# Rows of the real files, and those of them that nobody can learn from: equal or empty responses, and an answer that is `true`.
REAL = {
  'llmbar/llmbar': (449, 1), 'judgebench/*': (313, 0), 'rm_bench/*': (394, 0), 'hh_harmless_base/test': (1608, 4), 'hhh_alignment/hhh': (124, 0),
  'tulu_human_eval/annotations': (621, 16), 'pandalm_human/testset_v1': (507, 32), 'mlqe_pe/*': (23647, 0),
}  # fmt: skip


@pytest.mark.parametrize('name', REAL)
def test_real_files_are_read_to_the_last_row(real_data, name):
  source = open_source(f'{real_data}/{name}.jsonl.gz', bad_rows='lenient')
  rows, bad = REAL[name]
  assert (len(source) + len(source.bad), len(source.bad)) == (rows, bad)
  for line in source.bad:
    assert any(reason in line for reason in ('the same as', 'an empty response', 'text is wanted'))
  record = source[len(source) // 2]
  assert all(record.responses) and record.wins.shape == (len(record.responses),) * 2
  assert np.isin(record.wins + record.wins.T, (0, 1)).all()
