"""Batches of rows: what is in memory at once, with the place of each row for messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .arrow_rows import casts_exactly, rows_of, table_fault
from .json_values import json_row
from .preferences import RowError

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]


class _AnyBatch:
    """Consecutive rows of a source, those of the positions [start, end)."""

    unit: str  # what `number` counts

    def __init__(self, name: str, start: int, end: int) -> None:
        self.name, self.start, self.end = name, start, end

    def __len__(self) -> int:
        raise NotImplementedError

    def number(self, i: int) -> int:
        """Where row i is in the source, counted in `unit`."""
        raise NotImplementedError

    def place(self, i: int) -> str:
        """Where row i is, for a message."""
        return f"{self.name}, {self.unit} {self.number(i)}"

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


class LineBatch(_AnyBatch):
    """Lines of a JSON Lines file: positions are lines, and empty ones are no rows."""

    unit = "line"

    def __init__(self, name: str, start: int) -> None:
        super().__init__(name, start, start)
        self.lines: list[bytes] = []
        self.numbers: list[int] = []  # from 1
        self.size = 0  # bytes, with what is no row

    def add(self, lines: list[bytes]) -> None:
        """Add the lines that follow."""
        for number, line in enumerate(lines, self.end + 1):
            if line := line.strip():
                self.lines.append(line)
                self.numbers.append(number)
        self.size += sum(map(len, lines))
        self.end += len(lines)

    def replaced(self, lines: list[bytes], rows: list[int]) -> LineBatch:
        """A batch with other lines in the place of these, each made of the row with an index in `rows`."""
        batch = LineBatch(self.name, self.start)
        batch.end, batch.lines, batch.numbers = self.end, lines, [self.numbers[i] for i in rows]
        return batch

    def __len__(self) -> int:
        return len(self.lines)

    def number(self, i: int) -> int:
        return self.numbers[i]

    def rows(self, columns: Iterable[str] | None = None) -> list[Row | RowError]:
        return self._rows

    @cached_property
    def _rows(self) -> list[Row | RowError]:
        return list(map(json_row, self.lines))

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
        return table if len(table) == len(self) and table_fault(table) is None else None


class TableBatch(_AnyBatch):
    """Rows of an Arrow table."""

    unit = "row"

    def __init__(self, name: str, start: int, table: pa.Table) -> None:
        super().__init__(name, start, start + table.num_rows)
        self.arrow = table
        self.numbers: Sequence[int] = range(start, self.end)

    def replaced(self, table: pa.Table, rows: list[int]) -> TableBatch:
        """A batch with the rows of a table in the place of these, each made of the row with an index in `rows`."""
        batch = TableBatch(self.name, self.start, table)
        batch.end, batch.numbers = self.end, [self.numbers[i] for i in rows]
        return batch

    def __len__(self) -> int:
        return self.arrow.num_rows

    def number(self, i: int) -> int:
        return self.numbers[i]

    def rows(self, columns: Iterable[str] | None = None) -> list[Row | RowError]:
        table = self.arrow
        if columns is not None:
            table = table.select([name for name in table.column_names if name in set(columns)])
        return rows_of(table)

    def original(self, i: int) -> Any:
        (row,) = rows_of(part := self.arrow.slice(i, 1))
        return str(part) if isinstance(row, RowError) else row

    def table(self, schema: pa.Schema) -> pa.Table | None:
        import pyarrow as pa

        columns, n = [], self.arrow.num_rows
        try:
            for field in schema:
                if field.name not in self.arrow.column_names:
                    columns.append(pa.nulls(n, field.type))
                elif casts_exactly(self.arrow.schema.field(field.name), field.type):
                    columns.append(self.arrow[field.name].cast(field.type))
                else:
                    return None
            return pa.table(columns, schema=schema)
        except pa.ArrowException:
            return None


Batch = LineBatch | TableBatch
