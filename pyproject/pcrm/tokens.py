"""Tokenizers of checkpoints."""

from __future__ import annotations

import os
from typing import Any

from .checkpoints import loading


def load_tokenizer(name: str | os.PathLike[str], **options: Any) -> Any:
    """`AutoTokenizer.from_pretrained` without code of the checkpoint.

    For a checkpoint without a tokenizer that makes up an empty one; here it is an error.

    Args:
        name: A checkpoint's folder or hub name.
        options: `from_pretrained`'s.

    Raises:
        OSError: There is no such checkpoint, it has no tokenizer, or its tokenizer cannot be loaded.
    """
    from transformers import AutoTokenizer

    name = os.fspath(name)
    with loading(name, "its tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise OSError(f"{name}: has no tokenizer. Save one with the checkpoint: tokenizer.save_pretrained(folder)")
    return tokenizer


def pad_token_id(name: str | os.PathLike[str], tokenizer: Any, *ids: int | None) -> int:
    """The id to pad with: the first of `ids` that is not None, else the token that ends a text.

    Raises:
        ValueError: The tokenizer has no token that ends a text, either.
    """
    for found in (*ids, tokenizer.eos_token_id):
        if found is not None:
            return found
    raise ValueError(
        f"{os.fspath(name)}: its tokenizer has neither a pad token nor one that ends a text. "
        "Set tokenizer.pad_token and save it with the checkpoint"
    )
