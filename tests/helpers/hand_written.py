"""What the losses and priors are measured against, and checked against once more: what
people write in torch, NumPy and scikit-learn without us.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

Tensor = torch.Tensor


def eager_pairs(chosen: Tensor, rejected: Tensor, delta: Tensor) -> Tensor:
    """A straightforward implementation of the pair loss."""
    margin = chosen - rejected
    return (-logsigmoid(margin) - logsigmoid(delta - margin)).mean()


def eager_tokens(chosen: Tensor, rejected: Tensor, delta: Tensor, inside: Tensor, length: Tensor) -> Tensor:
    """The token form, vectorized, with given spans: a mask (B, L) and their lengths (B,)."""
    margin = chosen - rejected
    loss = -logsigmoid(margin) - logsigmoid(delta[:, None] - margin)
    return ((loss * inside).sum(1) / length).mean()


def loop_tokens(
    chosen: Tensor, rejected: Tensor, chosen_ids: Tensor, rejected_ids: Tensor, delta: Tensor, pad_token_id: int
) -> Tensor:
    """The token form pair by pair, like training scripts that find the spans in Python."""
    loss = chosen.new_zeros(())
    for i in range(len(chosen)):
        a, b = chosen_ids[i], rejected_ids[i]
        different = (a != b).nonzero()
        if len(different) == 0:
            start, end = len(a) - 1, len(a)
        else:
            start = int(different[0])
            ends = []
            for ids in (a, b):
                pads = (ids[start:] == pad_token_id).nonzero()
                ends.append(start + int(pads[0]) if len(pads) else len(ids))
            end = max(ends)
        margin = chosen[i, start:end] - rejected[i, start:end]
        loss = loss + (-logsigmoid(margin) - logsigmoid(delta[i] - margin)).mean()
    return loss / len(chosen)


def eager_dpo(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, delta: Tensor, beta: float
) -> Tensor:
    """A straightforward implementation of the DPO form."""
    z = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return (-logsigmoid(z) - logsigmoid(delta - z)).mean()


def numpy_length_ratio(chosen: np.ndarray, rejected: np.ndarray) -> float:
    n = min(len(chosen), len(rejected))
    different = np.flatnonzero(chosen[:n] != rejected[:n])
    start = different[0] if len(different) else n
    a, b = len(chosen) - start, len(rejected) - start
    return 1.0 if a == b else min(a, b) / max(a, b)


def numpy_length_ratios(
    chosen: np.ndarray, chosen_offsets: np.ndarray, rejected: np.ndarray, rejected_offsets: np.ndarray
) -> np.ndarray:
    return np.array(
        [
            numpy_length_ratio(
                chosen[chosen_offsets[i] : chosen_offsets[i + 1]],
                rejected[rejected_offsets[i] : rejected_offsets[i + 1]],
            )
            for i in range(len(chosen_offsets) - 1)
        ],
        dtype=np.float32,
    )


def _spaced(text: str) -> str:
    return " ".join(["", *text.lower().split(), ""])


def hashing_vectorizer() -> Any:
    """scikit-learn's hashed counts of the n-grams that `pcrm.priors.lexical` uses, normalized to length 1."""
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(analyzer="char", ngram_range=(3, 5), preprocessor=_spaced, alternate_sign=False)


def vectorizer_cosine(vectorizer: Any, chosen: Sequence[str], rejected: Sequence[str]) -> np.ndarray:
    a, b = vectorizer.transform(chosen), vectorizer.transform(rejected)
    return np.asarray(a.multiply(b).sum(axis=1)).ravel()


def einsum_cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    ab, aa, bb = (np.einsum("ij,ij->i", x, y) for x, y in ((a, b), (a, a), (b, b)))
    return (ab / np.sqrt(aa * bb)).clip(0, 1)
