"""Shared code of the priors of token ids: checks of ids, and one number for each pair of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .. import _check
from .._engine.native import call, chosen_library
from .._engine.tensors import check_dense, is_addressable
from ._ragged import Ids, Ragged, integer_rows, is_arrow


def of_token_ids(
    chosen_ids: Ids,
    rejected_ids: Ids,
    pad_token_id: int | None,
    function: str,
    first: tuple[int, ...],
    plain: Callable[..., float],
) -> torch.Tensor:
    """Compute one number per pair of rows, with a bridge function or its plain Python equivalent."""
    if pad_token_id is not None:
        pad_token_id = _check.integer("pad_token_id", pad_token_id)
    _check_ids("chosen_ids", chosen_ids)
    _check_ids("rejected_ids", rejected_ids)
    n = len(chosen_ids)
    if len(rejected_ids) != n:
        raise ValueError(f"chosen_ids and rejected_ids must have the same length, got {n} and {len(rejected_ids)} rows")
    device = chosen_ids.device if isinstance(chosen_ids, torch.Tensor) else torch.device("cpu")
    native = chosen_library()
    if native is None:
        rows = zip(integer_rows("chosen_ids", chosen_ids), integer_rows("rejected_ids", rejected_ids), strict=True)
        return torch.tensor([plain(a, b, pad_token_id) for a, b in rows], dtype=torch.float32, device=device)
    result = torch.empty(n, dtype=torch.float32, device="cpu")
    chosen, rejected = Ragged.of_ids("chosen_ids", chosen_ids), Ragged.of_ids("rejected_ids", rejected_ids)
    pad = -1 if pad_token_id is None else pad_token_id
    call(getattr(native, function), n, result.data_ptr(), *first, *chosen.addresses, *rejected.addresses, pad)
    return result.to(device)


def _check_ids(name: str, ids: Ids) -> None:
    if isinstance(ids, torch.Tensor):
        check_dense(name, ids)
        if not is_addressable(ids):
            raise TypeError(
                f"{name} must be a plain tensor, got a {type(ids).__name__}: pass a DTensor's full_tensor() or a list of rows"
            )
        if ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} must be int64 or int32, got dtype {ids.dtype}")
        if ids.dim() != 2:
            raise ValueError(f"{name} must have shape (B, L), got {tuple(ids.shape)}")
    elif not is_arrow(ids) and (not isinstance(ids, Sequence) or isinstance(ids, (str, bytes))):
        raise TypeError(
            f"{name} must be a tensor, an Arrow column or a sequence of sequences of ids, got {type(ids).__name__}"
        )
