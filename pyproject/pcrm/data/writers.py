"""Rows of a batch with more columns, as JSON Lines or as an Arrow table.

JSON Lines keep every line as it is and append keys. Tables keep their columns and types.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrow_rows import rows_of, taken
from .batches import Batch, LineBatch, TableBatch
from .preferences import RowError

if TYPE_CHECKING:
    import pyarrow as pa

# Columns by name: a NumPy array of floats, or a list with a value for each row. A value consists of such arrays, their
# elements, texts, lists and dicts.
Columns = Mapping[str, Any]


def to_json_lines(batch: Batch, kept: list[int], columns: Columns) -> bytes:
    """Return the rows `kept` of a batch with more columns as JSON Lines.

    Raises:
        ValueError: A value cannot be written as JSON. The message has the place of the row.
    """
    if isinstance(batch, LineBatch):
        # Inserted into the line, so that everything else keeps its digits, escapes and order. A line is a non-empty
        # object, so a comma may precede its closing brace.
        added = [[f", {json.dumps(name)}: {x}" for x in _shortest(column)] for name, column in columns.items()]
        return b"".join(
            [batch.lines[i][:-1] + "".join(xs).encode() + b"}\n" for i, *xs in zip(kept, *added, strict=True)]
        )
    lines = []
    rows = rows_of(_kept_table(batch, kept))
    for i, row, *xs in zip(kept, rows, *map(_shortest, columns.values()), strict=True):
        try:
            if isinstance(row, RowError):
                raise row
            row |= {name: json.loads(x) for name, x in zip(columns, xs, strict=True)}
            lines.append(json.dumps(row, ensure_ascii=False, default=_exact_float).encode() + b"\n")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{batch.place(i)}: must have values that JSON can represent: {error}") from None
    return b"".join(lines)


def to_table(batch: Batch, kept: list[int], columns: Columns) -> pa.Table:
    """Return the rows `kept` of a batch with more columns as an Arrow table.

    Raises:
        ValueError: The values of a column have no common type, or are not valid Unicode.
    """
    import pyarrow as pa

    table = _lines_to_table(batch, kept) if isinstance(batch, LineBatch) else _kept_table(batch, kept)
    for name, column in columns.items():
        table = table.append_column(name, pa.array(column))
    return table


def _lines_to_table(batch: LineBatch, kept: list[int]) -> pa.Table:
    import pyarrow as pa

    parsed = batch.rows()
    rows: list[Any] = [parsed[i] for i in kept]
    table = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        try:
            key.encode()
            table[key] = pa.array([row.get(key) for row in rows])
        except UnicodeEncodeError as error:
            raise ValueError(f"{batch.name}: column {key!r:.80} must be valid Unicode: {error}") from None
        except (pa.ArrowException, OverflowError) as error:
            raise ValueError(f"{batch.name}: column {key!r:.80} must have values of one type: {error}") from None
    return pa.table(table)


def _kept_table(batch: TableBatch, kept: list[int]) -> pa.Table:
    return batch.arrow if len(kept) == len(batch) else taken(batch.arrow, kept)


def _exact_float(value: Any) -> float:
    """A decimal as a float with exactly the same digits, for `json.dumps`. An error if there is none."""
    if isinstance(value, Decimal) and Decimal(repr(number := float(value))) == value:
        return number
    raise TypeError(f"{value!r:.80} is not a JSON value")


def _shortest(column: Any) -> list[str]:
    """A column as JSON, with the fewest digits that give the same number in its own precision."""
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
