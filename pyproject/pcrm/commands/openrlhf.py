"""`pcrm openrlhf`: OpenRLHF's own command lines with the prior-constrained loss."""

from __future__ import annotations

import argparse
import itertools
import os

from ..settings import PRIORS, SETTINGS, settings_of

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
            f"what the similarity of two responses is: {', '.join(PRIORS)} (default: the preset's, else length_ratio, "
            "with which models favor long responses more: prefer a column of lexical or cosine priors)",
        ),
        ("preset", str, "a published setting, such as alpaca/length_ratio or dpo/length_ratio"),
        ("beta1", float, "beta1 of delta(s) = beta1 / (s + beta2) + beta3, overrides the preset's"),
        ("beta2", float, "beta2, overrides the preset's"),
        ("beta3", float, "beta3, overrides the preset's"),
        ("floor", float, "smallest delta"),
        ("cap", float, "largest delta"),
        (
            "target_alike",
            float,
            "margin wanted for alike pairs (default: 1): betas, floor and cap are fitted to the training data",
        ),
        ("target_unlike", float, "margin wanted for unlike pairs (default: 3)"),
        ("win_alike", float, "target_alike as a win probability, such as 0.73"),
        ("win_unlike", float, "target_unlike as a win probability, such as 0.95"),
        ("delta", float, "delta of the prior 'fixed'; inf trains OpenRLHF's own loss"),
        ("low", float, "smallest delta of the prior 'random'"),
        ("high", float, "largest delta of the prior 'random'"),
        ("seed", int, "seed of the prior 'random' (default: 0)"),
        ("config", str, "a pcrm.toml with all settings"),
    ):
        group.add_argument(f"--pcrm.{name}", dest=name, type=kind, metavar=name.upper(), help=text)
    parser.add_argument_group("the model").add_argument(
        "--pcrm.prefix_sharing",
        dest="prefix_sharing",
        action="store_true",
        help="compute what rows of a batch begin with in common, such as the prompt of a pair, once; "
        "requires --ds.attn_implementation sdpa or eager, and no --ds.packing_samples",
    )
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
    if given.prefix_sharing and (reason := _no_sharing(rest)):
        parser.error(f"--pcrm.prefix_sharing requires {reason}")
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
    # Not above: it imports torch, for which --help and errors do not wait.
    from ..openrlhf import patch

    # Other priors than the length ratio are in a column here.
    asked = given.config is None and (given.prior is not None or given.preset is not None)
    computed = asked and settings.prior == "length_ratio"
    replaced = patch.replacements(given.command, settings, computed=computed, prefix_sharing=given.prefix_sharing)
    if not any(name in os.environ for name in _LAUNCHED):
        # Plain python: DeepSpeed would look for MPI. Of port 0 the system makes a free one.
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    patch.run(given.command, replaced, [*launcher, *rest])
    return 0


def _no_sharing(argv: list[str]) -> str | None:
    """What OpenRLHF's flags lack to share prefixes, or None.

    The trainers refuse the same, but only once models are loaded. Before OpenRLHF 0.10.2 the names have no prefix.
    """
    parser = argparse.ArgumentParser(prog="pcrm openrlhf", add_help=False)  # takes abbreviations, as OpenRLHF's does
    parser.add_argument("--ds.packing_samples", "--packing_samples", dest="packing", action="store_true")
    parser.add_argument("--ds.attn_implementation", "--attn_implementation", dest="attention")
    given, _ = parser.parse_known_args(argv)
    if given.packing:
        return (
            "samples that are not packed, got --ds.packing_samples, which ring attention needs too: packed samples are "
            "told apart by FlashAttention, which takes no mask"
        )
    if given.attention is None or "flash" in given.attention:
        got = given.attention or "flash_attention_2, OpenRLHF's default"
        return f"--ds.attn_implementation sdpa or eager, got {got}, which takes no mask"
    return None
