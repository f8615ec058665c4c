"""What the losses are measured against, and checked against once more: what people write
in torch without us.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

Tensor = torch.Tensor


def eager_pairs(chosen: Tensor, rejected: Tensor, delta: Tensor) -> Tensor:
    """The pair loss as one would write it."""
    margin = chosen - rejected
    return (-logsigmoid(margin) - logsigmoid(delta - margin)).mean()


def eager_tokens(chosen: Tensor, rejected: Tensor, delta: Tensor, inside: Tensor, length: Tensor) -> Tensor:
    """The token form, vectorized, with its spans for free: a mask (B, L) and their lengths (B,)."""
    margin = chosen - rejected
    loss = -logsigmoid(margin) - logsigmoid(delta[:, None] - margin)
    return ((loss * inside).sum(1) / length).mean()


def loop_tokens(
    chosen: Tensor, rejected: Tensor, chosen_ids: Tensor, rejected_ids: Tensor, delta: Tensor, pad_token_id: int
) -> Tensor:
    """The token form a pair at a time, as training scripts that find the spans in Python do."""
    loss = chosen.new_zeros(())
    for i in range(len(chosen)):
        a, b = chosen_ids[i], rejected_ids[i]
        different = (a != b).nonzero()
        if len(different) == 0:
            start, end = len(a) - 1, len(a)
        else:
            start = int(different[0])
            ends = []
            for ids in (a, b):
                pads = (ids[start:] == pad_token_id).nonzero()
                ends.append(start + int(pads[0]) if len(pads) else len(ids))
            end = max(ends)
        margin = chosen[i, start:end] - rejected[i, start:end]
        loss = loss + (-logsigmoid(margin) - logsigmoid(delta[i] - margin)).mean()
    return loss / len(chosen)


def eager_dpo(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, delta: Tensor, beta: float
) -> Tensor:
    """The DPO form as one would write it."""
    z = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return (-logsigmoid(z) - logsigmoid(delta - z)).mean()
