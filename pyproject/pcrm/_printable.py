"""Make names from files and command lines, and errors of the system, ready to print."""

from __future__ import annotations

import os


def printable(text: str) -> str:
    r"""Escape control characters and everything else that does not print, as in `\x1b`.

    A terminal obeys control characters, XML forbids them, and lone surrogates cannot be encoded.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def text_of(error: BaseException) -> str:
    """Return the message of an error. That of a system error has the form `FILE: no such file or directory`."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        reason = error.strerror[0].lower() + error.strerror[1:]
        return f"{os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename}: {reason}"
    return str(error)
