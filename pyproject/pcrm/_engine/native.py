"""Find, load and call the native library, decide whether the current backend uses it, and handle forks.

This module does not need torch, so commands that compute only in Go start quickly.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import warnings
from array import array
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

NAMES = ("auto", "go", "cuda", "torch")

FOLDER = Path(__file__).parent.parent / "_native"


class NativeLibraryError(RuntimeError):
    """The native library is required, but it is not available or cannot be used in this process."""


loaded: ModuleType | None = None
loaded_in = 0  # the id of the process that loaded it, or 0
unavailable: str | None = None  # why there is no native library, once known


def checked(name: str, source: str) -> str:
    """Return a name that is in `NAMES`. The message calls it `source`."""
    if name not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(NAMES)}, got {name!r}")
    return name


backend = checked(os.environ.get("PCRM_BACKEND", "auto"), "PCRM_BACKEND")
_SYSTEMS = {"darwin": "macOS", "win32": "Windows"}
_child = 0  # the id of the forked child that is already set up to compute with torch


def load() -> ModuleType | None:
    """Return the native library, loaded on first use. If it is not available, return None and set `unavailable`."""
    global loaded, loaded_in, unavailable
    if loaded is None and unavailable is None:
        try:
            module = importlib.import_module("pcrm._native._bridge")
            # In this order: another thread takes a library without a process for one from before a fork.
            loaded_in = os.getpid()
            loaded = module
        except ImportError as error:
            unavailable = _why_not_there(error)
    return loaded


def _why_not_there(error: ImportError) -> str:
    if sys.platform != "linux":
        return f"it is built on Linux only, and this is {_SYSTEMS.get(sys.platform, sys.platform)}"
    with contextlib.suppress(OSError, ValueError):
        if reason := json.loads((FOLDER / "build_info.json").read_text(encoding="utf-8"))["reason"]:
            return reason
    return str(error)


def library() -> ModuleType:
    """Return the native library, whatever the backend, for functions without a torch equivalent.

    Raises:
        NativeLibraryError: It is not available, or this process is a forked child of one that used it.
    """
    if load() is None:
        raise NativeLibraryError(f"this requires pcrm's native library, which is not available: {unavailable}")
    if loaded_in != os.getpid():
        raise NativeLibraryError(
            "this requires pcrm's native library, which does not work in a forked child of a process that used it: "
            "spawn the child instead of forking"
        )
    return loaded  # pyright: ignore[reportReturnType]


def chosen_library() -> ModuleType | None:
    """Return the native library if the current backend uses it on the CPU, else None.

    If `auto` falls back to torch, warn once and give the reason. Do not warn on systems other than Linux,
    where there is nothing the user could change.

    Raises:
        NativeLibraryError: The backend is `go` and the native library is not available.
    """
    if backend == "torch":
        return None
    if loaded is not None:
        if loaded_in == os.getpid():
            return loaded
        _in_forked_child()
        return None
    reported = unavailable is not None
    if load() is None:
        if backend == "go":
            raise NativeLibraryError(f"backend 'go' is not available: {unavailable}")
        if not reported and sys.platform == "linux":
            warnings.warn(
                f"pcrm computes with torch instead of its Go core: {unavailable}. The results are the same, but the "
                "loss is slower. Run `pcrm doctor` for details",
                RuntimeWarning,
                stacklevel=3,
            )
    return loaded


def _in_forked_child() -> None:
    """Keep torch from waiting for threads that the fork left behind.

    logsigmoid opens an OpenMP region even for the smallest tensor, and libgomp hangs there if the
    parent ever opened one. With one thread, torch opens none. DataLoader does the same in its
    workers.
    """
    global _child
    if _child != os.getpid():
        _child = os.getpid()
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(1)


_EXCEPTIONS = {e.__name__: e for e in (ValueError, TypeError, OSError, RuntimeError)}


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the native library and convert its errors to Python exceptions."""
    try:
        return function(*arguments)
    except RuntimeError as error:
        # The bridge puts the exception's name before the message.
        name, _, message = str(error).partition(": ")
        raise (_EXCEPTIONS[name](message) if name in _EXCEPTIONS else error) from None


def address(numbers: torch.Tensor | np.ndarray | array[Any]) -> int:
    """Return the address of contiguous numbers, or 0 if there are none, which Go reads as an empty slice."""
    if isinstance(numbers, array):
        return numbers.buffer_info()[0] if numbers else 0
    if hasattr(numbers, "data_ptr"):  # a tensor, recognized without importing torch
        return numbers.data_ptr()  # pyright: ignore[reportAttributeAccessIssue]
    return numbers.ctypes.data if numbers.size else 0  # pyright: ignore[reportAttributeAccessIssue]
