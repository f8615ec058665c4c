"""Select the implementation: the Go core, the CUDA kernels or plain torch.

    auto   Go for tensors on the CPU, the CUDA kernels for losses on an NVIDIA GPU,
           torch for everything else (the default)
    go     Go; an error where it cannot compute
    cuda   the CUDA kernels for the losses; an error where they cannot compute
    torch  readable formulas in torch, on any device

Under every backend, torch computes the losses of other papers (`pcrm.baselines`). It also computes
wherever native code cannot read the numbers: under torch.func's transforms, and for tensor
subclasses such as DTensor, whose data is not at `data_ptr()`.

If `auto` falls back to torch, it warns once and gives the reason. It does not warn on macOS and
Windows, where no native library is built. Computations outside the losses (priors, the
constraint's delta) run under `cuda` as under `auto`.

The setting applies to the whole process. The environment variable `PCRM_BACKEND` sets it at
startup.

A forked child of a process that has used Go computes with torch, whatever the setting: a Go
runtime does not survive a fork, and a call into it would hang forever. DataLoader workers and
`datasets.map(num_proc=...)` therefore work, with the same results. In such a child torch uses one
thread, as in a DataLoader worker, because torch's threads do not survive a fork either.
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
    """Return the current setting: `auto`, `go`, `cuda` or `torch`."""
    return _native.backend


def set_backend(name: str) -> None:
    """Set the backend for the whole process.

    Setting `cuda` initializes the CUDA driver. After that, a forked child cannot use CUDA.

    Args:
        name: `auto`, `go`, `cuda` or `torch`.

    Raises:
        ValueError: `name` is not one of these.
        RuntimeError: `name` is `go` and the native library is not available, or `name` is `cuda`
            and no device is available. The message gives the reason.
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
    """Set the backend inside a `with` block and restore the previous one at its end.

    Args:
        name: `auto`, `go`, `cuda` or `torch`.

    Raises:
        ValueError, RuntimeError: As in `set_backend`.
    """
    before = _native.backend
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def set_num_threads(n: int) -> None:
    """Limit the number of threads that a call of the Go core uses.

    Small batches always use one thread. Results do not depend on the number of threads. Go's
    threads compete with torch's, so lower the limit where both run at once.

    Args:
        n: The most threads, at least 0. 0, the default, means one per processor.

    Raises:
        ValueError: `n` is negative.
        RuntimeError: The native library is not available.
    """
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    _native.call(_native.library().bridge_SetNumThreads, n)
