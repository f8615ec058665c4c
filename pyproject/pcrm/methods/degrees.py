"""Degrade responses by known degrees, and train a head to learn their order.

This is OUR READING of self-supervised preference optimization (SPO, arXiv 2409.17791), based on its
abstract: responses are degraded to known degrees by removing key content, a module learns the
degrees, and its loss is added to the alignment loss. The paper's loss, key content and weights may
differ. Ours are:

    key content   the words that occur in the fewest texts of the data set
    the head      linear, on the last token's hidden state
    its loss      the pairwise logistic loss of neighboring degrees

No labels are needed: the degree of a text is the fraction of its words that was removed.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import torch
from torch import nn

from .. import _check
from ..functional import pcrm_loss

Tensor = torch.Tensor

# A word is removed together with the white space before it, so that the rest reads normally.
_WORD = re.compile(r"\s*(\S+)")


def document_frequencies(texts: Iterable[str]) -> dict[str, int]:
    """Count the texts that contain each word.

    Args:
        texts: The texts of a data set.

    Returns:
        The number of texts for each word, in lower case and without surrounding punctuation.
    """
    return dict(Counter(word for text in texts for word in {_plain(m[1]) for m in _WORD.finditer(text)}))


def degrade(
    text: str, degrees: Sequence[float], *, frequencies: Mapping[str, int] | None = None, seed: int = 0
) -> list[str]:
    """Remove growing fractions of a text's words, and return one text for each degree.

    Degree d removes ceil(d * n) of the n words: the least frequent first. Ties are broken by a hash
    of (seed, text, position). A degree therefore removes all words that a smaller degree removes,
    and the same text always loses the same words. In a short text, two degrees may give equal texts.
    d is taken as the decimal number that Python prints, and the product is exact: 0.07 of 100 words
    is 7 words.

    Args:
        text: A text in any language that puts spaces between words.
        degrees: Fractions in (0, 1], each greater than the one before.
        frequencies: The frequency of each word, from `document_frequencies`. A missing word counts
            as 0. None removes words by their hashes alone, whether they are key content or not.
        seed: An integer.

    Returns:
        One text for each degree, in the order of `degrees`.

    Raises:
        TypeError: `text` is not a str, or a degree is not a number.
        ValueError: There are no degrees, or one is out of range or out of order.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, got {text!r:.80}")
    for i, d in enumerate(degrees):
        _check.number(f"degrees[{i}]", d)
        if not 0 < d <= 1:
            raise ValueError(f"degrees[{i}] must be in (0, 1], got {d}")
        if i and d <= degrees[i - 1]:
            raise ValueError(f"degrees[{i}] must be greater than degrees[{i - 1}], which is {degrees[i - 1]}, got {d}")
    if not len(degrees):
        raise ValueError("degrees must have at least one element, got none")
    words = list(_WORD.finditer(text))
    counts = frequencies or {}

    def rank(i: int) -> tuple[int, bytes]:
        return counts.get(_plain(words[i][1]), 0), hashlib.sha256(f"{seed} {i} {text}".encode()).digest()

    order = sorted(range(len(words)), key=rank)
    end = text[words[-1].end() :] if words else text
    texts = []
    for d in degrees:
        # In floating point, 0.07 * 100 is slightly more than 7, and its ceiling would be 8.
        removed = set(order[: math.ceil(Fraction(str(d)) * len(words))])
        texts.append("".join(m[0] for i, m in enumerate(words) if i not in removed) + end)
    return texts


class DegreeHead(nn.Module):
    """Linear head that scores how little was removed from a text, from the hidden state of its last token.

    Args:
        hidden_size: H, the width of the model's hidden states.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """Return scores of shape (N,), in the head's dtype.

        Args:
            hidden_states: Hidden states of the model's last layer, shape (N, L, H).
            attention_mask: 1 for tokens and 0 for padding, on either side, shape (N, L).

        Raises:
            ValueError: The shapes do not match.
        """
        if hidden_states.dim() != 3 or attention_mask.shape != hidden_states.shape[:2]:
            raise ValueError(
                "hidden_states and attention_mask must have shapes (N, L, H) and (N, L), got "
                f"{tuple(hidden_states.shape)} and {tuple(attention_mask.shape)}"
            )
        places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        last = (attention_mask.bool() * places).argmax(1)
        states = hidden_states[torch.arange(len(last), device=last.device), last]
        return self.linear(states.to(self.linear.weight.dtype)).squeeze(1)


def degree_loss(scores: Tensor) -> Tensor:
    """Ranking loss of the degrees of a text: the mean over neighbors of -log sigmoid(better - worse).

    This is `pcrm.functional.pcrm_loss` with an infinite delta, the Bradley-Terry loss.

    Args:
        scores: The scores of each text in all its degrees, from the whole text to the most degraded
            one, shape (B, D), D at least 2, floating point.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: The shape is wrong, or the batch is empty.
        TypeError: `pcrm_loss` does not accept the dtype of the scores.
    """
    if scores.dim() != 2 or scores.shape[1] < 2 or not len(scores):
        raise ValueError(f"scores must have shape (B, D) with B at least 1 and D at least 2, got {tuple(scores.shape)}")
    return pcrm_loss(scores[:, :-1].flatten(), scores[:, 1:].flatten(), math.inf)


def _plain(word: str) -> str:
    return re.sub(r"^\W+|\W+$", "", word.lower())
