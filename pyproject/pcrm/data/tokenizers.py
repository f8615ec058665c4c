"""The identity of a tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def vocabulary_hash(tokenizer: Any) -> str:
    """Return a hash of the tokens and ids of a `transformers` tokenizer, in hexadecimal."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()
