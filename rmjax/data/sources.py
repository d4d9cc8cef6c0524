"""Files and TFDS data sets as random-access sources of records."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import glob
import gzip
import io
import json
from pathlib import Path
import re
from typing import Any, SupportsIndex
import zlib

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
    self._places = array('q'), array('q')  # table and row of each record
    for table in range(len(tables)):
      for row in range(len(tables[table])):
        try:
          self._record(table, row)
        except BadRecord as e:
          if bad_rows == 'strict':
            raise
          self.bad.append(str(e))
        else:
          self._places[0].append(table)
          self._places[1].append(row)

  def __len__(self) -> int:
    return len(self._places[0])

  def __getitem__(self, index: SupportsIndex) -> Record:
    return self._record(self._places[0][index], self._places[1][index])

  def _record(self, table: int, row: int) -> Record:
    table = self._tables[table]
    return _to_record(*table.row(row), self._columns, table.name)


def open_source(spec: str, *, columns: Mapping[str, str] | None = None, bad_rows: str = 'strict') -> Source:
  """Opens preference data and checks every row of it.

  Args:
    spec: separated by commas: files or patterns (.jsonl, .jsonl.gz, .json.gz, .parquet), directories that TFDS prepared and that have one split,
      'tfds:NAME:SPLIT' with NAME a TFDS data set or such a directory, directories that Hugging Face's `datasets` saved (`save_to_disk`; of a
      DatasetDict, its folder of a split), and directories of a Hugging Face data set as downloaded: all files in `data` or its folders.
    columns: our column -> the data's.
    bad_rows: 'strict' stops at the first row that cannot be used, 'lenient' leaves such rows out and lists them in `bad`.

  Raises:
    BadRecord: a bad row, if strict.
    InputError: a file or data set is missing, damaged or of another kind, or no row can be used.
  """
  if bad_rows not in ('strict', 'lenient'):
    raise InputError(f"data.bad_rows = '{bad_rows}': choose 'strict' or 'lenient'")
  source = Source(open_tables(spec), columns=columns, bad_rows=bad_rows)
  if not len(source):
    raise InputError(f"'{spec}' has no row that can be used: {source.bad[0] if source.bad else 'it is empty'}")
  return source


def open_tables(spec: str) -> list[Any]:
  """The tables that a specification names, each with a `name`, a length, and `row(i)`, which gives ('file:line', row); see `open_source`."""
  return [table for part in split_spec(spec) for table in _open_part(part)]


def rows(path: Path | str) -> Iterator[tuple[str, Mapping[str, Any] | BadRecord]]:
  """('file:line', row, or what is wrong with the line) of one file in its order, holding a few rows at a time.

  Raises:
    InputError: the file is missing, damaged or of another kind.
  """
  path = Path(path)
  _check_file(path)
  if path.suffix == '.parquet':
    with _readable(path):
      batches = _parquet(path).iter_batches(batch_size=256)
      for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), 1):
        yield f'{path.name}:{number}', row
    return
  with _readable(path), gzip.open(path, 'rb') if path.suffix == '.gz' else path.open('rb') as file:
    for number, _, line in _lines(file):
      where = f'{path.name}:{number}'
      try:
        row = _parse(line, where)
      except BadRecord as e:
        row = e
      yield where, row


def stream(path: Path | str, *, columns: Mapping[str, str] | None = None) -> Iterator[tuple[Mapping[str, Any] | None, Record | BadRecord]]:
  """(row, its record or what is wrong with it) of one file, as `rows`; the row is None where the line holds none."""
  for where, row in rows(path):
    if isinstance(row, BadRecord):
      yield None, row
      continue
    try:
      yield row, _to_record(where, row, columns, _stem(Path(path)))
    except BadRecord as e:
      yield row, e


def _to_record(where: str, row: Any, columns: Mapping[str, str] | None, name: str) -> Record:
  if isinstance(row, Mapping) and not row.get('subset'):
    row = {**row, 'subset': name}
  return to_record(row, where=where, columns=columns)


# Tables: a name, a length, and `row(i)`, which gives ('file:line', row).


class _JsonLines:
  """Lines of a file, found by their place in it; a compressed one is held in memory."""

  def __init__(self, path: Path):
    self.path, self.name, self._memory = path, _stem(path), None
    if path.suffix == '.gz':
      with _readable(path):
        self._memory = gzip.decompress(path.read_bytes())
    self._places = array('q'), array('q'), array('q')
    with self._file() as file:
      for number, start, line in _lines(file):
        for places, value in zip(self._places, (number, start, len(line)), strict=True):
          places.append(value)

  def __len__(self) -> int:
    return len(self._places[0])

  def row(self, index: int) -> tuple[str, Any]:
    number, start, size = (places[index] for places in self._places)
    where = f'{self.path.name}:{number}'
    with self._file() as file:
      file.seek(start)
      return where, _parse(file.read(size), where)

  def _file(self) -> io.BufferedIOBase:
    return self.path.open('rb') if self._memory is None else io.BytesIO(self._memory)


class _Columns:
  """Rows of a file, held in memory as Arrow columns: a Parquet row group is too much to decode for each row of a shuffle."""

  def __init__(self, path: Path, name: str, read: Callable[[], Any]):
    self.path, self.name = path, name
    with _readable(path):
      self._table = read()

  def __len__(self) -> int:
    return self._table.num_rows

  def row(self, index: int) -> tuple[str, Any]:
    return f'{self.path.name}:{index + 1}', self._table.slice(index, 1).to_pylist()[0]


class _Tfds:
  """A prepared TFDS data set, read without tensorflow."""

  def __init__(self, name: str, split: str = ''):
    import tensorflow_datasets as tfds  # slow to import

    if Path(name).is_absolute() and not _is_prepared(Path(name)):
      raise InputError(f'{name} is no directory that TFDS prepared: it has no dataset_info.json')
    try:
      builder = tfds.builder_from_directory(name) if _is_prepared(Path(name)) else tfds.builder(name)
    except Exception as e:  # TFDS raises many kinds, all of them about the name
      raise InputError(f"TFDS data set '{name}' cannot be opened: {_one_line(e)}") from e
    splits = list(builder.info.splits)
    if not split and len(splits) != 1:
      raise InputError(f'{name} has the splits {", ".join(splits) or "(none)"}: choose one by tfds:{name}:SPLIT')
    try:
      self._rows = builder.as_data_source(split or splits[0])
    except Exception as e:  # likewise, about the split or the preparation
      raise InputError(f"split '{split}' of TFDS data set '{name}' cannot be read (its splits: {', '.join(splits) or 'none'}): {_one_line(e)}") from e
    self.name, self._features = builder.name, builder.info.features

  def __len__(self) -> int:
    return len(self._rows)

  def row(self, index: int) -> tuple[str, Any]:
    row = self._rows[index]
    own = {'labels': row['labels']} if isinstance(row.get('labels'), Mapping) else {}  # our own builder's: arrays as they are, NaN included
    row = {name: plain for name, value in row.items() if (plain := _plain(value, self._features[name])) is not None}
    messages = row.pop('prompt_messages', None)  # likewise: a column has one type
    return f'{self.name}:{index + 1}', {**row, **own, **({'prompt': messages} if messages else {})}


def _plain(value: Any, feature: Any) -> Any:
  """What JSON would give: TFDS has bytes for text, numpy numbers, an object of lists for a list of objects, and NaN for a number that is not there."""
  if isinstance(value, Mapping):
    if hasattr(feature, 'feature'):  # a sequence of objects
      columns = {name: [_plain(item, feature.feature[name]) for item in items] for name, items in value.items()}
      return [dict(zip(columns, items, strict=True)) for items in zip(*columns.values(), strict=True)]
    return {name: _plain(item, feature[name]) for name, item in value.items()}
  if isinstance(value, bytes):
    return value.decode(errors='surrogateescape')
  if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
    return [_plain(item, getattr(feature, 'feature', None)) for item in value]
  if isinstance(value, (np.generic, np.ndarray)):
    value = value.item()
  return None if isinstance(value, float) and np.isnan(value) else value


# Files.


def split_spec(spec: str) -> list[str]:
  """Parts of a specification; commas inside brackets belong to a pattern or a split."""
  parts = [part.strip() for part in re.split(r',(?![^\[]*\])', spec)]
  if not all(parts):
    raise InputError(f"'{spec}' names no data: give files, patterns or tfds:NAME:SPLIT, separated by commas")
  return parts


def _open_part(part: str) -> Iterable[Any]:
  if part.startswith('tfds:'):
    match = re.fullmatch(r'tfds:(.+):((?:[^:/\[\]]|\[[^\]]*\])+)', part)
    if not match:
      raise InputError(f"'{part}': give tfds:NAME:SPLIT, such as tfds:my_preferences:train or tfds:/data/preferences/1.0.0:train")
    return [_Tfds(match[1], match[2])]
  if (Path(part) / 'state.json').is_file():
    return _saved_by_datasets(Path(part))
  if _is_prepared(Path(part)):
    return [_Tfds(part)]
  if (Path(part) / 'data').is_dir():
    files = sorted(path for path in (Path(part) / 'data').rglob('*') if path.name.endswith(ENDINGS))
    return [_open_file(path) for path in files] or _check_file(Path(part))
  files = sorted(map(Path, glob.glob(part))) if glob.has_magic(part) and not Path(part).exists() else [Path(part)]
  if not files:
    raise InputError(f'{part} matches no file')
  for file in files:
    _check_file(file)
  return [_open_file(file) for file in files]


def _open_file(path: Path) -> Any:
  return _Columns(path, _stem(path), lambda: _parquet(path).read()) if path.suffix == '.parquet' else _JsonLines(path)


def _saved_by_datasets(path: Path) -> list[Any]:
  """Arrow streams that `datasets.Dataset.save_to_disk` wrote, in its order."""
  import pyarrow  # slow to import

  with _readable(path):
    state = json.loads((path / 'state.json').read_text())
    files = [path / item['filename'] for item in state['_data_files']]
  if state.get('_indices_data_files'):
    raise InputError(f'{path} was saved by `datasets` with a selection of its rows on top: save dataset.flatten_indices() instead')
  return [_Columns(file, path.name, lambda file=file: pyarrow.ipc.open_stream(file).read_all()) for file in files]


def _check_file(path: Path) -> None:
  if (path / 'dataset_dict.json').is_file():
    splits = json.loads((path / 'dataset_dict.json').read_text())['splits']
    raise InputError(f'{path} has the splits {", ".join(splits)}: choose one, such as {path}/{splits[0]}')
  if path.is_dir():
    raise InputError(f'{path} is a directory, and not one that TFDS prepared: name its files, as in {path}/*.jsonl')
  if not path.is_file():
    raise InputError(f'{path} does not exist')
  if not path.name.endswith(ENDINGS):
    raise InputError(f'{path} is of no kind that can be read: {", ".join(ENDINGS)}')


def _is_prepared(path: Path) -> bool:
  return (path / 'dataset_info.json').is_file()


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
  """Names the file where a library finds it damaged."""
  try:
    yield
  except (EOFError, OSError, ValueError, zlib.error) as e:
    if isinstance(e, InputError) or getattr(e, 'filename', None):
      raise
    raise InputError(f'{path} is damaged, or not what its name says: {_one_line(e)}') from e


def _parquet(path: Path) -> Any:
  import pyarrow.parquet  # slow to import

  return pyarrow.parquet.ParquetFile(path)  # ArrowInvalid is a ValueError


def _lines(file: io.BufferedIOBase) -> Iterator[tuple[int, int, bytes]]:
  """(number, place in the file, line) of the lines that are not blank."""
  start = 0
  for number, line in enumerate(file, 1):
    if line.strip(b'\xef\xbb\xbf \t\r\n'):
      yield number, start, line
    start += len(line)


def _parse(line: bytes, where: str) -> Any:
  try:
    return json.loads(line.rstrip(b'\r\n').decode('utf-8-sig'))
  except UnicodeDecodeError as e:
    raise BadRecord(f'{where}: byte {e.start + 1}: not UTF-8') from None
  except json.JSONDecodeError as e:
    raise BadRecord(f'{where}: character {e.pos + 1}: malformed JSON: {e.msg}') from None
  except (RecursionError, ValueError) as e:  # nested too deep, or a number of too many digits
    raise BadRecord(f'{where}: JSON that cannot be read: {_one_line(e)}') from None


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split())[:300]


def _stem(path: Path) -> str:
  """The file's name without its ending, nor the number of a shard."""
  ending = next(ending for ending in ENDINGS if path.name.endswith(ending))
  return re.sub(r'-\d{5}-of-\d{5}$', '', path.name.removesuffix(ending))
