"""Make names from files and command lines safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Escape control characters and everything else that does not print, as in `\x1b`.

    A terminal obeys control characters, XML forbids them, and lone surrogates cannot be encoded.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
