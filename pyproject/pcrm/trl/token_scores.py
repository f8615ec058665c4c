"""Read what a reward model's module `score` computes for every token; the model returns only the last token's score.

`pcrm_form="token"` needs the scores of all tokens. `pcrm_sft_eta` needs the likelihood of the chosen responses under a
language-model head on the same hidden states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from ..training.metrics import Demonstrations

Tensor = torch.Tensor
Head = Callable[[Tensor], Tensor]


@dataclass
class Seen:
    """The results of the module `score` in a forward pass, set at its end."""

    scores: Tensor | None = None  # of all tokens
    demonstrations: Demonstrations | None = None  # with a language-model head


class TokenScores(torch.nn.Module):
    """A reward model's `score` that also keeps the scores of all tokens and, with a language-model head, the likelihood of
    the chosen responses.

    It runs inside the model's forward pass, where mixed precision applies and DDP sees which parameters are used.
    """

    def __init__(self, head: Head | None) -> None:
        super().__init__()
        # In tuples, so that the model's modules are not registered as submodules.
        self._head = (head,)
        self._score: tuple[torch.nn.Module] | None = None
        self._clear()

    def _clear(self) -> None:
        self._scores: Tensor | None = None
        self._nll: Tensor | None = None
        # For the chosen responses: which tokens are predicted, and their ids.
        self._inside: Tensor | None = None
        self._targets: Tensor | None = None

    @contextlib.contextmanager
    def reading(self, model: Any, inputs: dict[str, Any]) -> Iterator[Seen]:
        """Replace the model's module `score` within this block, and call it.

        A hook would not work: torch.compile reuses a graph that was compiled without it, and never calls it. A module of a
        different type makes torch.compile recompile.
        """
        seen = Seen()
        name, score = modules_named(model, "score")[0]
        parent = model.get_submodule(name.rpartition(".")[0])
        self._begin(score, inputs)
        parent.score = self
        try:
            yield seen
        finally:
            parent.score = score
            self._end(seen)
        if seen.scores is None:
            raise RuntimeError(
                f"the forward pass of {type(model).__name__} must call its module {name!r}, got one that does not: "
                "pcrm_form='token' and pcrm_sft_eta do not work with this model"
            )

    def _begin(self, score: torch.nn.Module, inputs: dict[str, Any]) -> None:
        self._clear()
        self._score = (score,)
        if self._head[0] is None:
            return
        (ids, others), (real, theirs) = inputs["input_ids"].chunk(2), inputs["attention_mask"].bool().chunk(2)
        inside = (((ids != others) | (real != theirs)).cumsum(1) > 0) & real
        self._inside, self._targets = inside[:, 1:], ids[:, 1:]

    def _end(self, seen: Seen) -> None:
        seen.scores = self._scores
        if self._nll is not None and self._inside is not None:
            seen.demonstrations = Demonstrations(self._nll, self._inside.sum(1))
        self._score = None
        self._clear()

    def forward(self, states: Tensor) -> Tensor:
        assert self._score is not None
        self._scores = scores = self._score[0](states)
        head, inside, targets = self._head[0], self._inside, self._targets
        if head is None or inside is None or targets is None:
            return scores
        logits = upcast(head(states[: len(inside), :-1][inside]))
        by_token = F.cross_entropy(logits, targets[inside], reduction="none")
        self._nll = by_token.new_zeros(inside.shape).masked_scatter(inside, by_token).sum(1)
        return scores + 0 * self._nll.sum()  # DDP considers parameters unused if no output depends on them


def modules_named(model: torch.nn.Module, last: str) -> list[tuple[str, torch.nn.Module]]:
    """The names and modules whose name ends with `last`."""
    return [(name, module) for name, module in model.named_modules() if name.split(".")[-1] == last]


def language_model_head(model: Any) -> Head:
    """Return the function that maps the model's last hidden states to logits.

    Raises:
        ValueError: The model has no language-model head, or its head is not a linear map.
    """
    config = model.config.get_text_config()
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier"):
        if (value := getattr(config, name, None)) not in (None, 1):
            raise ValueError(
                f"{name} of {type(model).__name__} must be unset or 1 with pcrm_sft_eta, which needs logits linear in the last "
                f"hidden states, got {value}"
            )
    if heads := modules_named(model, "lm_head"):
        return heads[0][1]
    if not getattr(config, "tie_word_embeddings", False):
        raise ValueError(
            f"model must have a module 'lm_head' or tied embeddings with pcrm_sft_eta, got {type(model).__name__} with neither: "
            "set model.lm_head to the head of the language model it was made from"
        )
    embeddings = model.get_input_embeddings()
    return lambda states: F.linear(states, embeddings.weight)


def upcast(scores: Tensor) -> Tensor:
    """Convert scores to float32 at least: the difference of two bfloat16 scores has few significant digits."""
    return scores if scores.dtype == torch.float64 else scores.float()
