"""Targets become a constraint: fitted to the priors of OpenRLHF's training data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..settings import Config, Constraint
from ..settings.fitted import fit_line, write_toml


def fit(settings: Config, dataset: Any, strategy: Any) -> Constraint:
    """Return the constraint of the settings, fitted to the data if they have targets.

    Each process computes it, and all take that of the first, which prints one line and writes
    `pcrm.toml` into `--ckpt.output_dir`.

    Args:
        settings: What the flags say about the constraint.
        dataset: The training data, a `PCRMRewardDataset`.
        strategy: OpenRLHF's, which knows its flags and processes.
    """
    if isinstance(settings.constraint, Constraint):
        return settings.constraint
    s = dataset.similarities()
    found = [settings.fitted(s).constraint]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(found)
    constraint = found[0]
    assert isinstance(constraint, Constraint)
    if strategy.is_rank_0():
        # Other priors than the length ratio are always in the column.
        prior = "column" if dataset.column and settings.prior == "length_ratio" else settings.prior
        line = fit_line(s, constraint, prior)
        path = Path(strategy.args.ckpt.output_dir, "pcrm.toml")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_toml(path, constraint, prior, [line])
        strategy.print(f"{line}. Written to {path}")
    return constraint
