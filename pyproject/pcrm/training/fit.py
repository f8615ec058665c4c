"""Fit a constraint to targets on the priors of the training data, and keep it with the model."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..settings import Config, Constraint
from ..settings.fitted import fit_line, write_toml

logger = logging.getLogger(__name__)

FILE = "pcrm.toml"
# With this many pairs, quantiles are within 0.005 of those of all data in 95% of samples.
MOST_PAIRS = 10_000
# Rows per call that computes priors.
BATCH = 64


def sampled(pairs: int) -> range:
    """The indices of the pairs that `fit` uses if priors must be computed: all, or at most 10,000 evenly spaced ones."""
    return range(0, pairs, max(1, -(-pairs // MOST_PAIRS)))


def priors_of(rows: Iterable[Any], prior: Callable[[list[Any]], Any]) -> np.ndarray:
    """Compute the priors of rows for `fit`, shape (N,).

    Args:
        rows: The rows that `sampled` selects, or a stream; only its first 10,000 rows are read.
        prior: Returns the priors of a batch of rows.
    """
    some = itertools.islice(rows, MOST_PAIRS)
    found = [np.zeros(0)]
    while batch := list(itertools.islice(some, BATCH)):
        found.append(np.asarray(prior(batch), np.float64))
    return np.concatenate(found)


def fit(
    settings: Config,
    similarities: Any,
    prior: str,
    folder: str | None,
    say: Callable[[str], None] = logger.warning,
    prefix: str = "pcrm_",
) -> Config:
    """Return the settings with a constraint fitted to their targets on these similarities; log it and write it.

    Every process computes the fit, and all use the result of the main process.

    Args:
        settings: Settings whose constraint is `Targets`.
        similarities: The priors of the training data, or of a sample of them, shape (N,).
        prior: Name of the prior in `pcrm.toml`: "column" for an unnamed prior that came with the data.
        folder: Where to write `pcrm.toml`; None writes and logs nothing.
        say: Called with the log line in the main process.
        prefix: Prefix of the settings' names in messages.

    Raises:
        ValueError: There are no similarities, or they do not distinguish the pairs.
    """
    if not len(similarities):
        raise ValueError(
            f"the train data set must have at least one row to fit {prefix}target_alike and {prefix}target_unlike to, got none"
        )
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    is_main = not shared or torch.distributed.get_rank() == 0
    with warnings.catch_warnings():
        if not is_main:
            warnings.simplefilter("ignore")  # the main process warns
        try:
            constraint = settings.fitted(similarities).constraint
        except ValueError as error:
            raise ValueError(f"the prior {prior!r} of the training data: {error}") from None
    found = [constraint]
    if shared:
        torch.distributed.broadcast_object_list(found)
    (constraint,) = found
    assert isinstance(constraint, Constraint)
    settings = dataclasses.replace(settings, constraint=constraint)
    if is_main and folder is not None:
        line = fit_line(similarities, constraint, prior)
        Path(folder).mkdir(parents=True, exist_ok=True)
        save(settings, folder, prior, line)
        # A warning by default: nobody would see an info message.
        say(f"{line}. Written to {Path(folder, FILE)}")
    return settings


def save(settings: Config, folder: str, prior: str, comment: str | None = None) -> None:
    """Write `pcrm.toml` to a folder."""
    assert isinstance(settings.constraint, Constraint)
    comments = [comment] if comment else []
    write_toml(Path(folder, FILE), settings.constraint, prior, comments, form=settings.form)


def resumed(settings: Config, checkpoint: str) -> Config:
    """Return the settings with the constraint that the checkpoint was trained with."""
    path = Path(checkpoint, FILE)
    if not path.is_file():
        return settings
    constraint = Constraint.from_toml(path)
    if constraint != settings.constraint:
        logger.warning(f"Resuming with the constraint of {path}, which the run started with: {constraint}")
    return dataclasses.replace(settings, constraint=constraint)
