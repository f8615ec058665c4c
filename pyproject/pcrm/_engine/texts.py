"""Texts as Go reads them, and what Go computes of them. Nothing here needs torch."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from types import ModuleType

from .native import address, call


def packed_texts(name: str, texts: Sequence[str]) -> tuple[array[int], array[int]]:
    """Texts in UTF-8, one after the other, and where each begins.

    Raises:
        TypeError: An element is not a text, named by its index.
        ValueError: A text is no valid Unicode.
    """
    encoded = []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{i}] is a {type(text).__name__}, must be a text")
        try:
            encoded.append(text.encode())
        except UnicodeEncodeError as error:
            raise ValueError(f"{name}[{i}] is no valid Unicode: {error}") from None
    return array("B", b"".join(encoded)), array("q", accumulate(map(len, encoded), initial=0))


def lexicals(native: ModuleType, chosen: Sequence[str], rejected: Sequence[str], words: bool) -> array[float]:
    """The prior `lexical` of pairs of texts, as float32.

    Raises:
        TypeError, ValueError: As from `packed_texts`.
    """
    result = array("f", bytes(4 * len(chosen)))
    columns = [packed_texts(name, texts) for name, texts in (("chosen", chosen), ("rejected", rejected))]
    inputs = [x for values, offsets in columns for x in (address(values), address(offsets), len(values))]
    call(native.bridge_Lexicals, len(chosen), address(result), *inputs, words)
    return result
