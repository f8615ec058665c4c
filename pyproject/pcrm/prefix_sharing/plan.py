"""Pack the rows of a batch into trees, in which shared beginnings occur once.

Go's package `pcrm/prefix` computes and documents the plan. `_by_python` computes the same plan if the extension is not
installed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .. import _check
from .._engine.native import call, chosen_library

Tensor = torch.Tensor


class Packed(NamedTuple):
    """A packed batch: R packed rows of W tokens for N rows of L tokens."""

    ids: Tensor
    """Token ids, int64, shape (R, W); 0 where there is no token."""
    positions: Tensor
    """Position of each token in its original row, int64, shape (R, W)."""
    ends: Tensor
    """Token q of a packed row attends to token k if and only if k <= q < ends[k]; int64, shape (R, W)."""
    gather: Tensor
    """Index of each token of the batch in the flattened `ids`, int64, shape (N, L). Padding has the index of its row's last
    token."""


def pack(ids: Tensor, lengths: Tensor, *, min_shared: int = 1, budget: int = 0) -> Packed:
    """Pack a batch so that tokens in common prefixes are computed once.

    Args:
        ids: Token ids, padded on the right, shape (N, L), on any device.
        lengths: Number of tokens of each row, from 1 to L, shape (N,).
        min_shared: Rows with a shorter common prefix are not shared. Equal rows, and rows that are a prefix of others, are
            always shared.
        budget: Maximum number of tokens of a tree, 0 for no limit. Beyond it a new tree starts, which repeats the prefix
            that its rows share with earlier ones.

    Returns:
        The packed batch, on the device of `ids`.

    Raises:
        TypeError, ValueError: `ids` is not an integer tensor of shape (N, L) with N > 0; a length is out of range (the
            message names its index); or an option is negative or not an integer.
    """
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        got = tuple(ids.shape) if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"ids must be token ids of shape (N, L), got {got}")
    if lengths.shape != ids.shape[:1]:
        raise ValueError(f"lengths must have shape {tuple(ids.shape[:1])}, got {tuple(lengths.shape)}")
    min_shared, budget = _check.integer("min_shared", min_shared), _check.integer("budget", budget)
    device = ids.device
    ids = ids.to("cpu", torch.int64).contiguous()
    lengths = lengths.to("cpu", torch.int64).contiguous()
    for i in ((lengths < 1) | (lengths > ids.shape[1])).nonzero()[:1, 0].tolist():
        raise ValueError(f"lengths[{i}] must be in [1, {ids.shape[1]}], got {lengths[i].item()}")
    native = chosen_library()
    packed = (
        _by_go(native, ids, lengths, min_shared, budget) if native else _by_python(ids, lengths, min_shared, budget)
    )
    return Packed(*(x.to(device) for x in packed))


def _by_go(native: Any, ids: Tensor, lengths: Tensor, min_shared: int, budget: int) -> Packed:
    rows, width = ids.shape
    plan = torch.empty(3, rows, dtype=torch.int64)
    shape = torch.empty(2, dtype=torch.int64)
    places = [x.data_ptr() for x in plan]
    inputs = (ids.data_ptr(), lengths.data_ptr())
    call(native.bridge_PrefixArrange, rows, width, shape.data_ptr(), *places, *inputs, min_shared, budget)
    size: list[int] = shape.tolist()
    out = torch.empty(3, *size, dtype=torch.int64)
    gather = torch.empty_like(ids)
    outputs = (*(x.data_ptr() for x in out), gather.data_ptr())
    call(native.bridge_PrefixPack, rows, width, *size, *outputs, *places, *inputs)
    packed, positions, ends = out.unbind()
    return Packed(packed, positions, ends, gather)


def _by_python(ids: Tensor, lengths: Tensor, min_shared: int, budget: int) -> Packed:
    rows = [row[:length] for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)]
    order = sorted(range(len(rows)), key=lambda r: (rows[r], r))
    trees: list[list[tuple[int, int]]] = []  # the rows of each tree, and how many tokens they share with the row before
    sizes: list[int] = []
    for i, r in enumerate(order):
        before = rows[order[i - 1]] if i else []
        shared = _common(before, rows[r])
        added = len(rows[r]) - shared
        joins = i > 0 and (not added or shared == len(before) or shared >= max(min_shared, 1))
        if joins and (not added or not budget or sizes[-1] + added <= budget):
            trees[-1].append((r, shared))
            sizes[-1] += added
        else:
            trees.append([(r, 0)])
            sizes.append(len(rows[r]))
    starts, shape = _placed(sizes)
    packed, positions = torch.zeros(2, shape[0] * shape[1], dtype=torch.int64)
    ends = torch.arange(1, shape[1] + 1).repeat(shape[0])
    gather = torch.empty_like(ids)
    for tree, at in zip(trees, starts, strict=True):
        path: list[int] = []  # indices of the tokens of the row before
        for r, shared in tree:
            ends[path[shared:]] = (at - 1) % shape[1] + 1  # no later token attends to these
            new = range(at, at + len(rows[r]) - shared)
            packed[new.start : new.stop] = torch.tensor(rows[r][shared:], dtype=torch.int64)
            positions[new.start : new.stop] = torch.arange(shared, len(rows[r]))
            path, at = path[:shared] + list(new), new.stop
            gather[r] = torch.tensor(path + path[-1:] * (ids.shape[1] - len(path)))
        ends[path] = (at - 1) % shape[1] + 1
    return Packed(packed.view(shape), positions.view(shape), ends.view(shape), gather)


def _common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _placed(sizes: list[int]) -> tuple[list[int], tuple[int, int]]:
    """Return the start of each tree, in packed rows as wide as the largest tree, and the shape of the packed batch.

    Each row takes the largest remaining tree, then as many of the smallest as fit.
    """
    order = sorted(range(len(sizes)), key=lambda t: (-sizes[t], t))
    width, rows = sizes[order[0]], 0
    starts = [0] * len(sizes)
    while order:
        at, end = rows * width, (rows + 1) * width
        tree = order.pop(0)
        while True:
            starts[tree] = at
            at += sizes[tree]
            if not order or at + sizes[order[-1]] > end:
                break
            tree = order.pop()
        rows += 1
    return starts, (rows, width)
