"""Files of pools: rows of a prompt, its sampled responses, and what a proxy and a gold standard say of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...data.preferences import RowError
from ...data.sources import read_rows
from ..scores import named, numbers
from ..statistics import Floats

# Where the gold values of a file of scored pools may be.
GOLD_COLUMNS = ("gold_scores", "ratings")


@dataclass(frozen=True)
class Pools:
    """The scores of one proxy for all responses, pool by pool, and their gold values."""

    name: str
    scores: list[Floats]
    gold: list[Floats]


def read(arguments: Iterable[str], gold: str | None = None, split: str = "train") -> list[Pools]:
    """Scored pools from `FILE` or `NAME=FILE`, each of one proxy.

    Args:
        gold: The column of gold values; by default the one of GOLD_COLUMNS that the rows have.

    Raises:
        OSError: there is no such file.
        ValueError: a row without scores or gold values, or with others than finite numbers, or
            not as many of both, with its place; a file without rows; two of one name.
    """
    found: dict[str, Pools] = {}
    for name, path in named(list(arguments)):
        if name in found:
            raise ValueError(f"{path}: there is a proxy {name} already: name it, NAME={path}")
        found[name] = Pools(name, *columns(path, ("scores", gold or _gold_column(path, split)), split))
    return list(found.values())


def _gold_column(path: str, split: str) -> str:
    place, row = next(iter(read_rows(path, split)), ("", {}))
    present = [column for column in GOLD_COLUMNS if column in row]
    if len(present) > 1:
        raise ValueError(f"{place}: has {' and '.join(present)}: say which one is gold")
    return present[0] if present else GOLD_COLUMNS[-1]


def columns(path: str, names: tuple[str, ...], split: str = "train") -> list[list[Floats]]:
    """These columns of a file, each a list of arrays, in every row as long as each other.

    Raises:
        OSError, ValueError: as `read`.
    """
    found: list[list[Floats]] = [[] for _ in names]
    for place, row in read_rows(path, split):
        try:
            lists = [numbers(row, name) for name in names]
        except RowError as error:
            raise ValueError(f"{place}: {error.message}") from None
        if not lists[0]:
            raise ValueError(f"{place}: {names[0]} is empty")
        for name, values, arrays in zip(names, lists, found, strict=True):
            if len(values) != len(lists[0]):
                raise ValueError(f"{place}: {name} has {len(values)} elements, {names[0]} has {len(lists[0])}")
            arrays.append(np.array(values))
    if not found[0]:
        raise ValueError(f"{path}: holds no rows")
    return found
