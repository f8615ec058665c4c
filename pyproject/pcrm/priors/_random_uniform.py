"""The numbers of a random constraint: a hash of the responses' ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import _check
from .._engine import torch_reference
from ._ragged import Ids
from ._token_ids import of_token_ids


def random_uniform(
    chosen_ids: Ids, rejected_ids: Ids, seed: int = 0, *, pad_token_id: int | None = None
) -> torch.Tensor:
    """What a random constraint takes in the place of a similarity: uniform in [0, 1).

    A hash of the seed and both rows of ids, so that a pair has the same number in every
    batch, process and epoch and after a resume. The rows count whole, a common prompt
    included, less the pad ids at their ends.

    Args:
        chosen_ids, rejected_ids, pad_token_id: As in `length_ratio`.
        seed: In [0, 2**64).

    Returns:
        float32, shape (B,).

    Raises:
        TypeError, ValueError: as in `length_ratio`; a seed out of its range.
    """
    seed = _check.integer("seed", seed, 0, 2**64)

    def plain(chosen: Sequence[int], rejected: Sequence[int], pad: int | None) -> float:
        return torch_reference.random_uniform(seed, chosen, rejected, pad)

    return of_token_ids(chosen_ids, rejected_ids, pad_token_id, "bridge_RandomUniforms", (seed,), plain)
