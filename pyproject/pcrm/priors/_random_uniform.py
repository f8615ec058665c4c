"""The random numbers of a random constraint: a hash of the responses' ids."""

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
    """Random number in [0, 1) for each pair, which a random constraint uses instead of a similarity.

    The number is a hash of the seed and both rows of ids, so a pair has the same number in every
    batch, process and epoch, and after a resume. The whole rows count, including a common prompt,
    except the pad ids at their ends. Over pairs the numbers are uniform.

    Args:
        chosen_ids, rejected_ids, pad_token_id: As in `length_ratio`.
        seed: An integer in [0, 2**64).

    Returns:
        A float32 tensor of shape (B,).

    Raises:
        TypeError, ValueError: As in `length_ratio`. Also if the seed is not an integer or out of range.
    """
    seed = _check.integer("seed", seed, 0, 2**64)

    def plain(chosen: Sequence[int], rejected: Sequence[int], pad: int | None) -> float:
        return torch_reference.random_uniform(seed, chosen, rejected, pad)

    return of_token_ids(chosen_ids, rejected_ids, pad_token_id, "bridge_RandomUniforms", (seed,), plain)
