"""The losses on a CUDA device: devices, memory for the results, strides, and launches on torch's stream.

A launch runs when the stream reaches it. Nothing waits for the device, so no value on it is
inspected. The functions return the same results as those of `go`.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch

from . import native
from .dtypes import CUDA_CODES, NONE
from .tensors import check_all_finite

Tensor = torch.Tensor

_EMPTY = torch.empty(0, device="cpu")  # its address is 0, which tells the kernels that there is no output


class Device(NamedTuple):
    """A CUDA device whose kernels are loaded."""

    library: ModuleType
    index: int
    partials: int  # the number of float64 that a launch needs for its partial sums
    checked: set[tuple[str, torch.dtype]]  # the losses and dtypes whose kernels agreed with torch on this device

    def stream(self) -> int:
        """Return the handle of torch's current stream on this device."""
        return torch.cuda.current_stream(self.index).cuda_stream


def unavailable() -> str | None:
    """Return why no CUDA device can be used, or None if one can. Initializes the CUDA driver."""
    if torch.version.hip is not None:
        return "this torch is built for ROCm"
    try:
        native.call(native.library().bridge_CUDAProbe)
    except RuntimeError as error:
        return str(error)
    return None


def open_device(index: int) -> Device | str:
    """Return the device of this index with its kernels loaded, or why it cannot be used."""
    if torch.version.hip is not None:
        return "this torch is built for ROCm"
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"pcrm's kernels are not loaded on cuda:{index}, and they cannot be loaded while a CUDA graph is captured: "
            "call the loss once before the capture"
        )
    try:
        library = native.library()
        return Device(library, index, native.call(library.bridge_CUDAOpen, index), set())
    except RuntimeError as error:
        return str(error)


def reward_loss(
    device: Device,
    gradient: bool,
    chosen: Tensor,
    rejected: Tensor,
    delta: Tensor,
    label_smoothing: float,
    center_rewards_coefficient: float,
    reduction: int,
    check_finite: bool,
) -> tuple[Tensor, ...]:
    if check_finite:  # the user asked for this synchronization
        check_all_finite(chosen_rewards=chosen, rejected_rewards=rejected)
    delta, chosen, rejected = _contiguous(delta), chosen.resolve_neg(), rejected.resolve_neg()
    loss, by_chosen, by_rejected, _ = memory = _result_memory(device, delta, reduction, chosen if gradient else None)
    native.call(
        device.library.bridge_CUDARewardLoss,
        device.index,
        device.stream(),
        CUDA_CODES[chosen.dtype],
        chosen.numel(),
        *(x.data_ptr() for x in memory),
        *_addresses_and_strides(chosen, rejected),
        delta.data_ptr(),
        label_smoothing,
        center_rewards_coefficient,
        reduction,
    )
    return loss, by_chosen, by_rejected


def token_loss(
    device: Device,
    gradient: bool,
    chosen: Tensor,
    rejected: Tensor,
    chosen_ids: Tensor,
    rejected_ids: Tensor,
    delta: Tensor,
    pad_token_id: int,
    reduction: int,
) -> tuple[Tensor, ...]:
    delta, chosen, rejected = _contiguous(delta), chosen.resolve_neg(), rejected.resolve_neg()
    loss, by_chosen, by_rejected, _ = memory = _result_memory(device, delta, reduction, chosen if gradient else None)
    rows, width = chosen.shape
    ids = [number for x in (chosen_ids, rejected_ids) for number in (x.data_ptr(), x.element_size(), *x.stride())]
    native.call(
        device.library.bridge_CUDATokenLoss,
        device.index,
        device.stream(),
        CUDA_CODES[chosen.dtype],
        rows,
        width,
        *(x.data_ptr() for x in memory),
        *_addresses_and_strides(chosen, rejected),
        *ids,
        delta.data_ptr(),
        pad_token_id,
        reduction,
    )
    return loss, by_chosen, by_rejected


def dpo_loss(
    device: Device,
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
    delta = _contiguous(delta)
    inputs = [x.resolve_neg() for x in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)]
    loss, by_chosen, by_rejected, _ = memory = _result_memory(device, delta, reduction, delta if gradient else None)
    chosen_rewards, rejected_rewards = torch.empty_like(delta), torch.empty_like(delta)
    native.call(
        device.library.bridge_CUDADPOLoss,
        device.index,
        device.stream(),
        CUDA_CODES[policy_chosen.dtype],
        policy_chosen.numel(),
        *(x.data_ptr() for x in (*memory, chosen_rewards, rejected_rewards)),
        *_addresses_and_strides(*inputs),
        delta.data_ptr(),
        beta,
        label_smoothing,
        reduction,
    )
    return loss, by_chosen, by_rejected, chosen_rewards, rejected_rewards


def scale(
    device: Device, gradients: tuple[Tensor, Tensor], grad_loss: Tensor, dtype: torch.dtype, in_place: bool
) -> tuple[Tensor, Tensor]:
    """Multiply both gradients by the incoming one, in the dtype of the scores."""
    chosen, rejected = gradients
    if in_place and dtype is chosen.dtype:
        by_chosen, by_rejected = gradients
    else:
        by_chosen, by_rejected = torch.empty_like(chosen, dtype=dtype), torch.empty_like(rejected, dtype=dtype)
    grad_loss = grad_loss.resolve_neg()
    native.call(
        device.library.bridge_CUDAScale,
        device.index,
        device.stream(),
        CUDA_CODES[dtype],
        chosen.numel(),
        chosen.shape[1] if chosen.dim() == 2 else 1,
        by_chosen.data_ptr(),
        by_rejected.data_ptr(),
        chosen.data_ptr(),
        rejected.data_ptr(),
        grad_loss.data_ptr(),
        grad_loss.stride(0) if grad_loss.dim() else 0,
    )
    return by_chosen, by_rejected


def _result_memory(device: Device, delta: Tensor, reduction: int, like: Tensor | None) -> tuple[Tensor, ...]:
    """Allocate memory for the loss, both gradients (with the shape of `like`, or none) and the partial
    sums. torch's allocator keeps it until the stream is done with it.
    """
    loss = torch.empty_like(delta) if reduction == NONE else delta.new_empty(())
    shape = None if like is None else like.shape
    gradients = (_EMPTY, _EMPTY) if shape is None else (delta.new_empty(shape), delta.new_empty(shape))
    partials = _EMPTY if reduction == NONE else delta.new_empty(device.partials, dtype=torch.float64)
    return loss, *gradients, partials


def _addresses_and_strides(*tensors: Tensor) -> list[int]:
    """Return the address and strides of each tensor."""
    return [number for x in tensors for number in (x.data_ptr(), *x.stride())]


def _contiguous(x: Tensor) -> Tensor:
    """Return x contiguous, with any lazy negation resolved."""
    return x.resolve_neg().contiguous()
