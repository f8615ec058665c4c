"""Which backend serves a tensor: the chosen one, or what `auto` finds for its device."""

from __future__ import annotations

import os
import warnings
from types import ModuleType

import torch

from . import cuda, native
from .tensors import is_readable

devices: dict[int, cuda.Device | str] = {}  # by index, the CUDA devices that were opened, or why one could not be


def native_for(name: str, tensor: torch.Tensor, *others: torch.Tensor) -> ModuleType | None:
    """`native.chosen_library()` for work on these tensors: None where they are not in memory that Go can read.

    Raises:
        ValueError: the backend is `go` and the tensor, called `name` in the message, lies
            on another device.
    """
    if tensor.is_cpu:
        return native.chosen_library() if is_readable(tensor, *others) else None
    if native.backend == "go":
        raise ValueError(f"backend 'go' computes on the CPU, {name} is on {tensor.device}: use 'auto' or 'torch'")
    return None


def native_for_loss(name: str, tensor: torch.Tensor) -> ModuleType | cuda.Device | None:
    """What native code computes a loss of that tensor: the Go core, a CUDA device, or none.

    Warns once, with the reason, where `auto` has to do without.

    Raises:
        ValueError: the backend is `go` or `cuda` and the tensor, called `name` in the message,
            lies on a device of another kind.
        RuntimeError: what the backend names is not there; it has to be loaded while a CUDA
            graph is captured.
    """
    if tensor.is_cpu:
        if native.backend == "cuda":
            raise ValueError(
                f"backend 'cuda' computes on CUDA devices, {name} is on {tensor.device}: use 'auto' or 'go'"
            )
        return native.chosen_library()
    if native.backend in ("auto", "cuda") and tensor.is_cuda:
        return cuda_device(tensor.device.index)
    if native.backend == "cuda":
        raise ValueError(
            f"backend 'cuda' computes on CUDA devices, {name} is on {tensor.device}: use 'auto' or 'torch'"
        )
    return native_for(name, tensor)


def has_kernels_for(tensor: torch.Tensor) -> bool:
    """Whether this is a device of a kind that `native_for_loss` knows more than torch for: looked at
    while a graph is compiled, so without a look at what is there.
    """
    return native.backend != "torch" and (tensor.is_cpu or (tensor.is_cuda and torch.version.hip is None))


def cuda_device(index: int) -> cuda.Device | None:
    """The device of that index; None where it cannot be used and the backend is `auto`."""
    device = devices.get(index)
    if device is None:
        reported = any(isinstance(d, str) for d in devices.values())
        device = devices[index] = cuda.open_device(index)
        if isinstance(device, str) and native.backend == "auto" and not reported and torch.version.hip is None:
            warnings.warn(
                f"pcrm computes with torch, not with its CUDA kernels: {device}", RuntimeWarning, stacklevel=5
            )
    if isinstance(device, cuda.Device) and native.loaded_in == os.getpid():
        return device
    if native.backend == "cuda":
        reason = device if isinstance(device, str) else "this is a forked child of a process that used it"
        raise RuntimeError(f"backend 'cuda' is not available: {reason}")
    return None


def distrust(device: cuda.Device, reason: str) -> None:
    """Compute with torch on this device from now on, and warn; under `cuda` raise.

    Raises:
        RuntimeError: the backend is `cuda`.
    """
    devices[device.index] = reason
    if native.backend == "cuda":
        raise RuntimeError(f"backend 'cuda' is not available: {reason}")
    warnings.warn(
        f"pcrm computes with torch from now on, not with its CUDA kernels: {reason}. The results are right, and the "
        "loss is slower. Please report this message with the output of `pcrm doctor`",
        RuntimeWarning,
        stacklevel=5,
    )
