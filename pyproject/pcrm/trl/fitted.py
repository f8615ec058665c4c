"""Targets become a constraint: fitted to the priors of the training data, and kept with what is trained.

The trainers call `fit` at the end of their construction, when the data set is tokenized.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..settings import Config, Constraint, Targets
from ..settings.fitted import fit_line, write_toml
from .collator import PriorCollator

logger = logging.getLogger(__name__)

FILE = "pcrm.toml"
# Quantiles of so many pairs are within 0.005 of those of all data, in 95 of 100 samples.
_MOST_PAIRS = 10_000
_BATCH = 64


def fit(settings: Config, dataset: Any, collator: Any, output_dir: str | None, prior: str) -> Config:
    """Return the settings with the constraint that their targets want of a trainer's data; log it and write it.

    The priors are those that the trainer's batches have. A column `prior` is read whole. What is
    computed from token ids is that of 10,000 rows at most: evenly spaced ones, of streaming data the first.
    Each process computes them, and all take the result of the main one.

    Args:
        settings: What the arguments say about the constraint.
        dataset: The training data, as TRL prepared it.
        collator: The trainer's collator.
        output_dir: Where `pcrm.toml` is written; None neither writes nor logs.
        prior: What `pcrm.toml` calls the prior: "column" where the data set came with one that nobody named.

    Raises:
        ValueError: the priors do not tell pairs apart; as from `PriorCollator`.
    """
    if not isinstance(settings.constraint, Targets):
        return settings
    state = PartialState()
    s = similarities(settings, dataset, collator)
    if not len(s):
        raise ValueError("the train data set has no rows to fit pcrm_target_alike and pcrm_target_unlike to")
    with warnings.catch_warnings():
        if not state.is_main_process:
            warnings.simplefilter("ignore")  # said by the main process
        try:
            constraint = settings.fitted(s).constraint
        except ValueError as error:
            raise ValueError(f"the prior {prior!r} of the training data: {error}") from None
    found = [constraint]
    if state.num_processes > 1:
        broadcast_object_list(found)
    (constraint,) = found
    assert isinstance(constraint, Constraint)
    settings = dataclasses.replace(settings, constraint=constraint)
    if state.is_main_process and output_dir is not None:
        line = fit_line(s, constraint, prior)
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save(settings, output_dir, prior, line)
        # Not an information, which nobody would see.
        logger.warning(f"{line}. Written to {Path(output_dir, FILE)}")
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


def similarities(settings: Config, dataset: Any, collator: Any) -> np.ndarray:
    """The priors of the training data that `fit` looks at.

    Args:
        settings: What the arguments say about the constraint, whose prior is not "fixed".
        dataset: The training data, as TRL prepared it.
        collator: The trainer's collator, as TRL made it.
    """
    if "prior" in (dataset.column_names or ()) and hasattr(dataset, "num_rows"):
        found = [dataset["prior"][:]]
    else:
        collate = PriorCollator(collator, settings)
        found = [collate(rows)["prior"].numpy() for rows in _batches(dataset)]
    return np.concatenate([np.zeros(0), *(np.asarray(s, np.float64) for s in found)])


def _batches(dataset: Any) -> Iterator[list[dict[str, Any]]]:
    if hasattr(dataset, "num_rows"):
        step = max(1, -(-dataset.num_rows // _MOST_PAIRS))
        rows = (row for start in range(0, dataset.num_rows, _BATCH * step) for row in _rows(dataset, start, step))
    else:
        rows = itertools.islice(iter(dataset), _MOST_PAIRS)
    while batch := list(itertools.islice(rows, _BATCH)):
        yield batch


def _rows(dataset: Any, start: int, step: int) -> list[dict[str, Any]]:
    """The next rows, read at once: one by one takes several times as long."""
    columns = dataset[range(start, min(start + _BATCH * step, dataset.num_rows), step)]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
