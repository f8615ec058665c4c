"""Which code computes: the Go core, its CUDA kernels or plain torch.

    auto   Go for tensors on the CPU, our kernels for the losses of tensors on an NVIDIA GPU,
           torch for all else (the default)
    go     Go; an error where it cannot serve
    cuda   our kernels for the losses; an error where they cannot serve
    torch  the readable torch reference, on any device

Under every backend torch computes where native code cannot read the numbers: under torch.func's
transforms, and for wrappers such as DTensor, whose data are not where `data_ptr()` says.

Where `auto` has to do without native code it warns once, with the reason. What belongs to no
loss (priors, the constraint's delta) is computed under `cuda` as it is under `auto`.

The choice holds for the whole process. The environment variable `PCRM_BACKEND` sets it
at start.

After a fork the child computes with torch whatever was chosen, if its parent had used
Go: a Go runtime does not survive a fork, and a call into it would hang for ever. So
DataLoader workers and `datasets.map(num_proc=...)` work, with the same results. Torch then
has one thread in that child, as in a DataLoader worker: its threads do not survive either.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ._engine.tensors import is_readable

NAMES = ("auto", "go", "cuda", "torch")

_NATIVE_FOLDER = Path(__file__).parent / "_native"


def _checked(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source} is {name!r}, must be one of {', '.join(NAMES)}")
    return name


_backend = _checked(os.environ.get("PCRM_BACKEND", "auto"), "PCRM_BACKEND")
_native: ModuleType | None = None
_loaded_in = 0  # the process that loaded _native; 0 is no process
_child = 0  # the forked child that has been prepared to compute with torch
_unavailable: str | None = None  # why there is no native library, once that is known
_devices: dict[int, Device | str] = {}  # by index, the CUDA devices that were opened, or why one could not be


def get_backend() -> str:
    """The name that was set: `auto`, `go`, `cuda` or `torch`."""
    return _backend


def set_backend(name: str) -> None:
    """Choose the code that computes from now on, in the whole process.

    Raises:
        ValueError: the name is not one of `auto`, `go`, `cuda`, `torch`.
        RuntimeError: `go` was asked for and the native library is not there, or `cuda` and no
            device is; the message says why. Asking for `cuda` initializes CUDA's driver, after
            which a forked child cannot use it.
    """
    global _backend
    _checked(name, "backend")
    if name == "go" and _load() is None:
        raise RuntimeError(f"backend 'go' is not available: {_unavailable}")
    if name == "cuda" and (reason := cuda_unavailable()) is not None:
        raise RuntimeError(f"backend 'cuda' is not available: {reason}")
    _backend = name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """`set_backend` for the length of a `with` block."""
    before = _backend
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def _load() -> ModuleType | None:
    """The native library, loaded on first use; None where there is none."""
    global _native, _loaded_in, _unavailable
    if _native is None and _unavailable is None:
        try:
            module = importlib.import_module("pcrm._native._bridge")
            # In this order: to another thread, a library of no process is one from before a fork.
            _loaded_in = os.getpid()
            _native = module
        except ImportError as error:
            _unavailable = str(error)
            with contextlib.suppress(OSError, ValueError):
                info = json.loads((_NATIVE_FOLDER / "build_info.json").read_text())
                _unavailable = info["reason"] or _unavailable
    return _native


def native() -> ModuleType | None:
    """The native library if the chosen backend is to use it on the CPU, else None.

    Warns once, with the reason, where `auto` has to do without.

    Raises:
        RuntimeError: the backend is `go` and the native library is not there.
    """
    if _backend == "torch":
        return None
    if _native is not None:
        if _loaded_in == os.getpid():
            return _native
        _in_forked_child()
        return None
    reported = _unavailable is not None
    if _load() is None:
        if _backend == "go":
            raise RuntimeError(f"backend 'go' is not available: {_unavailable}")
        if not reported:
            warnings.warn(
                f"pcrm computes with torch, not with its Go core: {_unavailable}", RuntimeWarning, stacklevel=3
            )
    return _native


def _in_forked_child() -> None:
    """Keep torch from waiting for threads that the fork left behind.

    logsigmoid opens an OpenMP region however small its tensor is, and libgomp hangs in one
    if the parent ever had one. With one thread torch opens none: what DataLoader does in
    its workers.
    """
    global _child
    if _child != os.getpid():
        _child = os.getpid()
        torch.set_num_threads(1)


def library() -> ModuleType:
    """The native library, for what has no torch twin, whatever backend is chosen.

    Raises:
        RuntimeError: it is not there, or this process is a forked child of one that used it.
    """
    loaded = _load()
    if loaded is None:
        raise RuntimeError(f"this needs pcrm's native library, which is not available: {_unavailable}")
    if _loaded_in != os.getpid():
        raise RuntimeError(
            "this needs pcrm's native library, which cannot be used in a forked child of a process that used it"
        )
    return loaded


def set_num_threads(n: int) -> None:
    """Let a call of the Go core use at most n threads; 0, the default, is one a processor.

    Small batches take one whatever is set. Results do not depend on it. It competes with
    torch's own threads, so set it where the two must share.

    Raises:
        ValueError: n is negative.
        RuntimeError: the native library is not there.
    """
    if n < 0:
        raise ValueError(f"n is {n}, must be at least 0")
    call(library().bridge_SetNumThreads, n)


def native_for(name: str, tensor: torch.Tensor, *others: torch.Tensor) -> ModuleType | None:
    """`native()` for work on these tensors: None where they are not in memory that Go can read.

    Raises:
        ValueError: the backend is `go` and the tensor, called `name` in the message, lies
            on another device.
    """
    if tensor.is_cpu:
        return native() if is_readable(tensor, *others) else None
    if _backend == "go":
        raise ValueError(f"backend 'go' computes on the CPU, {name} is on {tensor.device}: use 'auto' or 'torch'")
    return None


class Device(NamedTuple):
    """A CUDA device whose kernels are loaded."""

    library: ModuleType
    index: int
    partials: int  # how many float64 a launch needs for its partial sums
    checked: set[tuple[str, torch.dtype]]  # the forms and dtypes whose kernels agreed with torch there

    def stream(self) -> int:
        """The handle of torch's current stream on it."""
        return torch.cuda.current_stream(self.index).cuda_stream


def loss_for(name: str, tensor: torch.Tensor) -> ModuleType | Device | None:
    """What native code computes a loss of that tensor: the Go core, a CUDA device, or none.

    Warns once, with the reason, where `auto` has to do without.

    Raises:
        ValueError: the backend is `go` or `cuda` and the tensor, called `name` in the message,
            lies on a device of another kind.
        RuntimeError: what the backend names is not there; it has to be loaded while a CUDA
            graph is captured.
    """
    if tensor.is_cpu:
        if _backend == "cuda":
            raise ValueError(
                f"backend 'cuda' computes on CUDA devices, {name} is on {tensor.device}: use 'auto' or 'go'"
            )
        return native()
    if _backend in ("auto", "cuda") and tensor.is_cuda:
        return _device(tensor.device.index)
    if _backend == "cuda":
        raise ValueError(
            f"backend 'cuda' computes on CUDA devices, {name} is on {tensor.device}: use 'auto' or 'torch'"
        )
    return native_for(name, tensor)


def has_kernels_for(tensor: torch.Tensor) -> bool:
    """Whether this is a device of a kind that `loss_for` knows more than torch for: looked at
    while a graph is compiled, so without a look at what is there.
    """
    return _backend != "torch" and (tensor.is_cpu or (tensor.is_cuda and torch.version.hip is None))


def cuda_unavailable() -> str | None:
    """Why there is no CUDA device that could compute, or None. Initializes CUDA's driver."""
    if torch.version.hip is not None:
        return "this torch is built for ROCm"
    try:
        call(library().bridge_CUDAProbe)
    except RuntimeError as error:
        return str(error)
    return None


def _device(index: int) -> Device | None:
    """The device of that index; None where it cannot be used and the backend is `auto`."""
    device = _devices.get(index)
    if device is None:
        reported = any(isinstance(d, str) for d in _devices.values())
        device = _devices[index] = _opened(index)
        if isinstance(device, str) and _backend == "auto" and not reported and torch.version.hip is None:
            warnings.warn(
                f"pcrm computes with torch, not with its CUDA kernels: {device}", RuntimeWarning, stacklevel=5
            )
    if isinstance(device, Device) and _loaded_in == os.getpid():
        return device
    if _backend == "cuda":
        reason = device if isinstance(device, str) else "this is a forked child of a process that used it"
        raise RuntimeError(f"backend 'cuda' is not available: {reason}")
    return None


def distrust(device: Device, reason: str) -> None:
    """Compute with torch on this device from now on, and warn; under `cuda` raise.

    Raises:
        RuntimeError: the backend is `cuda`.
    """
    _devices[device.index] = reason
    if _backend == "cuda":
        raise RuntimeError(f"backend 'cuda' is not available: {reason}")
    warnings.warn(
        f"pcrm computes with torch from now on, not with its CUDA kernels: {reason}. The results are right, and the "
        "loss is slower. Please report this message with the output of `pcrm doctor`",
        RuntimeWarning,
        stacklevel=5,
    )


def _opened(index: int) -> Device | str:
    if torch.version.hip is not None:
        return "this torch is built for ROCm"
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"pcrm's kernels are not loaded on cuda:{index} yet, which cannot be done while a CUDA graph is captured: "
            "call the loss once before"
        )
    try:
        native = library()
        return Device(native, index, call(native.bridge_CUDAOpen, index), set())
    except RuntimeError as error:
        return str(error)


_EXCEPTIONS = {e.__name__: e for e in (ValueError, TypeError, OSError, RuntimeError)}


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the native library; its errors become the exceptions that they stand for."""
    try:
        return function(*arguments)
    except RuntimeError as error:
        # The bridge puts the exception's name before the message.
        name, _, message = str(error).partition(": ")
        raise (_EXCEPTIONS[name](message) if name in _EXCEPTIONS else error) from None
