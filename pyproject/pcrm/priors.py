"""Prior similarities of two responses: numbers s in [0, 1], 1 for alike.

They take token ids or texts and nothing of the model, so they can be computed once per
data set or in the collator.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import torch

from . import backends, reference

Ids = torch.Tensor | Sequence[Sequence[int]]


def length_ratio(chosen_ids: Ids, rejected_ids: Ids, *, pad_token_id: int | None = None) -> torch.Tensor:
    """Shorter by longer response, in tokens, after the tokens that both begin with.

        s = min(a, b) / max(a, b)

    where a and b count the tokens from the first difference on; 1 if both are empty, so
    identical responses are alike. Both rows may begin with the same prompt. (arXiv
    2404.00978, section 3.2.1.)

    Args:
        chosen_ids: A sequence of B sequences of token ids, or an integer tensor of shape
            (B, L), padded on the right.
        rejected_ids: The same of the other responses; L may differ.
        pad_token_id: Ends a response, at the first place at or after the difference. None
            where nothing is padded: every id counts.

    Returns:
        float32, shape (B,), on the device of `chosen_ids` if that is a tensor.

    Raises:
        TypeError: ids that are no integers.
        ValueError: a tensor of another shape, different numbers of rows, a negative pad id.
    """
    if pad_token_id is not None and pad_token_id < 0:
        raise ValueError(f"pad_token_id is {pad_token_id}, must be at least 0")
    _check_ids("chosen_ids", chosen_ids)
    _check_ids("rejected_ids", rejected_ids)
    n = len(chosen_ids)
    if len(rejected_ids) != n:
        raise ValueError(f"rejected_ids has {len(rejected_ids)} rows, chosen_ids has {n}")
    device = chosen_ids.device if isinstance(chosen_ids, torch.Tensor) else None
    native = backends.native()
    if native is None:
        rows = zip(_rows(chosen_ids), _rows(rejected_ids), strict=True)
        return torch.tensor(
            [reference.length_ratio(a, b, pad_token_id) for a, b in rows], dtype=torch.float32, device=device
        )
    result = torch.empty(n, dtype=torch.float32)
    chosen, rejected = _Ragged("chosen_ids", chosen_ids), _Ragged("rejected_ids", rejected_ids)
    try:
        native.bridge_LengthRatios(
            n, result.data_ptr(), *chosen.addresses, *rejected.addresses, -1 if pad_token_id is None else pad_token_id
        )
    except RuntimeError as error:
        raise backends.exception_of(error) from None
    return result if device is None else result.to(device)


def _check_ids(name: str, ids: Ids) -> None:
    if isinstance(ids, torch.Tensor):
        if ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} has dtype {ids.dtype}, must be int64 or int32")
        if ids.dim() != 2:
            raise ValueError(f"{name} has shape {tuple(ids.shape)}, must be (B, L)")
    elif not isinstance(ids, Sequence) or isinstance(ids, (str, bytes)):
        raise TypeError(f"{name} is a {type(ids).__name__}, must be a tensor or a sequence of sequences of ids")


def _rows(ids: Ids) -> Sequence[Sequence[int]]:
    return ids.tolist() if isinstance(ids, torch.Tensor) else ids


class _Ragged:
    """Rows of ids as Go reads them: values and offsets, kept alive together."""

    def __init__(self, name: str, ids: Ids) -> None:
        if isinstance(ids, torch.Tensor):
            rows, width = ids.shape
            values = ids.detach().to("cpu", torch.int64).contiguous()
            offsets = torch.arange(0, (rows + 1) * width, width) if width else torch.zeros(rows + 1, dtype=torch.int64)
            self.keep: Any = (values, offsets)
            self.addresses = (values.data_ptr(), offsets.data_ptr(), values.numel())
            return
        try:
            values = array("q", chain.from_iterable(ids))
        except TypeError:
            raise _bad_row(name, ids) from None
        offsets = array("q", accumulate(map(len, ids), initial=0))
        self.keep = (values, offsets)
        self.addresses = (values.buffer_info()[0], offsets.buffer_info()[0], len(values))


def _bad_row(name: str, ids: Sequence[Any]) -> TypeError:
    for i, row in enumerate(ids):
        try:
            array("q", row)
        except TypeError as error:
            return TypeError(f"{name}[{i}] is no sequence of integers: {error}")
    return TypeError(f"{name} is no sequence of sequences of integers")
