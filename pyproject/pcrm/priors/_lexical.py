"""The prior `lexical`: the n-grams shared by two responses."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._engine import torch_reference
from .._engine.native import chosen_library
from .._engine.texts import lexicals, packed_texts


def lexical(chosen: Sequence[str], rejected: Sequence[str], *, words: bool = False) -> torch.Tensor:
    """Cosine similarity of the n-gram counts of two responses. Needs no encoder.

        s = sum_g A[g] B[g] / sqrt(sum_g A[g]^2 sum_g B[g]^2)

    The sum runs over n-grams of 3 to 5 characters, which work in any language, or of 1 and 2
    words. Texts are compared in lower case, with each run of white space as one space. Equal texts
    have s = 1 exactly. A text and an empty text have s = 0. The documentation of Lexical in the Go
    package has the exact definition.

    Args:
        chosen: The texts of the chosen responses, B of them.
        rejected: The texts of the rejected responses, B of them.
        words: Whether to use n-grams of words instead of characters.

    Returns:
        A float32 tensor of shape (B,), with values in [0, 1].

    Raises:
        TypeError: An argument is not a sequence of texts, or an element is not a str; the message names its index.
        ValueError: The numbers of texts differ, or a text is not valid Unicode.
    """
    for name, texts in (("chosen", chosen), ("rejected", rejected)):
        if isinstance(texts, (str, bytes)) or not hasattr(texts, "__len__"):
            raise TypeError(f"{name} must be a sequence of texts, got {type(texts).__name__}")
    if len(chosen) != len(rejected):
        raise ValueError(f"chosen and rejected must have the same length, got {len(chosen)} and {len(rejected)} texts")
    native = chosen_library()
    if native is None:
        for name, texts in (("chosen", chosen), ("rejected", rejected)):
            packed_texts(name, texts)  # checks them
        pairs = zip(chosen, rejected, strict=True)
        return torch.tensor([torch_reference.lexical(a, b, words) for a, b in pairs], dtype=torch.float32, device="cpu")
    return torch.tensor(lexicals(native, chosen, rejected, words), dtype=torch.float32, device="cpu")
