"""A lock on an open file. Closing the file releases it, and so does the end of the process."""

from __future__ import annotations

from typing import IO, Any

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None


def try_lock(file: IO[Any]) -> bool:
    """Take the lock without waiting; return False if another process holds it."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    except (BlockingIOError, PermissionError):  # flock's and msvcrt's
        return False
    return True
