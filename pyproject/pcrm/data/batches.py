"""Batches of rows: the part of a source that is in memory at once, with the place of each row for messages."""

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
    """Consecutive rows of a source, at the positions [start, end)."""

    unit: str  # what `number` counts: "line" or "row"

    def __init__(self, name: str, start: int, end: int) -> None:
        self.name, self.start, self.end = name, start, end

    def __len__(self) -> int:
        raise NotImplementedError

    def number(self, i: int) -> int:
        """The place of row i in the source, counted in `unit`."""
        raise NotImplementedError

    def place(self, i: int) -> str:
        """The place of row i, for a message."""
        return f"{self.name}, {self.unit} {self.number(i)}"

    def rows(self, columns: Iterable[str] | None = None) -> list[Row | RowError]:
        """Each row, or what is wrong with it. `columns` names the columns that are needed."""
        raise NotImplementedError

    def original(self, i: int) -> Any:
        """Row i as it was read, to report it."""
        raise NotImplementedError

    def table(self, schema: pa.Schema) -> pa.Table | None:
        """A table of only these columns, with these types, and null where a row lacks a column. Much faster than `rows`.

        None if some row is bad or does not fit the types; `rows` then says which row.
        """
        raise NotImplementedError


class LineBatch(_AnyBatch):
    """Lines of JSON, each with an object. Positions count lines; empty lines are not rows.

    Args:
        unit: "line" for the lines of a file, which messages count from 1. "row" for the elements of a JSON array, which
            they count from 0.
    """

    def __init__(self, name: str, start: int, unit: str = "line") -> None:
        super().__init__(name, start, start)
        self.unit = unit
        self.lines: list[bytes] = []
        self.numbers: list[int] = []
        self.size = 0  # bytes, including empty lines

    def add(self, lines: list[bytes]) -> None:
        """Add the next lines."""
        for number, line in enumerate(lines, self.end + (self.unit == "line")):
            if line := line.strip():
                self.lines.append(line)
                self.numbers.append(number)
        self.size += sum(map(len, lines))
        self.end += len(lines)

    def replaced(self, lines: list[bytes], rows: list[int]) -> LineBatch:
        """Return a batch with new lines in place of these. `rows[i]` is the index of the row that line i was made from."""
        batch = LineBatch(self.name, self.start, self.unit)
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
                # One block: a row must not cross into a second one.
                pyarrow.json.ReadOptions(use_threads=False, block_size=len(text) + 1),
                pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
        except pa.ArrowException:
            return None
        # pyarrow reads `{}{}` as two rows, and accepts texts that are not UTF-8.
        return table if len(table) == len(self) and table_fault(table) is None else None


class TableBatch(_AnyBatch):
    """Rows of an Arrow table."""

    unit = "row"

    def __init__(self, name: str, start: int, table: pa.Table) -> None:
        super().__init__(name, start, start + table.num_rows)
        self.arrow = table
        self.numbers: Sequence[int] = range(start, self.end)

    def replaced(self, table: pa.Table, rows: list[int]) -> TableBatch:
        """Return a batch with the rows of a table in place of these. `rows[i]` is the index of the row that row i was made from."""
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
