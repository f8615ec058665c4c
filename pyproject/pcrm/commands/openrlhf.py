"""`pcrm openrlhf`: OpenRLHF's own command lines with the prior-constrained loss."""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import os
import runpy
import sys
from importlib.metadata import version
from typing import Any

from ..settings import PRIORS, SETTINGS, Config, settings_of

_ABOUT = """\
Runs OpenRLHF's command line of that name with the prior-constrained loss. Every flag but those below
is OpenRLHF's own, and `python -m openrlhf.cli.train_rm --help` lists them.
"""

_LAUNCHERS = """\
one process:  pcrm openrlhf train_rm ...
DeepSpeed:    deepspeed --module pcrm.openrlhf train_rm ...
torchrun:     torchrun --nproc_per_node 8 -m pcrm.openrlhf train_rm ...
"""

# By any of these DeepSpeed or a launcher before it knows the processes of a job.
_LAUNCHED = (
    "RANK",
    "OMPI_COMM_WORLD_RANK",
    "PMI_RANK",
    "PMIX_RANK",
    "SLURM_PROCID",
    "AZUREML_EXPERIMENT_ID",
    "SM_TRAINING_ENV",
)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pcrm openrlhf",
        description=_ABOUT,
        epilog=_LAUNCHERS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=("train_rm", "train_dpo"), help="OpenRLHF's command line")
    group = parser.add_argument_group("the constraint")
    for name, kind, text in (
        (
            "prior",
            str,
            f"what the similarity of two responses is: {', '.join(PRIORS)} (default: the preset's, else length_ratio)",
        ),
        ("preset", str, "a published setting (default: alpaca/<prior> for reward models, dpo/<prior> for DPO)"),
        ("beta1", float, "beta1 of delta(s) = beta1 / (s + beta2) + beta3, overrides the preset's"),
        ("beta2", float, "beta2, overrides the preset's"),
        ("beta3", float, "beta3, overrides the preset's"),
        ("floor", float, "smallest delta"),
        ("cap", float, "largest delta"),
        ("delta", float, "delta of the prior 'fixed'; inf trains OpenRLHF's own loss"),
        ("low", float, "smallest delta of the prior 'random'"),
        ("high", float, "largest delta of the prior 'random'"),
        ("seed", int, "seed of the prior 'random' (default: 0)"),
        ("config", str, "a pcrm.toml with all settings"),
    ):
        group.add_argument(f"--pcrm.{name}", dest=name, type=kind, metavar=name.upper(), help=text)
    group.add_argument("--model.loss_type", dest="loss_type", default="sigmoid", help="must be 'sigmoid', its default")
    # DeepSpeed's launcher puts its own flag before all others.
    launcher = list(itertools.takewhile(lambda argument: argument.startswith("--local_rank"), argv))
    given, rest = parser.parse_known_args(argv[len(launcher) :])
    for argument in rest:
        if argument.startswith("--pcrm"):
            parser.error(f"there is no flag {argument.split('=')[0]}")
    if given.loss_type != "sigmoid":
        parser.error(
            f"--model.loss_type is {given.loss_type!r}, must be 'sigmoid': "
            "of anything else OpenRLHF makes LogExp without a word"
        )
    constraint = {name: getattr(given, name) for name in SETTINGS}
    dpo = given.command == "train_dpo"
    try:
        settings = settings_of(constraint, "dpo" if dpo else "reward", config=given.config, prefix="--pcrm.")
        if settings.form != "pair":
            raise ValueError(
                f"{given.config} has the form {settings.form!r}, must be 'pair': OpenRLHF scores responses, not tokens"
            )
    except (TypeError, ValueError, OSError) as error:
        parser.error(str(error))
    if dpo and given.config is not None:
        # In the place of OpenRLHF's defaults: a flag of the user's comes later and wins.
        rest = [f"--model.beta={settings.dpo_beta}", f"--model.label_smoothing={settings.label_smoothing}", *rest]
    swapped = _swapped(given.command, settings)
    if not any(name in os.environ for name in _LAUNCHED):
        # Plain python: DeepSpeed would look for MPI. Of port 0 the system makes a free one.
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    _run(given.command, swapped, [*launcher, *rest])
    return 0


def _swapped(command: str, settings: Config) -> dict[str, tuple[str, Any]]:
    """What takes the place of which name of which module of OpenRLHF."""
    from ..openrlhf import training
    from ..openrlhf.losses import PCRMPairWiseLoss

    swapped: dict[str, tuple[str, Any]] = {}
    constraint = settings.constraint
    if command == "train_dpo":
        trainer = functools.partial(training.PCRMDPOTrainer, constraint=constraint)
        swapped["DPOTrainer"] = ("openrlhf.trainer.dpo_trainer", trainer)
    else:
        loss_fn = PCRMPairWiseLoss(
            constraint,
            label_smoothing=settings.label_smoothing,
            center_rewards_coefficient=settings.center_rewards_coefficient,
        )
        trainer = functools.partial(training.PCRMRewardModelTrainer, loss_fn=loss_fn)
        swapped["RewardModelTrainer"] = ("openrlhf.trainer.rm_trainer", trainer)
    if not constraint.is_fixed:
        dataset = functools.partial(training.PCRMRewardDataset, prior=settings.prior, seed=constraint.seed)
        swapped["RewardDataset"] = ("openrlhf.datasets", dataset)
    return swapped


def _run(command: str, swapped: dict[str, tuple[str, Any]], argv: list[str]) -> None:
    """Run OpenRLHF's command line, which parses its flags under `__main__` alone."""
    name = f"openrlhf.cli.{command}"
    for attribute, (module, ours) in swapped.items():
        setattr(importlib.import_module(module), attribute, ours)
    # An import of it trains nothing, and shows whether it takes what was swapped.
    cli = importlib.import_module(name)
    for attribute, (module, ours) in swapped.items():
        if getattr(cli, attribute, None) is not ours:
            raise RuntimeError(
                f"{name} of openrlhf {version('openrlhf')} does not take {attribute} from {module}: "
                "this version is not supported"
            )
    del sys.modules[name]  # what is there already runpy warns of
    sys.argv = [name, *argv]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
