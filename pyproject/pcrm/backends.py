"""Which code computes: the Go core, its CUDA kernels or plain torch.

    auto   Go for tensors on the CPU, our kernels for the losses of tensors on an NVIDIA GPU,
           torch for all else (the default)
    go     Go; an error where it cannot serve
    cuda   our kernels for the losses; an error where they cannot serve
    torch  readable formulas in torch, on any device

Under every backend torch computes the losses of other papers (`pcrm.baselines`). It also computes
where native code cannot read the numbers: under torch.func's transforms, and for wrappers such as
DTensor, whose data are not where `data_ptr()` says.

Where `auto` has to do without native code it warns once, with the reason; on macOS and Windows, where there
is none, it does not. What belongs to no
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
from collections.abc import Iterator

from ._engine import native as _native
from ._engine.native import NAMES

__all__ = [
    "NAMES",
    "get_backend",
    "set_backend",
    "set_num_threads",
    "use_backend",
]


def get_backend() -> str:
    """The name that was set: `auto`, `go`, `cuda` or `torch`."""
    return _native.backend


def set_backend(name: str) -> None:
    """Choose the code that computes from now on, in the whole process.

    Raises:
        ValueError: the name is not one of `auto`, `go`, `cuda`, `torch`.
        RuntimeError: `go` was asked for and the native library is not there, or `cuda` and no
            device is; the message says why. Asking for `cuda` initializes CUDA's driver, after
            which a forked child cannot use it.
    """
    _native.checked(name, "backend")
    if name == "go" and _native.load() is None:
        raise _native.NativeLibraryError(f"backend 'go' is not available: {_native.unavailable}")
    if name == "cuda":
        from ._engine import cuda

        if (reason := cuda.unavailable()) is not None:
            raise RuntimeError(f"backend 'cuda' is not available: {reason}")
    _native.backend = name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """`set_backend` for the length of a `with` block."""
    before = _native.backend
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


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
    _native.call(_native.library().bridge_SetNumThreads, n)
