"""Files and TFDS data sets as random-access sources of records."""

from collections.abc import Iterator, Mapping, Sequence
import glob
import gzip
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rmjax.data.formats import to_record
from rmjax.data.records import BadRecord, Record
from rmjax.errors import InputError

ENDINGS = ('.jsonl', '.jsonl.gz', '.json.gz', '.parquet')


class Source:
  """Records by number, read when asked for.

  Attributes:
    bad: a line for each row that is left out, with file, line, column and reason.
  """

  def __init__(self, tables: Sequence[Any], *, columns: Mapping[str, str] | None, bad_rows: str):
    """Checks every row of some tables; see `open_source`."""
    self._tables, self._columns, self.bad = tables, columns, []
    self._places: list[tuple[int, int]] = []
    for t, table in enumerate(tables):
      for row in range(len(table)):
        try:
          self._record(t, row)
          self._places.append((t, row))
        except BadRecord as e:
          if bad_rows == 'strict':
            raise
          self.bad.append(str(e))

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> Record:
    return self._record(*self._places[index])

  def _record(self, table: int, row: int) -> Record:
    where, value = self._tables[table].row(row)
    return _to_record(value, where, self._columns, self._tables[table].name)


def open_source(spec: str, *, columns: Mapping[str, str] | None = None, bad_rows: str = 'strict') -> Source:
  """Opens preference data and checks every row of it.

  Args:
    spec: files or patterns, separated by commas (.jsonl, .jsonl.gz, .json.gz, .parquet), or 'tfds:NAME:SPLIT', NAME being a TFDS data
      set's name or a directory that holds a prepared one.
    columns: our column -> the data's.
    bad_rows: 'strict' stops at the first row that cannot be used, 'lenient' leaves such rows out and lists them in `bad`.

  Raises:
    BadRecord: a bad row, if strict.
    InputError: a file is missing or of another kind.
  """
  if bad_rows not in ('strict', 'lenient'):
    raise InputError(f"data.bad_rows = '{bad_rows}': choose 'strict' or 'lenient'")
  tables = []
  for part in filter(None, spec.split(',')):
    if part.startswith('tfds:'):
      tables.append(_Tfds(part))
    else:
      tables += [_Parquet(file) if file.suffix == '.parquet' else _JsonLines(file) for file in _files(part)]
  return Source(tables, columns=columns, bad_rows=bad_rows)


def stream(path: Path | str, *, columns: Mapping[str, str] | None = None) -> Iterator[tuple[Mapping[str, Any] | None, Record | BadRecord]]:
  """(row, its record or what is wrong with it) of one JSON Lines file, holding one line at a time.

  Raises:
    InputError: the file is missing or no JSON Lines file.
  """
  (path,) = _files(str(path))
  with _open(path) as file:
    for number, line in enumerate(file, 1):
      if line.strip():
        row = None
        try:
          row = _parse(line, f'{path.name}:{number}')
          yield row, _to_record(row, f'{path.name}:{number}', columns, _stem(path))
        except BadRecord as e:
          yield row, e


def _to_record(row: Any, where: str, columns: Mapping[str, str] | None, name: str) -> Record:
  if isinstance(row, BadRecord):
    raise row
  if isinstance(row, Mapping) and not row.get('subset'):
    row = {**row, 'subset': name}
  return to_record(row, where=where, columns=columns)


class _JsonLines:
  """Lines of a file, found by their place in it; a compressed one is held in memory."""

  def __init__(self, path: Path):
    self.path, self.name = path, _stem(path)
    self._memory = None
    if path.suffix == '.gz':
      with _open(path) as file:
        self._memory = file.read()
    self._lines: list[tuple[int, int, int]] = []  # number, start, size
    start = 0
    with _open(path) as file:
      for number, line in enumerate(file, 1):
        if line.strip(b'\xef\xbb\xbf \t\r\n'):
          self._lines.append((number, start, len(line)))
        start += len(line)

  def __len__(self) -> int:
    return len(self._lines)

  def row(self, index: int) -> tuple[str, Any]:
    number, start, size = self._lines[index]
    where = f'{self.path.name}:{number}'
    if self._memory is not None:
      line = self._memory[start : start + size]
    else:
      with self.path.open('rb') as file:
        file.seek(start)
        line = file.read(size)
    return where, _parse(line, where)


class _Parquet:
  """Rows of a Parquet file, read by row group."""

  def __init__(self, path: Path):
    import pyarrow.parquet  # slow to import

    try:
      self._file = pyarrow.parquet.ParquetFile(path, memory_map=True)
    except pyarrow.ArrowInvalid as e:
      raise InputError(f'{path} is no Parquet file: {e}') from e
    self.path, self.name = path, _stem(path)
    sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
    self._ends = np.cumsum(sizes)
    self._cached: tuple[int, list[Any]] = (-1, [])

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def row(self, index: int) -> tuple[str, Any]:
    group = int(np.searchsorted(self._ends, index, side='right'))
    number, rows = self._cached
    if number != group:
      rows = self._file.read_row_group(group).to_pylist()
      self._cached = (group, rows)
    return f'{self.path.name}:{index + 1}', rows[index - (int(self._ends[group - 1]) if group else 0)]


class _Tfds:
  """A prepared TFDS data set, read without tensorflow."""

  def __init__(self, spec: str):
    import tensorflow_datasets as tfds  # slow to import

    name, _, split = spec.removeprefix('tfds:').rpartition(':')
    if not name:
      raise InputError(f"'{spec}': give tfds:NAME:SPLIT, such as tfds:my_preferences:train or tfds:/data/preferences/1.0.0:train")
    try:
      builder = tfds.builder_from_directory(name) if Path(name).is_dir() else tfds.builder(name)
      self._rows = builder.as_data_source(split)
    except Exception as e:  # TFDS raises many kinds, all of them about the name, the split or the preparation
      raise InputError(f"'{spec}' cannot be read: {' '.join(str(e).split())[:300]}") from e
    self.name = builder.name

  def __len__(self) -> int:
    return len(self._rows)

  def row(self, index: int) -> tuple[str, Any]:
    row = _plain(self._rows[index])
    talk = row.pop('messages', None)
    if isinstance(talk, Mapping) and talk.get('role'):  # TFDS turns a list of objects into an object of lists
      row['prompt'] = [dict(zip(talk, values, strict=True)) for values in zip(*talk.values(), strict=True)]
    return f'{self.name}:{index + 1}', row


def _plain(value: Any) -> Any:
  """TFDS gives bytes and numpy numbers, and NaN for a number that a row does not have."""
  if isinstance(value, Mapping):
    return {name: plain for name, item in value.items() if (plain := _plain(item)) is not None}
  if isinstance(value, bytes):
    return value.decode()
  if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
    return [_plain(item) for item in value]
  if isinstance(value, (np.generic, np.ndarray)):
    value = value.item()
  return None if isinstance(value, float) and np.isnan(value) else value


def _parse(line: bytes, where: str) -> Any:
  try:
    return json.loads(line.decode('utf-8-sig'))
  except UnicodeDecodeError as e:
    raise BadRecord(f'{where}: byte {e.start}: not UTF-8') from e
  except json.JSONDecodeError as e:
    raise BadRecord(f'{where}: character {e.pos + 1}: malformed JSON: {e.msg}') from e


def _files(pattern: str) -> list[Path]:
  files = sorted(map(Path, glob.glob(pattern))) if glob.has_magic(pattern) else [Path(pattern)]
  if not files:
    raise InputError(f'{pattern} matches no file')
  for file in files:
    if not file.is_file():
      raise InputError(f'{file} does not exist')
    if not file.name.endswith(ENDINGS):
      raise InputError(f'{file} is of no kind that can be read: {", ".join(ENDINGS)}')
  return files


def _open(path: Path) -> BinaryIO:
  return gzip.open(path, 'rb') if path.suffix == '.gz' else path.open('rb')


def _stem(path: Path) -> str:
  return path.name.split('.')[0]
