"""Names that come from files and command lines, as text that is safe to show."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""The text with control characters and everything else that does not print escaped, as in `\x1b`.

    A terminal obeys control characters, XML has no place for them, and lone surrogates cannot be encoded.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
