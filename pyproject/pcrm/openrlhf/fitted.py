"""Targets become a constraint: fitted to the priors of OpenRLHF's training data."""

from __future__ import annotations

from typing import Any

from ..settings import Config, Constraint
from ..training.fit import fit as fit_targets


def fit(settings: Config, dataset: Any, strategy: Any) -> Constraint:
    """Return the constraint of the settings, fitted to the data if they have targets.

    Args:
        settings: What the flags say about the constraint.
        dataset: The training data, a `PCRMRewardDataset`.
        strategy: OpenRLHF's, which knows its flags and prints.
    """
    if isinstance(settings.constraint, Constraint):
        return settings.constraint
    # Other priors than the length ratio are always in the column.
    prior = "column" if dataset.column and settings.prior == "length_ratio" else settings.prior
    folder = strategy.args.ckpt.output_dir
    fitted = fit_targets(settings, dataset.similarities(), prior, folder, strategy.print).constraint
    assert isinstance(fitted, Constraint)
    return fitted
