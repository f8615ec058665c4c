"""Choose the backend for a tensor: the one that was set, or what `auto` finds for its device."""

from __future__ import annotations

import os
import warnings
from types import ModuleType

import torch

from . import cuda, native
from .tensors import is_readable

devices: dict[int, cuda.Device | str] = {}  # by index: each CUDA device that was opened, or why it could not be


def native_for(name: str, tensor: torch.Tensor, *others: torch.Tensor) -> ModuleType | None:
    """Return `native.chosen_library()` for work on these tensors, or None if Go cannot read their memory.

    Raises:
        ValueError: The backend is `go` and the tensor, called `name` in the message, is not on
            the CPU.
    """
    if tensor.is_cpu:
        return native.chosen_library() if is_readable(tensor, *others) else None
    if native.backend == "go":
        raise ValueError(
            f"{name} must be on the CPU for backend 'go', got {tensor.device}: use backend 'auto' or 'torch'"
        )
    return None


def native_for_loss(name: str, tensor: torch.Tensor) -> ModuleType | cuda.Device | None:
    """Return the native code that computes a loss of this tensor: the Go core, a CUDA device, or None.

    If `auto` falls back to torch, warn once and give the reason.

    Raises:
        ValueError: The backend is `go` or `cuda` and the tensor, called `name` in the message,
            is on another kind of device.
        RuntimeError: The backend is not available, or its kernels would have to be loaded while a
            CUDA graph is captured.
    """
    if tensor.is_cpu:
        if native.backend == "cuda":
            raise ValueError(
                f"{name} must be on a CUDA device for backend 'cuda', got {tensor.device}: use backend 'auto' or 'go'"
            )
        return native.chosen_library()
    if native.backend in ("auto", "cuda") and tensor.is_cuda:
        return cuda_device(tensor.device.index)
    if native.backend == "cuda":
        raise ValueError(
            f"{name} must be on a CUDA device for backend 'cuda', got {tensor.device}: use backend 'auto' or 'torch'"
        )
    return native_for(name, tensor)


def has_kernels_for(tensor: torch.Tensor) -> bool:
    """Whether `native_for_loss` may return native code for this kind of device. This is called while a
    graph is compiled, so it does not check what is available.
    """
    return native.backend != "torch" and (tensor.is_cpu or (tensor.is_cuda and torch.version.hip is None))


def cuda_device(index: int) -> cuda.Device | None:
    """Return the device of this index, or None if it cannot be used and the backend is `auto`."""
    device = devices.get(index)
    if device is None:
        reported = any(isinstance(d, str) for d in devices.values())
        device = devices[index] = cuda.open_device(index)
        if isinstance(device, str) and native.backend == "auto" and not reported and torch.version.hip is None:
            warnings.warn(
                f"pcrm computes with torch instead of its CUDA kernels: {device}. The results are the same, but the "
                "loss is slower. Run `pcrm doctor` for details",
                RuntimeWarning,
                stacklevel=5,
            )
    if isinstance(device, cuda.Device) and native.loaded_in == os.getpid():
        return device
    if native.backend == "cuda":
        reason = device if isinstance(device, str) else "this is a forked child of a process that used it"
        raise RuntimeError(f"backend 'cuda' is not available: {reason}")
    return None


def distrust(device: cuda.Device, reason: str) -> None:
    """Compute with torch on this device from now on, with a warning.

    Raises:
        RuntimeError: The backend is `cuda`.
    """
    devices[device.index] = reason
    if native.backend == "cuda":
        raise RuntimeError(f"backend 'cuda' is not available: {reason}")
    warnings.warn(
        f"pcrm computes with torch instead of its CUDA kernels from now on: {reason}. The results are correct, but the "
        "loss is slower. Please report this message with the output of `pcrm doctor`",
        RuntimeWarning,
        stacklevel=5,
    )
