"""CSV files as Arrow tables, one block at a time.

Columns of texts (`TEXTS`) stay texts. Any other column holds numbers if all of its cells are numbers or empty, else texts.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .._printable import printable

if TYPE_CHECKING:
    import pyarrow as pa

# These stay texts even if all of their cells look like numbers.
TEXTS = ("prompt", "chosen", "rejected", "response")

# Bytes in memory at once. A row must fit.
_BLOCK = 16 << 20
_MESSAGE = 300  # characters of Arrow's messages, which may quote the file


def csv_schema(path: str) -> tuple[pa.Schema, int]:
    """Return the columns of a CSV file with their types, and its number of rows. This reads the whole file.

    Raises:
        ValueError: The file is not CSV with a header line, or not UTF-8.
    """
    import pyarrow as pa

    names: list[str] = []
    kinds: list[list[pa.DataType]] = []
    rows = 0
    for batch in _texts(path):
        if not names:
            names = batch.schema.names
            kinds = [[] if name in TEXTS else [pa.int64(), pa.float64()] for name in names]
        rows += batch.num_rows
        for column, candidates in zip(batch.columns, kinds, strict=True):
            while candidates and _numbers(column, candidates[0]) is None:
                candidates.pop(0)
    types = [candidates[0] if candidates else pa.string() for candidates in kinds]
    return pa.schema(list(zip(names, types, strict=True))), rows


def csv_tables(path: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """Read a CSV file as tables with the schema of `csv_schema`.

    Raises:
        ValueError: As from `csv_schema`; the file changed since.
    """
    import pyarrow as pa

    for batch in _texts(path):
        columns = [
            column if pa.types.is_string(field.type) else _numbers(column, field.type)
            for column, field in zip(batch.columns, schema, strict=False)
        ]
        if batch.schema.names != schema.names or any(column is None for column in columns):
            raise ValueError("the file changed while it was read")
        yield pa.Table.from_arrays(columns, schema=schema)


def _texts(path: str) -> Iterator[Any]:
    """Record batches with all columns as texts. At least one, which has no rows if the file has none."""
    import pyarrow as pa

    csv: Any = importlib.import_module("pyarrow.csv")
    # Without threads, so that blocks always end at the same rows.
    reading = csv.ReadOptions(block_size=_BLOCK, use_threads=False)
    parsing = csv.ParseOptions(newlines_in_values=True)
    try:
        with csv.open_csv(path, read_options=reading, parse_options=parsing) as reader:
            names = reader.schema.names
        converting = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        empty = True
        with csv.open_csv(path, reading, parsing, converting) as reader:
            for batch in reader:
                empty = False
                yield batch
        if empty:
            schema = pa.schema([(name, pa.string()) for name in names])
            yield pa.RecordBatch.from_arrays([pa.array([], pa.string()) for _ in names], schema=schema)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        if "straddl" in str(error):  # Arrow's message says to raise the block size
            raise ValueError(f"a row must have at most {_BLOCK} bytes. Is a quote missing?") from None
        raise ValueError(printable(str(error)[:_MESSAGE])[:_MESSAGE]) from None


def _numbers(column: Any, kind: pa.DataType) -> Any:
    """A column of texts as numbers, null where a text is empty; None if some text is not a number of this kind."""
    import pyarrow as pa

    pc: Any = importlib.import_module("pyarrow.compute")  # makes its functions when it is imported
    trimmed = pc.utf8_trim_whitespace(column)
    try:
        return pc.cast(pc.if_else(pc.equal(trimmed, ""), None, trimmed), kind)
    except pa.ArrowException:
        return None
