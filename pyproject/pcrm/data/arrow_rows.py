"""Rows of Arrow tables as Python values.

Columns of JSON texts (the feature `Json` of `datasets`) are decoded, so that a row has the same values as in JSON Lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Any

from .json_values import json_value
from .preferences import RowError

if TYPE_CHECKING:
    import pyarrow as pa

# Arrow values without an equivalent in Python, such as a date after the year 9999 or a struct with a duplicate name.
_NO_VALUE = (ValueError, OverflowError, KeyError)


def rows_of(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any] | RowError]:
    """Return each row of an Arrow table with JSON texts decoded, or what is wrong with the row."""
    try:
        rows: list[Any] = table.to_pylist()
    except _NO_VALUE as error:
        if len(table) == 1:
            return [RowError(f"must have values that Python can represent: {error}")]
        return [row for i in range(len(table)) for row in rows_of(table.slice(i, 1))]
    for name, decode in _decoders(table.schema).items():
        for i, row in enumerate(rows):
            if not isinstance(row, RowError):
                try:
                    row[name] = decode(row[name])
                except RowError as error:
                    rows[i] = RowError(f"{name} {error.message}")
    return rows


def taken(table: pa.Table, indices: list[int]) -> pa.Table:
    """Take rows of an Arrow table by index, in the order of the indices. Indices may repeat."""
    import pyarrow as pa

    # Arrow cannot `take` from views or from types that contain them, but it can slice and concatenate them.
    runs = groupby(enumerate(indices), key=lambda x: x[1] - x[0])
    pieces = [table.slice(run[0][1], len(run)) for run in (list(run) for _, run in runs)]
    return pa.concat_tables([table.slice(0, 0), *pieces]).combine_chunks()


_Decode = Callable[[Any], Any]


def _decoders(fields: Iterable[pa.Field]) -> dict[str, _Decode]:
    """For each field with JSON texts at any depth, by name: a function that decodes them in a Python value of the field."""
    return {field.name: decode for field in fields if (decode := _decoder(field)) is not None}


def _decoder(field: pa.Field) -> _Decode | None:
    import pyarrow as pa

    kind, types = field.type, pa.types
    # pyarrow before version 19 has no JSON type. The metadata of the field then marks its texts as JSON.
    extension = getattr(kind, "extension_name", None) or (field.metadata or {}).get(b"ARROW:extension:name")
    if extension in ("arrow.json", b"arrow.json"):
        decode: _Decode | None = _of_text
    elif types.is_struct(kind):
        decode = _of_struct(_decoders(kind.field(i) for i in range(kind.num_fields)))
    elif types.is_map(kind):
        decode = _of_map(_decoder(kind.key_field), _decoder(kind.item_field))
    elif types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        decode = _decoder(pa.field(field.name, kind.value_type))
    else:
        inside = getattr(kind, "value_field", None)  # the field of the elements, for any type of list
        decode = None if inside is None else _of_list(_decoder(inside))
    return decode and (lambda x: None if x is None else decode(x))


def _of_text(text: str) -> Any:
    return json_value(text.encode())


def _of_struct(inner: dict[str, _Decode]) -> _Decode | None:
    return (lambda x: x | {name: decode(x[name]) for name, decode in inner.items()}) if inner else None


def _of_map(key: _Decode | None, item: _Decode | None) -> _Decode | None:
    if key is None and item is None:
        return None
    return lambda x: [(key(k) if key else k, item(v) if item else v) for k, v in x]


def _of_list(decode: _Decode | None) -> _Decode | None:
    return decode and (lambda x: [decode(v) for v in x])


def casts_exactly(field: pa.Field, wanted: pa.DataType) -> bool:
    """Whether a cast to the wanted type keeps the values of a field: they are numbers, or texts, before and after.

    JSON texts do not count, nor do decimals, which a cast may round differently from Python.
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
        return inside is not None and casts_exactly(inside, wanted.value_type)
    if types.is_floating(wanted):
        return types.is_floating(kind) or types.is_integer(kind)
    if types.is_string(wanted):
        return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return types.is_struct(wanted) and types.is_struct(kind)


def table_fault(table: pa.Table) -> str | None:
    """Why a table contradicts its types, or None if it is valid. Files may hold such tables, and Arrow does not check."""
    import pyarrow as pa

    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        return str(error)
    return None
