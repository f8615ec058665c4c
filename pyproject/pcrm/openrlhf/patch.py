"""Run OpenRLHF's command lines with the prior-constrained loss."""

from __future__ import annotations

import functools
import importlib
import runpy
import sys
from importlib.metadata import version
from typing import Any

from ..settings import Config, Targets

# Maps a replaced name to its module in OpenRLHF and our replacement.
Replacements = dict[str, tuple[str, Any]]


def replacements(
    command: str, settings: Config, *, computed: bool = False, prefix_sharing: bool = False
) -> Replacements:
    """Return the trainer for a command line of OpenRLHF, and the data set if the constraint needs a prior.

    Args:
        command: "train_rm" or "train_dpo".
        settings: The settings of the constraint.
        computed: Whether the length ratio was explicitly requested, so that a column `prior` is an error.
        prefix_sharing: As in the trainers.

    Raises:
        ImportError: OpenRLHF is not installed.
    """
    from . import training

    replaced: Replacements = {}
    constraint = settings.constraint
    if command == "train_dpo":
        trainer = functools.partial(training.PCRMDPOTrainer, constraint=settings, prefix_sharing=prefix_sharing)
        replaced["DPOTrainer"] = ("openrlhf.trainer.dpo_trainer", trainer)
    else:
        trainer = functools.partial(training.PCRMRewardModelTrainer, loss_fn=settings, prefix_sharing=prefix_sharing)
        replaced["RewardModelTrainer"] = ("openrlhf.trainer.rm_trainer", trainer)
    if isinstance(constraint, Targets) or not constraint.is_fixed:
        seed = 0 if isinstance(constraint, Targets) else constraint.seed
        dataset = functools.partial(training.PCRMRewardDataset, prior=settings.prior, seed=seed, computed=computed)
        replaced["RewardDataset"] = ("openrlhf.datasets", dataset)
    return replaced


def run(command: str, replaced: Replacements, argv: list[str]) -> None:
    """Install the replacements in OpenRLHF and run its command line, which parses its flags only under `__main__`.

    Raises:
        RuntimeError: The installed version's command line does not use a replacement.
    """
    name = f"openrlhf.cli.{command}"
    for attribute, (module, ours) in replaced.items():
        setattr(importlib.import_module(module), attribute, ours)
    # Importing it does not train, and shows whether it uses the replacements.
    cli = importlib.import_module(name)
    for attribute, (module, ours) in replaced.items():
        if getattr(cli, attribute, None) is not ours:
            raise RuntimeError(
                f"{name} must import {attribute} from {module}, got openrlhf {version('openrlhf')}, which does not: this version "
                "is not supported"
            )
    del sys.modules[name]  # runpy warns about modules that are already imported
    sys.argv = [name, *argv]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
