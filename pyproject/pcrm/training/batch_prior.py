"""The prior of each pair in a batch: from the column `prior` of its rows, or computed from token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .. import priors
from ..priors import prior_tensor
from ..settings import Config, Constraint

Ids = Sequence[Sequence[int]]


def prior_of(
    settings: Config, rows: Sequence[Mapping[str, Any]], ids: Callable[[str], tuple[Ids, Ids]]
) -> torch.Tensor | None:
    """The prior of each pair, shape (B,), or None where the constraint needs none.

    Args:
        settings: Which prior it is. A column `prior` of the rows goes before the length ratio.
        rows: The rows of the batch.
        ids: Gives the token ids of the chosen and of the rejected responses that the loss sees: truncated, and
            without padding. It is called with the name of the prior that needs them.

    Raises:
        ValueError: some rows have a prior and others none; a prior outside [0, 1]; a prior is needed that only a
            column could have.
    """
    kind = settings.prior
    if kind == "fixed":
        return None
    if kind == "random":
        assert isinstance(settings.constraint, Constraint)  # targets have no prior that is random
        return priors.random_uniform(*ids(kind), seed=settings.constraint.seed)
    if any("prior" in row for row in rows):
        return prior_tensor(_column(rows))
    if kind == "length_ratio":
        return priors.length_ratio(*ids(kind))
    raise ValueError(f"the data set has no column 'prior', which pcrm_prior={kind!r} needs here")


def _column(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The priors of the rows of a data set that has a column of them."""
    for i, row in enumerate(rows):  # rows of an iterable data set may have keys of their own
        if "prior" not in row:
            raise ValueError(f"row {i} of a batch has no 'prior', others of it have: give one to each row or to none")
    return [row["prior"] for row in rows]
