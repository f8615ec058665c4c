"""The prior `length_ratio`: the shorter length divided by the longer one."""

from __future__ import annotations

import torch

from .._engine import torch_reference
from ._ragged import Ids
from ._token_ids import of_token_ids


def length_ratio(chosen_ids: Ids, rejected_ids: Ids, *, pad_token_id: int | None = None) -> torch.Tensor:
    """Length ratio of two responses: the shorter length divided by the longer one, in tokens.

        s = min(a, b) / max(a, b)

    a and b count the tokens from the first difference on, so both rows may begin with the same
    prompt. s is 1 if both counts are 0: the responses are identical. Source: arXiv 2404.00978,
    section 3.2.1.

    Args:
        chosen_ids: Token ids of the chosen responses: a sequence of B sequences, an Arrow column of
            lists (read without a copy), or an integer tensor of shape (B, L), padded on the right.
        rejected_ids: The same for the rejected responses. L may differ.
        pad_token_id: The id of the pad token, at least 0. A response ends at its first occurrence at
            or after the first difference. None if nothing is padded: every id counts. If the pad
            token also occurs inside responses (for example, pad equal to eos), pass unpadded
            sequences and None.

    Returns:
        A float32 tensor of shape (B,), on the device of `chosen_ids` if that is a tensor.

    Raises:
        TypeError: The ids are not integers.
        ValueError: A tensor has the wrong shape, the numbers of rows differ, an id does not fit into
            int64, or the pad id is negative.
    """
    return of_token_ids(chosen_ids, rejected_ids, pad_token_id, "bridge_LengthRatios", (), torch_reference.length_ratio)
