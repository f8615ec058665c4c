"""Convert rows of token ids of different lengths to what Go reads: values and offsets.

Ids may be tensors, sequences or Arrow columns. Arrow columns are read without a copy.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any

import torch

from .._engine.native import address

if TYPE_CHECKING:
    import numpy as np

    Column = torch.Tensor | array[int] | np.ndarray

Ids = torch.Tensor | Sequence[Sequence[int]] | Any  # Any is an Arrow column


class Ragged:
    """Rows in Go's format: values and offsets, kept alive together."""

    def __init__(self, values: Column, offsets: Column) -> None:
        self.keep = (values, offsets)
        self.addresses = (*map(address, self.keep), len(values))

    @classmethod
    def of_ids(cls, name: str, ids: Ids) -> Ragged:
        if isinstance(ids, torch.Tensor):
            rows, width = ids.shape
            # Not flatten: it keeps the strides of a single column or row.
            values = ids.detach().to("cpu", torch.int64).contiguous().view(-1)
            return cls(values, torch.arange(rows + 1, device="cpu") * width)
        if is_arrow(ids):
            return cls(*arrow_lists(name, ids))
        try:
            if not all(map(_holds_ids, set(map(type, ids)))):
                raise TypeError("not sequences")
            values = array("q", chain.from_iterable(ids))
        except (TypeError, OverflowError):
            integer_rows(name, ids)
            raise
        return cls(values, array("q", accumulate(map(len, ids), initial=0)))


def integer_rows(name: str, ids: Ids) -> Sequence[Sequence[int]]:
    """Return the rows as integers. An error names the first row that holds anything else."""
    if isinstance(ids, torch.Tensor):
        return ids.tolist()
    if is_arrow(ids):
        values, offsets = (x.tolist() for x in arrow_lists(name, ids))
        return [values[start:end] for start, end in pairwise(offsets)]
    rows = []
    for i, row in enumerate(ids):
        try:
            if not _holds_ids(type(row)):
                raise TypeError(f"got {type(row).__name__}")
            rows.append(array("q", row))
        except TypeError as error:
            raise TypeError(f"{name}[{i}] must be a sequence of integers: {error}") from None
        except OverflowError:
            raise _out_of_range(name, i) from None
    return rows


def _out_of_range(name: str, row: int) -> ValueError:
    return ValueError(f"{name}[{row}] must hold ids in [-2**63, 2**63), got one outside")


def _holds_ids(kind: type) -> bool:
    """Whether rows of this type may hold ids. Bytes and mappings are sequences or iterables, but hold no ids."""
    return hasattr(kind, "__getitem__") and not issubclass(kind, (Mapping, str, bytes, bytearray))


def is_arrow(ids: Ids) -> bool:
    """Whether the ids are a column of pyarrow, polars or another library with Arrow's interface."""
    return hasattr(ids, "__arrow_c_array__") or hasattr(ids, "__arrow_c_stream__")


def arrow_lists(name: str, ids: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the values and offsets of an Arrow column of ids as int64, without a copy if they already are."""
    import numpy as np
    import pyarrow
    import pyarrow.compute

    column = pyarrow.chunked_array(ids if hasattr(ids, "__arrow_c_stream__") else [pyarrow.array(ids)])
    kind, types = column.type, pyarrow.types
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not lists or not types.is_integer(kind.value_type):
        raise TypeError(f"{name} must be a list of integers, got the Arrow type {kind}")
    if column.null_count:
        raise TypeError(f"{name}[{pyarrow.compute.index(column.is_null(), True)}] must be a list of ids, got null")
    parts = [chunk.flatten() for chunk in column.chunks]
    if any(part.null_count for part in parts):
        row = next(i for i, x in enumerate(column) if x.values.null_count)
        raise TypeError(f"{name}[{row}] must be a sequence of integers: got a null in it")
    arrays = [part.to_numpy() for part in parts] or [np.empty(0, np.int64)]
    values = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    offsets = np.zeros(len(column) + 1, np.int64)
    np.cumsum(pyarrow.compute.call_function("list_value_length", [column]), out=offsets[1:])
    if values.dtype == np.uint64 and (over := values >= 2**63).any():
        raise _out_of_range(name, int(np.searchsorted(offsets, over.argmax(), "right")) - 1)
    return values.astype(np.int64, copy=False), offsets
