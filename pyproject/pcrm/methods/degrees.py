"""Responses that are worse by known degrees, and a head that learns their order.

OUR READING of self-supervised preference optimization (SPO, arXiv 2409.17791), from its abstract:
responses are degraded to known degrees by removing key content, a module learns the degrees, and
its loss is added to that of the alignment. The paper's own loss, choice of key content and
weights may differ; these are ours:

    key content   the words that the fewest texts of the data set have
    the head      a linear one, on the last token's hidden state
    its loss      the pairwise logistic loss of neighboring degrees

Nobody has to label anything: the degree of a text is how much was taken from it.
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

# A word goes with the white space before it, so that what is left reads on.
_WORD = re.compile(r"\s*(\S+)")


def document_frequencies(texts: Iterable[str]) -> dict[str, int]:
    """In how many of the texts each word is, in lower case and without the punctuation around it."""
    return dict(Counter(word for text in texts for word in {_plain(m[1]) for m in _WORD.finditer(text)}))


def degrade(
    text: str, degrees: Sequence[float], *, frequencies: Mapping[str, int] | None = None, seed: int = 0
) -> list[str]:
    """The text with growing shares of its words removed, one text for each degree.

    Degree d takes ceil(d * n) of n words: those of the least frequency, and of equal ones those
    of the least hash of (seed, text, place). So a degree takes all that a smaller one does, and
    the same text always loses the same words. Few words have few degrees: two texts may be equal.
    d is the decimal number that Python prints, and the product is exact: 0.07 of 100 words are 7.

    Args:
        text: Of any language that has spaces between its words.
        degrees: Shares in (0, 1], each greater than the one before.
        frequencies: Of words, as `document_frequencies` counts them; one that is not there counts
            as 0. None removes words by their hashes alone, key content or not.
        seed: An integer.

    Raises:
        TypeError: the text is none; a degree that is no number.
        ValueError: no degrees, or one out of its range or order.
    """
    if not isinstance(text, str):
        raise TypeError(f"text is {text!r:.80}, must be a text")
    for i, d in enumerate(degrees):
        _check.number(f"degrees[{i}]", d)
        if not 0 < d <= 1:
            raise ValueError(f"degrees[{i}] is {d}, must be in (0, 1]")
        if i and d <= degrees[i - 1]:
            raise ValueError(f"degrees[{i}] is {d}, must be greater than degrees[{i - 1}], which is {degrees[i - 1]}")
    if not len(degrees):
        raise ValueError("degrees are empty, must be at least one")
    words = list(_WORD.finditer(text))
    counts = frequencies or {}

    def rank(i: int) -> tuple[int, bytes]:
        return counts.get(_plain(words[i][1]), 0), hashlib.sha256(f"{seed} {i} {text}".encode()).digest()

    order = sorted(range(len(words)), key=rank)
    end = text[words[-1].end() :] if words else text
    texts = []
    for d in degrees:
        # By floating point 0.07 * 100 is a little more than 7, and its ceiling is 8.
        removed = set(order[: math.ceil(Fraction(str(d)) * len(words))])
        texts.append("".join(m[0] for i, m in enumerate(words) if i not in removed) + end)
    return texts


class DegreeHead(nn.Module):
    """A score of how little was taken from a text: a linear function of its last token's hidden state.

    Args:
        hidden_size: H, the width of the model's hidden states.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores, shape (N,), in the head's dtype.

        Args:
            hidden_states: Of the model's last layer, shape (N, L, H).
            attention_mask: 1 for tokens and 0 for padding, on either side; shape (N, L).

        Raises:
            ValueError: the shapes do not go together.
        """
        if hidden_states.dim() != 3 or attention_mask.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"hidden_states has shape {tuple(hidden_states.shape)}, must be (N, L, H); "
                f"attention_mask has shape {tuple(attention_mask.shape)}, must be (N, L)"
            )
        places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        last = (attention_mask.bool() * places).argmax(1)
        states = hidden_states[torch.arange(len(last), device=last.device), last]
        return self.linear(states.to(self.linear.weight.dtype)).squeeze(1)


def degree_loss(scores: Tensor) -> Tensor:
    """The loss of degrees that are out of order: the mean over neighbors of -log sigmoid(better - worse).

    It is `pcrm.functional.pcrm_loss` with an infinite delta, the Bradley-Terry loss.

    Args:
        scores: Of each text in all of its degrees, the whole text first and the most degraded
            one last; shape (B, D), D at least 2, floating point.

    Raises:
        ValueError: another shape, or an empty batch.
        TypeError: scores of a dtype that `pcrm_loss` does not take.
    """
    if scores.dim() != 2 or scores.shape[1] < 2 or not len(scores):
        raise ValueError(f"scores has shape {tuple(scores.shape)}, must be (B, D) with B at least 1 and D at least 2")
    return pcrm_loss(scores[:, :-1].flatten(), scores[:, 1:].flatten(), math.inf)


def _plain(word: str) -> str:
    return re.sub(r"^\W+|\W+$", "", word.lower())
