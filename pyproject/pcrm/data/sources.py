"""Files of rows, read in order with as much memory as a batch takes, whatever their size.

    .jsonl, .jsonl.gz    an object a line; lines of white space count as none
    .parquet
    a folder             of `datasets`' save_to_disk; another one as `load_dataset` reads it
    anything else        the name of a data set on the hub, streamed

A UTF-8 byte order mark at the start of a file is ignored. Errors name the file with the line, or the
row from 0 where a file has no lines.
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

from .arrow_rows import table_fault
from .batches import Batch, LineBatch, Row, TableBatch
from .preferences import RowError, listed
from .prior_record import PRIOR_KEY, parse_prior_record, prior_record_path

if TYPE_CHECKING:
    import pyarrow as pa

# A batch is what is in memory at once, what one call of a prior sees, and what a kill loses.
_BATCH_ROWS, _BATCH_BYTES = 4096, 16 << 20
_LOOK_ROWS = 64  # between two looks at the bytes; divides _BATCH_ROWS
# One row may fill a batch alone. What is longer is no row but a file without line ends.
_LINE_BYTES = _BATCH_BYTES


def open_source(name: str | os.PathLike[str], split: str = "train") -> Source:
    """Open a file, a folder or a data set of the hub as a source of rows.

    Args:
        name: See the module.
        split: Which part of a data set that has parts; files have none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file's name has another ending; a folder or data set that cannot be
            read, with the reason, or that has no such split.
        ModuleNotFoundError: there is no pyarrow or datasets: pip install 'pcrm[data]'.
    """
    source = _opened(os.fspath(name), split)
    source.split = split
    return source


def _opened(name: str, split: str) -> Source:
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
        parts = json.loads(file.read_text(encoding="utf-8"))["splits"]
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
    """Rows in a fixed order.

    Attributes:
        name: What was opened.
        split: The part that was asked for; files have none.
        total: The number of rows, None where it is not known.
    """

    split: str = "train"
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
        file = prior_record_path(self.name)
        return parse_prior_record(file.read_bytes(), str(file)) if file.is_file() else None

    @property
    def fraction(self) -> float | None:
        """How much of it has been read, about; None where `total` tells."""
        return None

    def batches(self, start: int = 0, rows: int | None = None) -> Iterator[Batch]:
        """Batches from a position on: 0, or where a batch ended. They end at the same positions
        wherever the first begins. A pass that is slow takes fewer `rows` at a time than others.
        """
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
                batch = LineBatch(self.name, start)
                while some := _some(lines):
                    line += len(some)
                    batch.add(some)
                    if batch.end - batch.start >= (rows or _BATCH_ROWS) or batch.size >= _BATCH_BYTES:
                        yield batch
                        batch = LineBatch(self.name, line)
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
                    yield TableBatch(self.name, start, pa.concat_tables(waiting))
                    start, size, waiting = end, 0, []
        if waiting:
            yield TableBatch(self.name, start, pa.concat_tables(waiting))

    def _pieces(self, start: int) -> Iterator[pa.Table]:
        for first, table in self.tables(start):
            if len(set(table.column_names)) < table.num_columns:
                raise ValueError(f"{self.name}: has two columns of one name: {listed(table.column_names)}")
            for row in range(first, first + table.num_rows, _LOOK_ROWS):
                piece = table.slice(row - first, _LOOK_ROWS)
                if (fault := table_fault(piece)) is not None:
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


def _file_identity(path: str) -> dict[str, Any]:
    status = os.stat(path)
    return {"path": os.path.abspath(path), "size": status.st_size, "modified": status.st_mtime_ns}


def _folder_identity(folder: str) -> dict[str, Any]:
    files = [_file_identity(str(p)) for p in sorted(Path(folder).rglob("*")) if p.is_file()]
    return {"path": os.path.abspath(folder), "files": hashlib.sha256(json.dumps(files).encode()).hexdigest()}
