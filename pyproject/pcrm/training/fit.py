"""Targets become a constraint: fitted to the priors of the training data, and kept with what is trained."""

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
# Quantiles of so many pairs are within 0.005 of those of all data, in 95 of 100 samples.
MOST_PAIRS = 10_000
# Of rows whose priors are computed at once.
BATCH = 64


def sampled(pairs: int) -> range:
    """The pairs whose priors `fit` needs where each must be computed: all, or 10,000 evenly spaced ones at most."""
    return range(0, pairs, max(1, -(-pairs // MOST_PAIRS)))


def priors_of(rows: Iterable[Any], prior: Callable[[list[Any]], Any]) -> np.ndarray:
    """The priors that `fit` needs of rows, each of which must be computed, shape (N,).

    Args:
        rows: Those of `sampled`, or a stream, of which the first 10,000 are read.
        prior: Gives the priors of a batch of rows.
    """
    some = itertools.islice(rows, MOST_PAIRS)
    found = [np.zeros(0)]
    while batch := list(itertools.islice(some, BATCH)):
        found.append(np.asarray(prior(batch), np.float64))
    return np.concatenate(found)


def fit(
    settings: Config, similarities: Any, prior: str, folder: str | None, say: Callable[[str], None] = logger.warning
) -> Config:
    """Return the settings with the constraint that their targets want on these similarities; say it and write it.

    Each process computes it, and all take the result of the main one.

    Args:
        settings: Settings whose constraint is `Targets`.
        similarities: The priors of the training data, or of a sample of them, shape (N,).
        prior: What `pcrm.toml` calls the prior: "column" where the data set came with one that nobody named.
        folder: Where `pcrm.toml` is written; None neither writes nor says anything.
        say: What the main process calls with the one line.

    Raises:
        ValueError: there are no similarities, or they do not tell pairs apart.
    """
    if not len(similarities):
        raise ValueError("the train data set has no rows to fit pcrm_target_alike and pcrm_target_unlike to")
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    is_main = not shared or torch.distributed.get_rank() == 0
    with warnings.catch_warnings():
        if not is_main:
            warnings.simplefilter("ignore")  # said by the main process
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
        # By default not an information, which nobody would see.
        say(f"{line}. Written to {Path(folder, FILE)}")
    return settings


def save(settings: Config, folder: str, prior: str, comment: str | None = None) -> None:
    """Write `pcrm.toml` into a folder."""
    assert isinstance(settings.constraint, Constraint)
    comments = [comment] if comment else []
    write_toml(Path(folder, FILE), settings.constraint, prior, comments, form=settings.form)


def resumed(settings: Config, checkpoint: str) -> Config:
    """The settings with the constraint that the checkpoint was trained with."""
    path = Path(checkpoint, FILE)
    if not path.is_file():
        return settings
    constraint = Constraint.from_toml(path)
    if constraint != settings.constraint:
        logger.warning(f"The constraint is that of {path}, with which the run began: {constraint}")
    return dataclasses.replace(settings, constraint=constraint)
