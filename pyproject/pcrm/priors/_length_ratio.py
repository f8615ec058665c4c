"""The prior `length_ratio`: shorter by longer response."""

from __future__ import annotations

import torch

from .._engine import torch_reference
from ._ragged import Ids
from ._token_ids import of_token_ids


def length_ratio(chosen_ids: Ids, rejected_ids: Ids, *, pad_token_id: int | None = None) -> torch.Tensor:
    """Shorter by longer response, in tokens, after the tokens that both begin with.

        s = min(a, b) / max(a, b)

    where a and b count the tokens from the first difference on; 1 if both are empty, so
    identical responses are alike. Both rows may begin with the same prompt. (arXiv
    2404.00978, section 3.2.1.)

    Args:
        chosen_ids: A sequence of B sequences of token ids, an Arrow column of lists, whose
            ids are read where they lie, or an integer tensor of shape (B, L), padded on the
            right.
        rejected_ids: The same of the other responses; L may differ.
        pad_token_id: Ends a response, at the first place at or after the difference. None
            where nothing is padded: every id counts. If the pad token also occurs inside
            responses (pad equal to eos), pass sequences without padding and None.

    Returns:
        float32, shape (B,), on the device of `chosen_ids` if that is a tensor.

    Raises:
        TypeError: ids that are no integers.
        ValueError: a tensor of another shape, different numbers of rows, an id that is no
            int64, a negative pad id.
    """
    return of_token_ids(chosen_ids, rejected_ids, pad_token_id, "bridge_LengthRatios", (), torch_reference.length_ratio)
