"""Files of rows, read in order with as much memory as a batch takes, whatever their size.

    .jsonl, .jsonl.gz    an object a line; lines of white space count as none
    .parquet
    a folder             of `datasets`' save_to_disk; another one as `load_dataset` reads it
    anything else        the name of a data set on the hub, streamed

A UTF-8 byte order mark at the start of a file is ignored. Arrow columns of JSON texts, the feature
`Json` of `datasets`, have the values of these texts, as the same rows have in JSON Lines. Errors name the file with the line, or the row from 0 where a file has no lines.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .preferences import RowError, listed

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
# By their names: a NumPy array of floats, or a list of a value for each row, which is made of
# such arrays, their elements, texts, lists and dicts.
Columns = Mapping[str, Any]

# A batch is what is in memory at once, what one call of a prior sees, and what a kill loses.
_BATCH_ROWS, _BATCH_BYTES = 4096, 16 << 20
_LOOK_ROWS = 64  # between two looks at the bytes; divides _BATCH_ROWS
# One row may fill a batch alone. What is longer is no row but a file without line ends.
_LINE_BYTES = _BATCH_BYTES
# JSON and Arrow know no limit, and Python's is where the stack happens to be. Rows of messages
# with tool calls have 10.
_DEPTH = 64
# Where Parquet has how its column `prior` was computed; `prior_record` is for all else.
PRIOR_KEY = b"pcrm.prior"
# What Python's values cannot hold of Arrow's: a date past the year 9999, a struct with a name twice.
_NO_VALUE = (ValueError, OverflowError, KeyError)


def open_source(name: str | os.PathLike[str], split: str = "train") -> Source:
    """What reads the rows of a file, a folder or a data set of the hub.

    Args:
        name: See the module.
        split: Which part of a data set that has parts; files have none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file's name has another ending; a folder or data set that cannot be
            read, with the reason, or that has no such split.
        ModuleNotFoundError: there is no pyarrow or datasets: pip install 'pcrm[data]'.
    """
    name = os.fspath(name)
    if name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        if not os.path.isfile(name):
            raise FileNotFoundError(f"{name}: no such file")
        return _Parquet(name) if name.endswith(".parquet") else _JsonLines(name)
    if os.path.isfile(name):
        raise ValueError(f"{name}: must end in .jsonl, .jsonl.gz or .parquet")
    if os.path.isfile(os.path.join(name, "dataset_dict.json")):
        parts = _splits(Path(name, "dataset_dict.json"))
        if split not in parts:
            raise ValueError(f"{name}: has no split {split!r}, its splits are {listed(parts)}")
        return _Saved(os.path.join(name, split))
    if os.path.isfile(os.path.join(name, "state.json")):
        return _Saved(name)
    return _Streamed(name, split)


def _splits(file: Path) -> list[str]:
    try:
        parts = json.loads(file.read_text())["splits"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: names no splits: {error!r:.200}") from None
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{file}: splits is {parts!r:.80}, must be a list of names")
    return parts


def read_rows(name: str | os.PathLike[str], split: str = "train") -> Iterator[tuple[str, Row]]:
    """The rows of a source, each with its place: `FILE, line 3` or `FILE, row 2`.

    Raises:
        ValueError: a row that is no object, or a file that cannot be read, with its place.
    """
    for batch in open_source(name, split).batches():
        for i, row in enumerate(batch.rows()):
            if isinstance(row, RowError):
                raise ValueError(f"{batch.place(i)}: {row.message}")
            yield batch.place(i), row


class Source:
    """Rows in a fixed order. `total` is their number, None where that is not known."""

    total: int | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def identity(self) -> dict[str, Any]:
        """What tells that it is the same data as before."""
        raise NotImplementedError

    @property
    def columns(self) -> list[str] | None:
        """The names of the columns; None where each row has its own."""
        return None

    @property
    def prior(self) -> dict[str, Any] | None:
        """How the column `prior` was computed, as `pcrm prior` recorded it; None where nothing is recorded.

        Raises:
            ValueError: There is a record, and it is not a JSON object with a key `prior`.
        """
        file = prior_record(self.name)
        return _record(file.read_bytes(), str(file)) if file.is_file() else None

    @property
    def fraction(self) -> float | None:
        """How much of it has been read, about; None where `total` tells."""
        return None

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        """Batches from a position on: 0, or where a batch ended. They end at the same positions
        wherever the first begins. A pass that is slow takes fewer `rows` at a time than others.
        """
        raise NotImplementedError


def prior_record(data: str | os.PathLike[str]) -> Path:
    """The file beside a file or folder of rows that says how their column `prior` was computed.

    It is hidden, as `load_dataset` reads every other file of a folder as data.
    """
    path = Path(data)
    return path.parent / f".{path.name}.prior.json"


def _record(text: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        record = text
    if not isinstance(record, dict) or not isinstance(record.get("prior"), str):
        raise ValueError(f"{where} must be a JSON object with a key 'prior', got {record!r:.80}")
    return record


class Batch:
    """Rows in a row, those of the positions [start, end)."""

    def __init__(self, name: str, start: int, end: int) -> None:
        self.name, self.start, self.end = name, start, end

    def __len__(self) -> int:
        raise NotImplementedError

    def place(self, i: int) -> str:
        """Where row i is, for a message."""
        raise NotImplementedError

    def rows(self, columns: Iterable[str] | None = None) -> list[Row | RowError]:
        """Each row, or what is wrong with it. `columns` are those that are needed."""
        raise NotImplementedError

    def original(self, i: int) -> Any:
        """Row i as it was read, for a report on it."""
        raise NotImplementedError

    def table(self, schema: pa.Schema) -> pa.Table | None:
        """These columns alone, of these types, null where a row has none: much faster than `rows`.

        None where a row does not fit, or is none: `rows` says which.
        """
        raise NotImplementedError

    def to_json_lines(self, kept: list[int], columns: Columns) -> bytes:
        """The rows `kept` with more columns as JSON Lines."""
        raise NotImplementedError

    def to_table(self, kept: list[int], columns: Columns) -> pa.Table:
        """The same as an Arrow table."""
        raise NotImplementedError


class _JsonLines(Source):
    """Positions are lines."""

    _file: BinaryIO | None = None

    @property
    def identity(self) -> dict[str, Any]:
        return _file_identity(self.name)

    @property
    def fraction(self) -> float | None:
        if self._file is None or self._file.closed or not (size := os.path.getsize(self.name)):
            return None
        return self._file.tell() / size

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        line = 0
        with open(self.name, "rb") as self._file:
            file: Any = gzip.GzipFile(fileobj=self._file) if self.name.endswith(".gz") else self._file
            lines = self._lines(file)
            try:
                for _ in islice(lines, start):
                    line += 1
                batch = _Lines(self.name, start)
                while some := _some(lines):
                    line += len(some)
                    batch.add(some)
                    if batch.full(rows or _BATCH_ROWS):
                        yield batch
                        batch = _Lines(self.name, line)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ValueError(f"{self.name}, after line {line}: {error}") from None
            if batch.end > batch.start:
                yield batch

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        number = 0
        while line := file.readline(_LINE_BYTES + 1):
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if len(line) > _LINE_BYTES:
                raise ValueError(f"{self.name}, line {number}: is longer than {_LINE_BYTES} bytes")
            yield line


def _some(lines: Iterator[bytes]) -> list[bytes]:
    """The next lines: so many that a look at their bytes costs nothing, fewer where they are long."""
    some, size = [], 0
    for line in islice(lines, _LOOK_ROWS):
        some.append(line)
        size += len(line)
        if size >= _BATCH_BYTES:
            break
    return some


class _Lines(Batch):
    def __init__(self, name: str, start: int) -> None:
        super().__init__(name, start, start)
        self.lines: list[bytes] = []
        self.numbers: list[int] = []  # from 1
        self.size = 0

    def add(self, lines: list[bytes]) -> None:
        for number, line in enumerate(lines, self.end + 1):
            if line := line.strip():
                self.lines.append(line)
                self.numbers.append(number)
        self.size += sum(map(len, lines))
        self.end += len(lines)

    def full(self, rows: int) -> bool:
        return self.end - self.start >= rows or self.size >= _BATCH_BYTES

    def __len__(self) -> int:
        return len(self.lines)

    def place(self, i: int) -> str:
        return f"{self.name}, line {self.numbers[i]}"

    def rows(self, columns: Iterable[str] | None = None) -> list[Row | RowError]:
        return self._rows

    @cached_property
    def _rows(self) -> list[Row | RowError]:
        return list(map(_parsed, self.lines))

    def original(self, i: int) -> Any:
        return self.lines[i].decode(errors="backslashreplace")

    def table(self, schema: pa.Schema) -> pa.Table | None:
        import pyarrow as pa
        import pyarrow.json

        text = b"\n".join(self.lines)
        try:
            table = pyarrow.json.read_json(
                pa.BufferReader(text),
                # One block, or a row might lie across two.
                pyarrow.json.ReadOptions(use_threads=False, block_size=len(text) + 1),
                pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
        except pa.ArrowException:
            return None
        # It reads `{}{}` as two rows, and takes texts that are no UTF-8.
        return table if len(table) == len(self) and _fault(table) is None else None

    def to_json_lines(self, kept: list[int], columns: Columns) -> bytes:
        # Put into the line as it is: all else keeps its digits, escapes and order. A line is
        # an object that is not empty, so it ends with a brace that a comma may stand before.
        added = [[f", {json.dumps(name)}: {x}" for x in _shortest(column)] for name, column in columns.items()]
        return b"".join(
            [self.lines[i][:-1] + "".join(xs).encode() + b"}\n" for i, *xs in zip(kept, *added, strict=True)]
        )

    def to_table(self, kept: list[int], columns: Columns) -> pa.Table:
        import pyarrow as pa

        rows: list[Any] = [self._rows[i] for i in kept]
        table = {}
        for key in dict.fromkeys(key for row in rows for key in row):
            try:
                key.encode()
                table[key] = pa.array([row.get(key) for row in rows])
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{self.name}: column {key!r:.80} has texts that are no valid Unicode: {error}"
                ) from None
            except (pa.ArrowException, OverflowError) as error:
                raise ValueError(f"{self.name}: column {key!r:.80} has values of no one type: {error}") from None
        return pa.table(table | {name: pa.array(column) for name, column in columns.items()})


def _parsed(line: bytes) -> Row | RowError:
    try:
        row = _loaded(line)
    except RowError as error:
        return error
    if not isinstance(row, dict) or not row:
        return RowError(f"is {row!r:.80}, must be an object with keys")
    return row


def _loaded(text: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        RowError: The text is not JSON, or nested more than `_DEPTH` deep.
    """
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise RowError(f"is not JSON: {error}") from None
    if text.count(b"[") + text.count(b"{") > _DEPTH and _is_deep(value):
        raise RowError(f"has lists and objects in each other more than {_DEPTH} deep")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEPTH):
        level = [v for v in level if isinstance(v, (dict, list))]
        level = [x for v in level for x in (v.values() if isinstance(v, dict) else v)]
    return any(isinstance(v, (dict, list)) for v in level)


def _fault(table: pa.Table) -> str | None:
    """Why a table is not what its types say, which files may hold and Arrow does not look for."""
    import pyarrow as pa

    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        return str(error)
    return None


class _Tables(Source):
    """Positions are rows of Arrow tables."""

    def tables(self, start: int) -> Iterator[tuple[int, pa.Table]]:
        """The tables from that on which has the row `start`, and where each begins.

        The latter modulo _LOOK_ROWS must not depend on `start`, nor then do the batches.
        """
        raise NotImplementedError

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        import pyarrow as pa

        waiting: list[pa.Table] = []
        end, size, wanted = start, 0, rows or _BATCH_ROWS
        for piece in self._pieces(start):
            while piece.num_rows:
                part = piece.slice(0, wanted - (end - start))
                piece = piece.slice(part.num_rows)
                waiting.append(part)
                end, size = end + part.num_rows, size + part.nbytes
                if end - start == wanted or size >= _BATCH_BYTES:
                    yield _Rows(self.name, start, pa.concat_tables(waiting))
                    start, size, waiting = end, 0, []
        if waiting:
            yield _Rows(self.name, start, pa.concat_tables(waiting))

    def _pieces(self, start: int) -> Iterator[pa.Table]:
        for first, table in self.tables(start):
            if len(set(table.column_names)) < table.num_columns:
                raise ValueError(f"{self.name}: has two columns of one name: {listed(table.column_names)}")
            for row in range(first, first + table.num_rows, _LOOK_ROWS):
                piece = table.slice(row - first, _LOOK_ROWS)
                if (fault := _fault(piece)) is not None:
                    raise ValueError(f"{self.name}, after row {row}: {fault}")
                yield piece.slice(max(0, start - row))


class _Parquet(_Tables):
    def __init__(self, name: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        super().__init__(name)
        try:
            self._metadata = pq.read_metadata(name)
            self._schema = pq.read_schema(name)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(f"{name}: {error}") from None
        self.total = self._metadata.num_rows

    @property
    def identity(self) -> dict[str, Any]:
        return _file_identity(self.name)

    @property
    def columns(self) -> list[str] | None:
        return self._schema.names

    @property
    def prior(self) -> dict[str, Any] | None:
        text = (self._schema.metadata or {}).get(PRIOR_KEY)
        return None if text is None else _record(text, f"{self.name}: the metadata {PRIOR_KEY.decode()}")

    def tables(self, start: int) -> Iterator[tuple[int, pa.Table]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        row = 0
        with pq.ParquetFile(self.name) as file:
            for group in range(file.num_row_groups):
                size = self._metadata.row_group(group).num_rows
                if row + size > start:
                    try:
                        # Few at a time, as nothing tells their size before they are unpacked: a
                        # text that many rows have stands in the file once.
                        for batch in file.iter_batches(_LOOK_ROWS, row_groups=[group]):
                            yield row, pa.Table.from_batches([batch])
                            row += batch.num_rows
                    except (pa.ArrowException, OSError) as error:
                        raise ValueError(f"{self.name}, after row {row}: {error}") from None
                else:
                    row += size


class _Saved(_Tables):
    """A folder of save_to_disk."""

    def __init__(self, name: str) -> None:
        from datasets import Dataset, load_from_disk

        super().__init__(name)
        try:
            data = load_from_disk(name)
        except Exception as error:  # a file that is missing or damaged fails in as many ways as there are files
            raise ValueError(f"{name}: is no folder of save_to_disk: {error}") from error
        assert isinstance(data, Dataset)
        self._data: Any = data.with_format("arrow")  # whose rows are tables
        self.total = len(data)

    @property
    def identity(self) -> dict[str, Any]:
        return _folder_identity(self.name)

    @property
    def columns(self) -> list[str] | None:
        return self._data.column_names

    def tables(self, start: int) -> Iterator[tuple[int, pa.Table]]:
        for row in range(start - start % _LOOK_ROWS, len(self._data), _BATCH_ROWS):
            yield row, self._data[row : row + _BATCH_ROWS]


class _Streamed(_Tables):
    """A data set of the hub, or of a folder that `load_dataset` understands."""

    def __init__(self, name: str, split: str) -> None:
        from datasets import IterableDataset, load_dataset

        super().__init__(name)
        self._commit: str | None = None
        try:
            if not os.path.isdir(name):
                from huggingface_hub import HfApi

                self._commit = HfApi().dataset_info(name).sha
            data = load_dataset(name, split=split, streaming=True, revision=self._commit)
        # The hub's client, its connections and its formats fail in many ways, each with a reason.
        except Exception as error:
            raise ValueError(f"{name}: is no file, and no data set could be read by that name: {error}") from error
        assert isinstance(data, IterableDataset)
        self._data: Any = data.with_format("arrow")  # whose batches are tables
        parts = data.info.splits or {}
        self.total = parts[split].num_examples or None if split in parts else None

    @property
    def identity(self) -> dict[str, Any]:
        return {"commit": self._commit} if self._commit else _folder_identity(self.name)

    @property
    def columns(self) -> list[str] | None:
        return self._data.column_names or next(iter(self.tables(0)))[1].column_names

    def tables(self, start: int) -> Iterator[tuple[int, pa.Table]]:
        row = start - start % _LOOK_ROWS
        for table in self._data.skip(row).iter(_BATCH_ROWS):
            yield row, table
            row += len(table)


class _Rows(Batch):
    def __init__(self, name: str, start: int, table: pa.Table) -> None:
        super().__init__(name, start, start + table.num_rows)
        self._table = table

    def __len__(self) -> int:
        return self._table.num_rows

    def place(self, i: int) -> str:
        return f"{self.name}, row {self.start + i}"

    def rows(self, columns: Iterable[str] | None = None) -> list[Row | RowError]:
        table = self._table
        if columns is not None:
            table = table.select([name for name in table.column_names if name in set(columns)])
        return rows_of(table)

    def original(self, i: int) -> Any:
        (row,) = rows_of(part := self._table.slice(i, 1))
        return str(part) if isinstance(row, RowError) else row

    def table(self, schema: pa.Schema) -> pa.Table | None:
        import pyarrow as pa

        columns, n = [], self._table.num_rows
        try:
            for field in schema:
                if field.name not in self._table.column_names:
                    columns.append(pa.nulls(n, field.type))
                elif _holds(self._table.schema.field(field.name), field.type):
                    columns.append(self._table[field.name].cast(field.type))
                else:
                    return None
            return pa.table(columns, schema=schema)
        except pa.ArrowException:
            return None

    def to_json_lines(self, kept: list[int], columns: Columns) -> bytes:
        lines = []
        rows = rows_of(self._kept(kept))
        for i, row, *xs in zip(kept, rows, *map(_shortest, columns.values()), strict=True):
            try:
                if isinstance(row, RowError):
                    raise row
                row |= {name: json.loads(x) for name, x in zip(columns, xs, strict=True)}
                lines.append(json.dumps(row, ensure_ascii=False, default=_exact_float).encode() + b"\n")
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self.place(i)}: cannot be written as JSON: {error}") from None
        return b"".join(lines)

    def to_table(self, kept: list[int], columns: Columns) -> pa.Table:
        import pyarrow as pa

        table = self._kept(kept)
        for name, column in columns.items():
            table = table.append_column(name, pa.array(column))
        return table

    def _kept(self, kept: list[int]) -> pa.Table:
        import pyarrow as pa

        if len(kept) == len(self):
            return self._table
        # Arrow cannot `take` from views or from what holds them, but it can slice and concatenate them.
        runs = groupby(enumerate(kept), key=lambda x: x[1] - x[0])
        pieces = [self._table.slice(run[0][1], len(run)) for run in (list(run) for _, run in runs)]
        return pa.concat_tables([self._table.slice(0, 0), *pieces]).combine_chunks()


def rows_of(table: pa.Table | pa.RecordBatch) -> list[Row | RowError]:
    """Each row of an Arrow table, or what is wrong with it. The values of JSON texts stand in their places."""
    try:
        rows: list[Any] = table.to_pylist()
    except _NO_VALUE as error:
        if len(table) == 1:
            return [RowError(f"has a value that Python has not: {error}")]
        return [row for i in range(len(table)) for row in rows_of(table.slice(i, 1))]
    for name, decode in _decoders(table.schema).items():
        for i, row in enumerate(rows):
            if not isinstance(row, RowError):
                try:
                    row[name] = decode(row[name])
                except RowError as error:
                    rows[i] = RowError(f"{name} {error.message}")
    return rows


_Decode = Callable[[Any], Any]


def _decoders(fields: Iterable[pa.Field]) -> dict[str, _Decode]:
    """By the names of the fields that hold JSON texts, at any depth: what turns a Python value of
    the field into one with the values of these texts.
    """
    return {field.name: decode for field in fields if (decode := _decoder(field)) is not None}


def _decoder(field: pa.Field) -> _Decode | None:
    import pyarrow as pa

    kind, types = field.type, pa.types
    # Before version 19 pyarrow has no such type. The field then says of texts that they are JSON.
    extension = getattr(kind, "extension_name", None) or (field.metadata or {}).get(b"ARROW:extension:name")
    if extension in ("arrow.json", b"arrow.json"):
        decode: _Decode | None = _json_value
    elif types.is_struct(kind):
        decode = _of_struct(_decoders(kind.field(i) for i in range(kind.num_fields)))
    elif types.is_map(kind):
        decode = _of_map(_decoder(kind.key_field), _decoder(kind.item_field))
    elif types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        decode = _decoder(pa.field(field.name, kind.value_type))
    else:
        inside = getattr(kind, "value_field", None)  # of the elements of any type of list
        decode = None if inside is None else _of_list(_decoder(inside))
    return decode and (lambda x: None if x is None else decode(x))


def _json_value(text: str) -> Any:
    return _loaded(text.encode())


def _of_struct(inner: dict[str, _Decode]) -> _Decode | None:
    return (lambda x: x | {name: decode(x[name]) for name, decode in inner.items()}) if inner else None


def _of_map(key: _Decode | None, item: _Decode | None) -> _Decode | None:
    if key is None and item is None:
        return None
    return lambda x: [(key(k) if key else k, item(v) if item else v) for k, v in x]


def _of_list(decode: _Decode | None) -> _Decode | None:
    return decode and (lambda x: [decode(v) for v in x])


def _holds(field: pa.Field, wanted: pa.DataType) -> bool:
    """Whether a field's values are of the wanted kind already, a number or a text, so that a cast
    changes their type and not what they are. JSON texts, and decimals, whose digits a cast may
    round otherwise than Python, are not.
    """
    import pyarrow as pa

    kind, types = field.type, pa.types
    if types.is_null(kind):
        return True
    if _decoder(field) is not None:
        return False
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_list(wanted):
        inside = getattr(kind, "value_field", None)
        return inside is not None and _holds(inside, wanted.value_type)
    if types.is_floating(wanted):
        return types.is_floating(kind) or types.is_integer(kind)
    if types.is_string(wanted):
        return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return types.is_struct(wanted) and types.is_struct(kind)


def _exact_float(value: Any) -> float:
    """What `json.dumps` writes for a decimal: the same number as a float, if there is one with these digits."""
    if isinstance(value, Decimal) and Decimal(repr(number := float(value))) == value:
        return number
    raise TypeError(f"{value!r:.80} is not a JSON value")


def _shortest(column: Any) -> list[str]:
    """A column as JSON, with the fewest digits that are the number again in its own precision."""
    if isinstance(column, list):
        return [_shortest_of(value) for value in column]
    return column.astype(str).tolist()


def _shortest_of(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_json(key)}: {_shortest_of(v)}' for key, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_shortest_of, value))}]"
    if isinstance(value, np.ndarray):
        return f"[{', '.join(value.astype(str))}]"
    return str(value) if isinstance(value, np.generic) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _file_identity(path: str) -> dict[str, Any]:
    status = os.stat(path)
    return {"path": os.path.abspath(path), "size": status.st_size, "modified": status.st_mtime_ns}


def _folder_identity(folder: str) -> dict[str, Any]:
    files = [_file_identity(str(p)) for p in sorted(Path(folder).rglob("*")) if p.is_file()]
    return {"path": os.path.abspath(folder), "files": hashlib.sha256(json.dumps(files).encode()).hexdigest()}
