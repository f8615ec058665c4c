"""Files of rows, read in order. Only one batch is in memory at a time, however large the file is.

    .jsonl, .jsonl.gz    one object per line; blank lines are ignored
    .json                an array of objects, or the same as .jsonl
    .csv                 a header line, then one row per record; cells are texts or numbers, see `csv_tables`
    .parquet
    a folder             from `save_to_disk` of `datasets`, or any folder that `load_dataset` reads
    anything else        the name of a data set on the hub, which is streamed

A UTF-8 byte order mark at the start of a file is ignored. Errors name the file with the line, or with the row, counted
from 0, if the file has no lines.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .. import _check
from .arrow_rows import table_fault
from .batches import Batch, LineBatch, Row, TableBatch
from .csv_tables import csv_schema, csv_tables
from .json_values import array_elements, is_array
from .preferences import RowError, listed
from .prior_record import PRIOR_KEY, parse_prior_record, prior_record_path

if TYPE_CHECKING:
    import pyarrow as pa

# The endings of files that `open_source` reads.
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")

# A batch is in memory at once. One call of a prior sees one batch, and a killed run loses at most one.
_BATCH_ROWS, _BATCH_BYTES = 4096, 16 << 20
_LOOK_ROWS = 64  # rows between two checks of the size in bytes; divides _BATCH_ROWS
# One row may fill a batch. A longer line means that the file has no line ends.
_LINE_BYTES = _BATCH_BYTES


def open_source(name: str | os.PathLike[str], split: str = "train") -> Source:
    """Open a file, a folder or a data set on the hub as a source of rows.

    Args:
        name: See the module.
        split: The split to read, if the data set has splits. Files have none.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file has another ending, or the folder or data set cannot be read or has no such split. The
            message has the reason.
        ModuleNotFoundError: pyarrow or datasets is not installed: pip install 'pcrm[data]'.
    """
    source = _opened(_check.path("name", name), split)
    source.split = split
    return source


def _opened(name: str, split: str) -> Source:
    if not name:
        raise ValueError("the name of a data set must not be empty, got ''")
    if name.endswith(ENDINGS):
        if not os.path.isfile(name):
            raise FileNotFoundError(
                f"{name}: {'must be a file, got a folder' if os.path.isdir(name) else 'no such file'}"
            )
        if name.endswith(".parquet"):
            return _Parquet(name)
        if name.endswith(".csv"):
            return _Csv(name)
        return _JsonArray(name) if name.endswith(".json") and _has_array(name) else _JsonLines(name)
    if os.path.isfile(name):
        raise ValueError(f"{name}: the file must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    if os.path.isfile(os.path.join(name, "dataset_dict.json")):
        parts = _splits(Path(name, "dataset_dict.json"))
        if split not in parts:
            raise ValueError(f"{name}: split must be one of {listed(parts)}, got {split!r}")
        return _Saved(os.path.join(name, split))
    if os.path.isfile(os.path.join(name, "state.json")):
        return _Saved(name)
    return _Streamed(name, split)


def _has_array(name: str) -> bool:
    with open(name, "rb") as file:
        return is_array(file)


def _splits(file: Path) -> list[str]:
    try:
        parts = json.loads(file.read_text(encoding="utf-8"))["splits"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: must be a JSON object with the key 'splits', got {error!r:.200}") from None
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{file}: splits must be a list of names, got {parts!r:.80}")
    return parts


def read_rows(name: str | os.PathLike[str], split: str = "train") -> Iterator[tuple[str, Row]]:
    """The rows of a source, each with its place: `FILE, line 3` or `FILE, row 2`.

    Raises:
        ValueError: A row is not an object, or the file cannot be read. The message has the place.
    """
    for batch in open_source(name, split).batches():
        for i, row in enumerate(batch.rows()):
            if isinstance(row, RowError):
                raise ValueError(f"{batch.place(i)}: {row.message}")
            yield batch.place(i), row


class Source:
    """Rows in a fixed order.

    Attributes:
        name: The name that was opened.
        split: The split that was asked for. Files have none.
        total: The number of rows, or None if it is unknown.
    """

    split: str = "train"
    total: int | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def identity(self) -> dict[str, Any]:
        """A fingerprint of the data, by which a resumed run notices changed data."""
        raise NotImplementedError

    @property
    def columns(self) -> list[str] | None:
        """The names of the columns, or None if each row has its own keys."""
        return None

    @property
    def prior(self) -> dict[str, Any] | None:
        """How the column `prior` was computed, as `pcrm prior` recorded it, or None without a record.

        Raises:
            ValueError: The record is not a JSON object with the key `prior`.
        """
        file = prior_record_path(self.name)
        return parse_prior_record(file.read_bytes(), str(file)) if file.is_file() else None

    @property
    def fraction(self) -> float | None:
        """Roughly the fraction that has been read, or None if `total` is known."""
        return None

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        """Batches from a position on, which must be 0 or the end of a batch.

        Batches end at the same positions, wherever the first one begins. A slow pass asks for fewer `rows` at a time.
        """
        raise NotImplementedError


class _JsonLines(Source):
    """Positions are lines."""

    unit = "line"
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
                batch = LineBatch(self.name, start, self.unit)
                while some := _some(lines):
                    line += len(some)
                    batch.add(some)
                    if batch.end - batch.start >= (rows or _BATCH_ROWS) or batch.size >= _BATCH_BYTES:
                        yield batch
                        batch = LineBatch(self.name, line, self.unit)
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
                raise ValueError(
                    f"{self.name}, line {number}: a line must have at most {_LINE_BYTES} bytes, got a longer one"
                )
            yield line


class _JsonArray(_JsonLines):
    """Positions are elements of the array."""

    unit = "row"

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        row = 0
        try:
            for line in array_elements(file, _LINE_BYTES):
                yield line
                row += 1
        except ValueError as error:
            raise ValueError(f"{self.name}, row {row}: {error}") from None


def _some(lines: Iterator[bytes]) -> list[bytes]:
    """The next lines: enough to make checking their size cheap, fewer if they are long."""
    some, size = [], 0
    for line in islice(lines, _LOOK_ROWS):
        some.append(line)
        size += len(line)
        if size >= _BATCH_BYTES:
            break
    return some


class _Tables(Source):
    """Positions are rows of Arrow tables."""

    def tables(self, start: int) -> Iterator[tuple[int, pa.Table]]:
        """Yield the tables from the one with the row `start` on, each with the position of its first row.

        That position modulo _LOOK_ROWS must not depend on `start`. Then the batches do not depend on it.
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
                    yield TableBatch(self.name, start, pa.concat_tables(waiting))
                    start, size, waiting = end, 0, []
        if waiting:
            yield TableBatch(self.name, start, pa.concat_tables(waiting))

    def _pieces(self, start: int) -> Iterator[pa.Table]:
        for first, table in self.tables(start):
            if len(set(table.column_names)) < table.num_columns:
                raise ValueError(f"{self.name}: column names must be unique, got {listed(table.column_names)}")
            for row in range(first, first + table.num_rows, _LOOK_ROWS):
                piece = table.slice(row - first, _LOOK_ROWS)
                if (fault := table_fault(piece)) is not None:
                    raise ValueError(f"{self.name}, after row {row}: {fault}")
                yield piece.slice(max(0, start - row))


class _TableFile(_Tables):
    """A file whose columns are known before its rows are read."""

    _schema: pa.Schema

    @property
    def identity(self) -> dict[str, Any]:
        return _file_identity(self.name)

    @property
    def columns(self) -> list[str] | None:
        return self._schema.names


class _Parquet(_TableFile):
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
    def prior(self) -> dict[str, Any] | None:
        text = (self._schema.metadata or {}).get(PRIOR_KEY)
        return None if text is None else parse_prior_record(text, f"{self.name}: the metadata {PRIOR_KEY.decode()}")

    def tables(self, start: int) -> Iterator[tuple[int, pa.Table]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        row = 0
        with pq.ParquetFile(self.name) as file:
            for group in range(file.num_row_groups):
                size = self._metadata.row_group(group).num_rows
                if row + size > start:
                    try:
                        # Few at a time, because their size is unknown until they are unpacked: the file stores a text
                        # that many rows share only once.
                        for batch in file.iter_batches(_LOOK_ROWS, row_groups=[group]):
                            yield row, pa.Table.from_batches([batch])
                            row += batch.num_rows
                    except (pa.ArrowException, OSError) as error:
                        raise ValueError(f"{self.name}, after row {row}: {error}") from None
                else:
                    row += size


class _Csv(_TableFile):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        try:
            self._schema, self.total = csv_schema(name)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def tables(self, start: int) -> Iterator[tuple[int, pa.Table]]:
        row = 0
        try:
            for table in csv_tables(self.name, self._schema):
                if row + table.num_rows > start:
                    yield row, table
                row += table.num_rows
        except ValueError as error:
            raise ValueError(f"{self.name}, after row {row}: {error}") from None


class _Saved(_Tables):
    """A folder from `save_to_disk`."""

    def __init__(self, name: str) -> None:
        from datasets import Dataset, load_from_disk

        super().__init__(name)
        try:
            data = load_from_disk(name)
        except Exception as error:  # a missing or damaged file raises many types of errors
            raise ValueError(f"{name}: must be a folder from `save_to_disk` of datasets: {error}") from error
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
    """A data set on the hub, or in a folder that `load_dataset` reads."""

    def __init__(self, name: str, split: str) -> None:
        from datasets import IterableDataset, load_dataset

        super().__init__(name)
        self._commit: str | None = None
        try:
            if not os.path.isdir(name):
                from huggingface_hub import HfApi

                self._commit = HfApi().dataset_info(name).sha
            data = load_dataset(name, split=split, streaming=True, revision=self._commit)
        # The hub's client, connections and formats raise many types of errors.
        except Exception as error:
            where = (
                "not a folder of data files"
                if os.path.isdir(name)
                else "not a local file or folder, nor readable from the hub"
            )
            raise ValueError(f"{name}: {where}: {error}") from error
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


def _file_identity(path: str) -> dict[str, Any]:
    status = os.stat(path)
    return {"path": os.path.abspath(path), "size": status.st_size, "modified": status.st_mtime_ns}


def _folder_identity(folder: str) -> dict[str, Any]:
    files = [_file_identity(str(p)) for p in sorted(Path(folder).rglob("*")) if p.is_file()]
    return {"path": os.path.abspath(folder), "files": hashlib.sha256(json.dumps(files).encode()).hexdigest()}
