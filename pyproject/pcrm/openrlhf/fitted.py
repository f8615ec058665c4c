"""Fit a constraint to targets on the priors of OpenRLHF's training data."""

from __future__ import annotations

from typing import Any

from ..settings import Config, Constraint
from ..training.fit import fit as fit_targets

PREFIX = "--pcrm."  # of the flags


def fit(settings: Config, dataset: Any, strategy: Any) -> Constraint:
    """Return the constraint of the settings, fitted to the data if the settings contain targets.

    Args:
        settings: The settings of the constraint.
        dataset: The training data, a `PCRMRewardDataset`.
        strategy: OpenRLHF's strategy, which knows its flags and prints.
    """
    if isinstance(settings.constraint, Constraint):
        return settings.constraint
    # Priors other than the length ratio always come from the column.
    prior = "column" if dataset.column and settings.prior == "length_ratio" else settings.prior
    folder = strategy.args.ckpt.output_dir
    fitted = fit_targets(settings, dataset.similarities(), prior, folder, strategy.print, PREFIX).constraint
    assert isinstance(fitted, Constraint)
    return fitted
