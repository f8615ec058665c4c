"""Files of pools: each row has a prompt, sampled responses, and their values by a proxy and a gold standard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...data.preferences import RowError
from ...data.sources import read_rows
from ..scores import named, numbers
from ..statistics import Floats

# The columns that may hold the gold values of scored pools.
GOLD_COLUMNS = ("gold_scores", "ratings")


@dataclass(frozen=True)
class Pools:
    """The scores of one proxy for all responses, pool by pool, and their gold values."""

    name: str
    scores: list[Floats]
    gold: list[Floats]


def read(arguments: Iterable[str], gold: str | None = None, split: str = "train") -> list[Pools]:
    """Read scored pools from `FILE` or `NAME=FILE`, one proxy per file.

    Args:
        gold: The column of gold values. By default the one of GOLD_COLUMNS that the rows have.

    Raises:
        OSError: A file does not exist.
        ValueError: A row has no scores or gold values, or they are not finite numbers, or their counts differ (the message
            has the place); a file has no rows; two files have the same name.
    """
    found: dict[str, Pools] = {}
    for name, path in named(list(arguments)):
        if name in found:
            raise ValueError(f"{path}: the name of a proxy must be unique, got {name} twice. Name it with NAME={path}")
        found[name] = Pools(name, *columns(path, ("scores", gold or _gold_column(path, split)), split))
    return list(found.values())


def _gold_column(path: str, split: str) -> str:
    place, row = next(iter(read_rows(path, split)), ("", {}))
    present = [column for column in GOLD_COLUMNS if column in row]
    if len(present) > 1:
        raise ValueError(
            f"{place}: must have one gold column, got {' and '.join(present)}. Choose one with --gold {present[0]} or --gold "
            f"{present[1]}"
        )
    return present[0] if present else GOLD_COLUMNS[-1]


def columns(path: str, names: tuple[str, ...], split: str = "train") -> list[list[Floats]]:
    """Read columns of lists. In each row all lists must have the same length.

    Raises:
        OSError, ValueError: As from `read`.
    """
    found: list[list[Floats]] = [[] for _ in names]
    for place, row in read_rows(path, split):
        try:
            lists = [numbers(row, name) for name in names]
        except RowError as error:
            raise ValueError(f"{place}: {error.message}") from None
        if not lists[0]:
            raise ValueError(f"{place}: {names[0]} must be a non-empty list, got []")
        for name, values, arrays in zip(names, lists, found, strict=True):
            if len(values) != len(lists[0]):
                raise ValueError(
                    f"{place}: {name} must have {len(lists[0])} elements like {names[0]}, got {len(values)}"
                )
            arrays.append(np.array(values))
    if not found[0]:
        raise ValueError(f"{path}: must have at least one row, got none")
    return found
