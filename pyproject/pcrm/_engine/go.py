"""The losses in Go: memory for the results, and addresses for the call.

Each function returns the loss, its gradients with respect to the chosen and the rejected argument,
and any further results. If no gradient is wanted, the two gradients are empty tensors. Their
address is 0, which Go reads as "none".
"""

from __future__ import annotations

from types import ModuleType

import torch

from . import native
from .dtypes import NONE

Tensor = torch.Tensor

# empty_like is the fastest way to allocate memory from Python.
_EMPTY = torch.empty(0, device="cpu")
_SCALARS = {dtype: torch.empty((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)}


def reward_loss(
    library: ModuleType,
    gradient: bool,
    chosen: Tensor,
    rejected: Tensor,
    delta: Tensor,
    label_smoothing: float,
    center_rewards_coefficient: float,
    reduction: int,
    check_finite: bool,
) -> tuple[Tensor, ...]:
    dtype = delta.dtype
    delta = _as_go_reads(delta, dtype)
    chosen, rejected = _as_go_reads(chosen, dtype), _as_go_reads(rejected, dtype)
    n = chosen.numel()
    loss = torch.empty_like(delta if reduction == NONE else _SCALARS[dtype])
    by_chosen, by_rejected = (torch.empty_like(delta), torch.empty_like(delta)) if gradient else (_EMPTY, _EMPTY)
    native.call(
        library.bridge_RewardLoss,
        delta.element_size(),
        n,
        loss.data_ptr(),
        by_chosen.data_ptr(),
        by_rejected.data_ptr(),
        chosen.data_ptr(),
        rejected.data_ptr(),
        delta.data_ptr(),
        label_smoothing,
        center_rewards_coefficient,
        reduction,
        check_finite,
    )
    return loss, by_chosen, by_rejected


def token_loss(
    library: ModuleType,
    gradient: bool,
    chosen: Tensor,
    rejected: Tensor,
    chosen_ids: Tensor,
    rejected_ids: Tensor,
    delta: Tensor,
    pad_token_id: int,
    reduction: int,
) -> tuple[Tensor, ...]:
    dtype = delta.dtype
    delta = _as_go_reads(delta, dtype)
    chosen, rejected = _as_go_reads(chosen, dtype), _as_go_reads(rejected, dtype)
    chosen_ids, rejected_ids = chosen_ids.to(torch.int64).contiguous(), rejected_ids.to(torch.int64).contiguous()
    rows, width = chosen.shape
    loss = torch.empty_like(delta if reduction == NONE else _SCALARS[dtype])
    by_chosen, by_rejected = (torch.empty_like(chosen), torch.empty_like(chosen)) if gradient else (_EMPTY, _EMPTY)
    native.call(
        library.bridge_TokenLoss,
        dtype.itemsize,
        rows,
        width,
        loss.data_ptr(),
        by_chosen.data_ptr(),
        by_rejected.data_ptr(),
        chosen.data_ptr(),
        rejected.data_ptr(),
        chosen_ids.data_ptr(),
        rejected_ids.data_ptr(),
        delta.data_ptr(),
        pad_token_id,
        reduction,
    )
    return loss, by_chosen, by_rejected


def dpo_loss(
    library: ModuleType,
    gradient: bool,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    delta: Tensor,
    beta: float,
    label_smoothing: float,
    reduction: int,
) -> tuple[Tensor, ...]:
    dtype = delta.dtype
    delta = _as_go_reads(delta, dtype)
    inputs = [_as_go_reads(x, dtype) for x in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)]
    n = policy_chosen.numel()
    loss = torch.empty_like(delta if reduction == NONE else _SCALARS[dtype])
    by_chosen, by_rejected = (torch.empty_like(delta), torch.empty_like(delta)) if gradient else (_EMPTY, _EMPTY)
    chosen_rewards, rejected_rewards = torch.empty_like(delta), torch.empty_like(delta)
    native.call(
        library.bridge_DPOLoss,
        dtype.itemsize,
        n,
        loss.data_ptr(),
        by_chosen.data_ptr(),
        by_rejected.data_ptr(),
        chosen_rewards.data_ptr(),
        rejected_rewards.data_ptr(),
        *(x.data_ptr() for x in inputs),
        delta.data_ptr(),
        beta,
        label_smoothing,
        reduction,
    )
    return loss, by_chosen, by_rejected, chosen_rewards, rejected_rewards


def _as_go_reads(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in this dtype, contiguous, with any lazy negation resolved."""
    if x.dtype is not dtype:
        x = x.to(dtype)
    return (x.resolve_neg() if x.is_neg() else x).contiguous()
