"""Install our replacements in LLaMA-Factory, and run its command line."""

# LLaMA-Factory is not installed where the type checker runs.
# pyright: reportMissingImports=false

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from importlib.metadata import version
from typing import Any

from llamafactory import launcher
from llamafactory.data import loader
from llamafactory.hparams import FinetuningArguments, parser, read_args
from llamafactory.train.dpo import trainer as dpo_trainer
from llamafactory.train.rm import workflow as rm_workflow
from llamafactory.train.tuner import run_exp

from .arguments import ConstrainedArguments, parse
from .data import PriorLoader, PriorProcessor, column_of
from .trainers import ConstrainedDPOTrainer, ConstrainedRewardTrainer


def enable(arguments: ConstrainedArguments) -> None:
    """Make LLaMA-Factory train with the constraint, in this process.

    Raises:
        RuntimeError: The installed version lacks a class that must be replaced.
    """
    settings, model = arguments.pcrm_settings(), arguments.pcrm_prior_model
    PriorProcessor.column = column_of(settings, model)
    for module, name, ours in (
        (loader, "align_dataset", PriorLoader(settings, model, arguments.pcrm_asked_prior)),
        (loader, "PairwiseDatasetProcessor", PriorProcessor),
        (rm_workflow, "PairwiseTrainer", ConstrainedRewardTrainer),
        (dpo_trainer, "CustomDPOTrainer", ConstrainedDPOTrainer),
    ):
        if not hasattr(module, name):
            raise RuntimeError(
                f"{module.__name__} must define {name}, got llamafactory {version('llamafactory')}, where it does not: this version is "
                "not supported"
            )
        setattr(module, name, ours)


def train(argv: list[str]) -> None:
    """Run `llamafactory-cli train` with these arguments, with the constraint if they ask for it.

    Raises:
        TypeError, ValueError, OSError: As in `parse`.
    """
    sys.argv = ["llamafactory-cli", *argv]
    args: Any = read_args()
    parser._TRAIN_ARGS[:] = (ConstrainedArguments if a is FinetuningArguments else a for a in parser._TRAIN_ARGS)
    if not {"-h", "--help"} & set(args):
        arguments = parse(args)
        if arguments.constrained:
            enable(arguments)
        else:
            warnings.warn(
                "the configuration does not ask for the constraint, so LLaMA-Factory trains its own loss: set pref_loss: pcrm, "
                "or a key pcrm_*",
                stacklevel=2,
            )
    if "LOCAL_RANK" in os.environ:  # started by torchrun or another launcher
        run_exp()
        return
    # Its launcher makes torchrun start this if there are several devices.
    launcher.__file__ = "-m pcrm.llamafactory train"
    sys.argv.insert(1, "train")
    try:
        launcher.launch()
    except subprocess.CalledProcessError as error:  # from torchrun, whose processes have reported the error
        sys.exit(error.returncode)
