"""The prior `lexical`: the n-grams that two responses share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._engine import torch_reference
from .._engine.native import chosen_library
from .._engine.texts import lexicals, packed_texts


def lexical(chosen: Sequence[str], rejected: Sequence[str], *, words: bool = False) -> torch.Tensor:
    """Cosine of the n-gram counts of two responses, for machines with no encoder.

        s = sum_g A[g] B[g] / sqrt(sum_g A[g]^2 sum_g B[g]^2)

    over the n-grams of 3 to 5 characters, which need no idea of what a word is in the
    language at hand, or of 1 and 2 words. Texts are compared in lower case with runs of
    white space as one space. Equal texts have exactly 1, a text and an empty one 0. The Go
    package's documentation of Lexical says it to the letter.

    Args:
        chosen: The texts of the preferred responses, B of them.
        rejected: Those of the others.
        words: Whether to take n-grams of words.

    Returns:
        float32, shape (B,).

    Raises:
        TypeError: an element is no text, named by its index.
        ValueError: different numbers of texts; a text that is no valid Unicode.
    """
    if len(chosen) != len(rejected):
        raise ValueError(f"rejected has {len(rejected)} texts, chosen has {len(chosen)}")
    native = chosen_library()
    if native is None:
        for name, texts in (("chosen", chosen), ("rejected", rejected)):
            packed_texts(name, texts)  # checks them
        pairs = zip(chosen, rejected, strict=True)
        return torch.tensor([torch_reference.lexical(a, b, words) for a, b in pairs], dtype=torch.float32, device="cpu")
    return torch.tensor(lexicals(native, chosen, rejected, words), dtype=torch.float32, device="cpu")
