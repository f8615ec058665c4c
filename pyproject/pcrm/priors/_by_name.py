"""Compute a prior of texts by its name, with the encoder or tokenizer that it needs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from .._pretrained import load_tokenizer
from ..data import preferences
from ..settings.rules import COMPUTED_PRIORS
from ._cosine import cosine
from ._length_ratio import length_ratio
from ._lexical import lexical

if TYPE_CHECKING:
    from .encoders import Encoder

_IMPORTED_IN = os.getpid()


def of_texts(
    chosen: Sequence[str],
    rejected: Sequence[str],
    *,
    prior: str = "lexical",
    model: str | os.PathLike[str] | Encoder | None = None,
    tokenizer: Any = None,
    angular: bool = True,
    **encoder: Any,
) -> torch.Tensor:
    """Compute a prior of texts by its name. `annotate` does the same for a batch of rows.

    Args:
        chosen: The texts of the chosen responses, B of them.
        rejected: The texts of the rejected responses, B of them.
        prior, model, tokenizer, angular, encoder: As in `annotate`.

    Returns:
        A float32 tensor of shape (B,).

    Raises:
        ValueError, ImportError: As in `annotate`.
        pcrm.data.preferences.RowError: The model has no embedding for a text.
    """
    how: dict[str, Any] = {"prior": prior, "model": model, "tokenizer": tokenizer, "angular": angular, **encoder}
    result, errors = of_texts_and_errors(chosen, rejected, **how)
    for error in errors.values():
        raise error
    return result


def of_texts_and_errors(
    chosen: Sequence[str],
    rejected: Sequence[str],
    *,
    prior: str = "lexical",
    model: str | os.PathLike[str] | Encoder | None = None,
    tokenizer: Any = None,
    angular: bool = True,
    **encoder: Any,
) -> tuple[torch.Tensor, dict[int, preferences.RowError]]:
    """Like `of_texts`, but continue after a row without a prior, such as an empty response for an encoder.

    Args:
        chosen, rejected, prior, model, tokenizer, angular, encoder: As in `of_texts`.

    Returns:
        A float32 tensor of shape (B,), with NaN for rows without a prior, and the errors of these
        rows by index, in ascending order.

    Raises:
        ValueError, ImportError: As in `of_texts`. Row errors are returned instead of raised.
    """
    check_prior(prior, model, tokenizer, encoder)
    if prior == "lexical":
        return lexical(chosen, rejected), {}
    if prior == "length_ratio":
        if tokenizer is None:
            raise ValueError("tokenizer is missing: prior='length_ratio' requires one to split texts")
        if isinstance(tokenizer, (str, os.PathLike)):
            tokenizer = _tokenizer(os.fspath(tokenizer), os.getpid())
        # A tokenizer returns no ids at all for an empty list of texts.
        ids = [tokenizer(list(t), add_special_tokens=False)["input_ids"] if t else [] for t in (chosen, rejected)]
        return length_ratio(ids[0], ids[1]), {}
    if os.getpid() != _IMPORTED_IN:
        torch.set_num_threads(1)  # a forked child has none of the threads that torch would wait for
    if isinstance(model, (str, os.PathLike)):
        model = _encoder(os.fspath(model), os.getpid(), **encoder)
    assert model is not None
    embeddings, reasons = model.embed_all([*chosen, *rejected])
    for i in (embeddings.norm(dim=1) == 0).nonzero().flatten().tolist():
        reasons.setdefault(i, f"has an all-zero embedding from {model.model}, so its cosine is undefined")
    errors: dict[int, preferences.RowError] = {}
    for i, reason in sorted(reasons.items()):
        side, texts, row = ("chosen", chosen, i) if i < len(chosen) else ("rejected", rejected, i - len(chosen))
        errors.setdefault(row, preferences.RowError(f"{side} {reason}: {texts[row]!r:.80}", row))
    result = torch.full((len(chosen),), torch.nan, dtype=torch.float32, device=embeddings.device)
    good = [row for row in range(len(chosen)) if row not in errors]
    a, b = (embeddings[[row + start for row in good]] for start in (0, len(chosen)))
    result[good] = cosine(a, b, angular)
    return result, dict(sorted(errors.items()))


def check_prior(prior: str, model: Any, tokenizer: Any, encoder: dict[str, Any]) -> None:
    if prior not in COMPUTED_PRIORS:
        raise ValueError(f"prior must be one of {', '.join(COMPUTED_PRIORS)}, got {prior!r}")
    if prior == "cosine" and model is None:
        raise ValueError("model is missing: prior='cosine' requires one")
    if prior != "cosine" and model is not None:
        raise ValueError(f"model must be None for prior={prior!r}, which does not use one")
    if prior != "length_ratio" and tokenizer is not None:
        raise ValueError(f"tokenizer must be None for prior={prior!r}, which does not use one")
    if encoder and not isinstance(model, (str, os.PathLike)):
        raise ValueError(f"{', '.join(encoder)} must not be set unless model is the path or name of a checkpoint")


# Cached by process: a forked child must not use what it inherits, such as a CUDA context.
@lru_cache(maxsize=2)
def _encoder(model: str, process: int, **settings: Any) -> Encoder:
    from .encoders import Encoder

    return Encoder(model, **settings)


@lru_cache(maxsize=2)
def _tokenizer(name: str, process: int) -> Any:
    return load_tokenizer(name)


def forget_models() -> None:
    """Drop the encoders and tokenizers that `annotate` keeps in this process, which frees their GPU memory."""
    _encoder.cache_clear()
    _tokenizer.cache_clear()
