"""The native library: finding, loading and calling it, whether the chosen backend uses it, and what a fork does to it.

This module needs no torch, so that commands that compute in Go alone start quickly.
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
    """What was asked for needs the native library, which is not there or cannot be used in this process."""


loaded: ModuleType | None = None
loaded_in = 0  # the process that loaded it; 0 is no process
unavailable: str | None = None  # why there is no native library, once that is known


def checked(name: str, source: str) -> str:
    """One of `NAMES`. `source` is what the message calls it."""
    if name not in NAMES:
        raise ValueError(f"{source} is {name!r}, must be one of {', '.join(NAMES)}")
    return name


backend = checked(os.environ.get("PCRM_BACKEND", "auto"), "PCRM_BACKEND")
_SYSTEMS = {"darwin": "macOS", "win32": "Windows"}
_child = 0  # the forked child that has been prepared to compute with torch


def load() -> ModuleType | None:
    """The native library, loaded on first use; None where there is none, and `unavailable` says why."""
    global loaded, loaded_in, unavailable
    if loaded is None and unavailable is None:
        try:
            module = importlib.import_module("pcrm._native._bridge")
            # In this order: to another thread, a library of no process is one from before a fork.
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
    """The native library, for what has no torch twin, whatever backend is chosen.

    Raises:
        NativeLibraryError: it is not there, or this process is a forked child of one that used it.
    """
    if load() is None:
        raise NativeLibraryError(f"this needs pcrm's native library, which is not available: {unavailable}")
    if loaded_in != os.getpid():
        raise NativeLibraryError(
            "this needs pcrm's native library, which cannot be used in a forked child of a process that used it"
        )
    return loaded  # pyright: ignore[reportReturnType]


def chosen_library() -> ModuleType | None:
    """The native library if the chosen backend is to use it on the CPU, else None.

    Warns once, with the reason, where `auto` has to do without. On other systems than Linux nobody could
    change that, and there is no warning.

    Raises:
        NativeLibraryError: the backend is `go` and the native library is not there.
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
                f"pcrm computes with torch, not with its Go core: {unavailable}", RuntimeWarning, stacklevel=3
            )
    return loaded


def _in_forked_child() -> None:
    """Keep torch from waiting for threads that the fork left behind.

    logsigmoid opens an OpenMP region however small its tensor is, and libgomp hangs in one
    if the parent ever had one. With one thread torch opens none: what DataLoader does in
    its workers.
    """
    global _child
    if _child != os.getpid():
        _child = os.getpid()
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(1)


_EXCEPTIONS = {e.__name__: e for e in (ValueError, TypeError, OSError, RuntimeError)}


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the native library; its errors become the exceptions that they stand for."""
    try:
        return function(*arguments)
    except RuntimeError as error:
        # The bridge puts the exception's name before the message.
        name, _, message = str(error).partition(": ")
        raise (_EXCEPTIONS[name](message) if name in _EXCEPTIONS else error) from None


def address(numbers: torch.Tensor | np.ndarray | array[Any]) -> int:
    """Where contiguous numbers begin in memory. It is 0 where there are none, which Go reads as an empty slice."""
    if isinstance(numbers, array):
        return numbers.buffer_info()[0] if numbers else 0
    if hasattr(numbers, "data_ptr"):  # a tensor, told apart without importing torch
        return numbers.data_ptr()  # pyright: ignore[reportAttributeAccessIssue]
    return numbers.ctypes.data if numbers.size else 0  # pyright: ignore[reportAttributeAccessIssue]
