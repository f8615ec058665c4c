"""Tokenizers of checkpoints."""

from __future__ import annotations

import os
from typing import Any


def load_tokenizer(name: str | os.PathLike[str], **options: Any) -> Any:
    """`AutoTokenizer.from_pretrained`, but for a checkpoint without a tokenizer, for which that makes up an empty one.

    Args:
        name: A checkpoint's folder or hub name.
        options: `from_pretrained`'s.

    Raises:
        OSError: there is no such checkpoint, it has no tokenizer, or none that can be loaded.
    """
    from transformers import AutoTokenizer

    name = os.fspath(name)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, **options)
    except (ValueError, OSError) as error:  # which speak of the hub alone, or do not say whose tokenizer it is
        what = "its tokenizer cannot be loaded" if os.path.isdir(name) else "is no folder, and by that name on the hub"
        raise OSError(f"{name}: {what}: {error}") from None
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise OSError(f"{name}: has no tokenizer")
    return tokenizer
