"""The prior of each pair in a batch: read from the column `prior`, or computed from token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .. import priors
from ..priors import prior_tensor
from ..settings import Config, Constraint

Ids = Sequence[Sequence[int]]


def prior_of(
    settings: Config,
    rows: Sequence[Mapping[str, Any]],
    ids: Callable[[str], tuple[Ids, Ids]],
    prefix: str = "pcrm_",
) -> torch.Tensor | None:
    """Return the prior of each pair, shape (B,), or None if the constraint needs none.

    Args:
        settings: Selects the prior. A column `prior` in the rows takes precedence over the length ratio.
        rows: The rows of the batch.
        ids: Returns the token ids of the chosen and rejected responses as the loss sees them: truncated, and
            without padding. It is called with the name of the prior that needs them.
        prefix: Prefix of the settings' names in messages.

    Raises:
        ValueError: Only some rows have a prior, a prior is outside [0, 1], or the rows lack a prior that only a column
            can supply.
    """
    kind = settings.prior
    if kind == "fixed":
        return None
    if kind == "random":
        assert isinstance(settings.constraint, Constraint)  # targets exclude the prior 'random'
        return priors.random_uniform(*ids(kind), seed=settings.constraint.seed)
    if any("prior" in row for row in rows):
        return prior_tensor(_column(rows))
    if kind == "length_ratio":
        return priors.length_ratio(*ids(kind))
    raise ValueError(f"the data set must have a column 'prior' with {prefix}prior={kind!r}, got rows without it")


def _column(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The column `prior` of a batch."""
    for i, row in enumerate(rows):  # rows of an iterable data set may have different keys
        if "prior" not in row:
            raise ValueError(
                f"row {i} of a batch must have a 'prior', because other rows have one, got none: give one to every row or to no row"
            )
    return [row["prior"] for row in rows]
