"""Convert texts to Go's format and call Go's functions on them. This module does not need torch."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from types import ModuleType

from .native import address, call


def packed_texts(name: str, texts: Sequence[str]) -> tuple[array[int], array[int]]:
    """Return texts concatenated as UTF-8, and the offset of each.

    Raises:
        TypeError: An element is not a str; the message names its index.
        ValueError: A text is not valid Unicode.
    """
    encoded = []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{i}] must be a text, got {type(text).__name__}")
        try:
            encoded.append(text.encode())
        except UnicodeEncodeError as error:
            raise ValueError(f"{name}[{i}] must be valid Unicode: {error}") from None
    return array("B", b"".join(encoded)), array("q", accumulate(map(len, encoded), initial=0))


def lexicals(native: ModuleType, chosen: Sequence[str], rejected: Sequence[str], words: bool) -> array[float]:
    """Return the prior `lexical` of pairs of texts, as float32.

    Raises:
        TypeError, ValueError: As in `packed_texts`.
    """
    result = array("f", bytes(4 * len(chosen)))
    columns = [packed_texts(name, texts) for name, texts in (("chosen", chosen), ("rejected", rejected))]
    inputs = [x for values, offsets in columns for x in (address(values), address(offsets), len(values))]
    call(native.bridge_Lexicals, len(chosen), address(result), *inputs, words)
    return result
