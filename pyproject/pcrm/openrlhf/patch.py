"""Run OpenRLHF's command lines with the prior-constrained loss in the place of its own."""

from __future__ import annotations

import functools
import importlib
import runpy
import sys
from importlib.metadata import version
from typing import Any

from ..settings import Config, Targets

# By the name that is replaced: the module of OpenRLHF that has it, and ours.
Replacements = dict[str, tuple[str, Any]]


def replacements(
    command: str, settings: Config, *, computed: bool = False, prefix_sharing: bool = False
) -> Replacements:
    """The trainer, and the data set if the constraint needs a prior, for a command line of OpenRLHF.

    Args:
        command: "train_rm" or "train_dpo".
        computed: Whether the length ratio was asked for, so that data with a column `prior` are refused.
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
    """Put the replacements into OpenRLHF and run its command line, which parses its flags under `__main__` alone.

    Raises:
        RuntimeError: The command line of the installed version does not use a replacement.
    """
    name = f"openrlhf.cli.{command}"
    for attribute, (module, ours) in replaced.items():
        setattr(importlib.import_module(module), attribute, ours)
    # Importing it trains nothing, and shows whether it takes the replacements.
    cli = importlib.import_module(name)
    for attribute, (module, ours) in replaced.items():
        if getattr(cli, attribute, None) is not ours:
            raise RuntimeError(
                f"{name} of openrlhf {version('openrlhf')} does not take {attribute} from {module}: "
                "this version is not supported"
            )
    del sys.modules[name]  # runpy warns about a module that is already imported
    sys.argv = [name, *argv]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
