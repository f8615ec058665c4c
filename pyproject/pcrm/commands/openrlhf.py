"""`pcrm openrlhf`: OpenRLHF's own command lines with the prior-constrained loss."""

from __future__ import annotations

import argparse
import itertools
import os

from .._printable import text_of
from ..settings import PRIORS, SETTINGS, settings_of
from ..training.arguments import hint
from ._parser import Parser

_ABOUT = """\
Run OpenRLHF's train_rm or train_dpo with the prior-constrained loss. All flags except those below
are OpenRLHF's own; `python -m openrlhf.cli.train_rm --help` lists them.

Start it with any launcher:

  one process:  pcrm openrlhf train_rm ...
  DeepSpeed:    deepspeed --module pcrm.openrlhf train_rm ...
  torchrun:     torchrun --nproc_per_node 8 -m pcrm.openrlhf train_rm ...
"""
_EXAMPLES = (
    "pcrm openrlhf train_rm --model.model_name_or_path BASE --data.dataset pairs.jsonl ...",
    "pcrm openrlhf train_dpo --pcrm.config pcrm.toml --data.dataset pairs.jsonl ...",
)

# If any of these is set, a launcher has started the processes of a job.
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
    parser = Parser(
        "pcrm openrlhf",
        _ABOUT,
        *_EXAMPLES,
        usage="pcrm openrlhf {train_rm,train_dpo} [--pcrm.NAME VALUE ...] [FLAGS OF OPENRLHF ...]",
        allow_abbrev=False,
    )
    parser.add_argument("command", choices=("train_rm", "train_dpo"), help="OpenRLHF's command")
    group = parser.add_argument_group("the constraint")
    for name, kind, text in (
        (
            "prior",
            str,
            f"similarity of the two responses: {', '.join(PRIORS)} (default: the preset's, else length_ratio). Models "
            "trained with length_ratio favor long responses more, so prefer a column of lexical or cosine priors",
        ),
        ("preset", str, "published setting, such as alpaca/length_ratio or dpo/length_ratio"),
        ("beta1", float, "beta1 of delta(s) = beta1 / (s + beta2) + beta3; overrides the preset's"),
        ("beta2", float, "beta2; overrides the preset's"),
        ("beta3", float, "beta3; overrides the preset's"),
        ("floor", float, "smallest delta"),
        ("cap", float, "largest delta"),
        (
            "target_alike",
            float,
            "target margin for similar pairs (default: 1); betas, floor and cap are fitted to the training data",
        ),
        ("target_unlike", float, "target margin for dissimilar pairs (default: 3)"),
        ("win_alike", float, "target_alike as a win probability, such as 0.73"),
        ("win_unlike", float, "target_unlike as a win probability, such as 0.95"),
        ("delta", float, "delta of the prior 'fixed'; inf trains OpenRLHF's own loss"),
        ("low", float, "smallest delta of the prior 'random'"),
        ("high", float, "largest delta of the prior 'random'"),
        ("seed", int, "seed of the prior 'random' (default: 0)"),
        ("config", str, "pcrm.toml file with all settings"),
    ):
        group.add_argument(f"--pcrm.{name}", dest=name, type=kind, metavar=name.upper(), help=text)
    parser.add_argument_group("the model").add_argument(
        "--pcrm.prefix_sharing",
        dest="prefix_sharing",
        action="store_true",
        help="compute common beginnings of a batch's rows, such as the prompt of a pair, only once; "
        "requires --ds.attn_implementation sdpa or eager, and no --ds.packing_samples",
    )
    group.add_argument("--model.loss_type", dest="loss_type", default="sigmoid", help="must be 'sigmoid' (default)")
    # DeepSpeed's launcher puts its own flag first.
    launcher = list(itertools.takewhile(lambda argument: argument.startswith("--local_rank"), argv))
    given, rest = parser.parse_known_args(argv[len(launcher) :])
    for argument in rest:
        if argument.startswith("--pcrm"):
            flag = argument.split("=")[0]
            flags = {option for action in parser._actions for option in action.option_strings}
            parser.error(f"{flag} is not a flag of this command{hint(flag, flags)}")
    if given.loss_type != "sigmoid":
        parser.error(
            f"--model.loss_type must be 'sigmoid', got {given.loss_type!r}, for which OpenRLHF silently uses its LogExp loss"
        )
    if given.prefix_sharing and (reason := _no_sharing(rest)):
        parser.error(reason)
    constraint = {name: getattr(given, name) for name in SETTINGS}
    dpo = given.command == "train_dpo"
    try:
        settings = settings_of(constraint, "dpo" if dpo else "reward", config=given.config, prefix="--pcrm.")
        if settings.form != "pair":
            raise ValueError(
                f"form in {given.config} must be 'pair', because OpenRLHF scores responses and not tokens, got {settings.form!r}"
            )
    except (TypeError, ValueError, OSError) as error:
        parser.error(text_of(error))
    if dpo and given.config is not None:
        # These replace OpenRLHF's defaults. A user's flag comes later and wins.
        rest = [f"--model.beta={settings.dpo_beta}", f"--model.label_smoothing={settings.label_smoothing}", *rest]
    # Not above: it imports torch, and --help and errors should not wait for that.
    from ..openrlhf import patch

    # Priors other than the length ratio come from a column here.
    asked = given.config is None and (given.prior is not None or given.preset is not None)
    computed = asked and settings.prior == "length_ratio"
    replaced = patch.replacements(given.command, settings, computed=computed, prefix_sharing=given.prefix_sharing)
    if not any(name in os.environ for name in _LAUNCHED):
        # Plain python: DeepSpeed would look for MPI. With port 0 the system picks a free port.
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    patch.run(given.command, replaced, [*launcher, *rest])
    return 0


def _no_sharing(argv: list[str]) -> str | None:
    """Return why OpenRLHF's flags do not work with prefix sharing, or None.

    The trainers reject the same flags, but only after loading the models. Before OpenRLHF 0.10.2 the names have no prefix.
    """
    parser = argparse.ArgumentParser(prog="pcrm openrlhf", add_help=False)  # accepts abbreviations, as OpenRLHF's does
    parser.add_argument("--ds.packing_samples", "--packing_samples", dest="packing", action="store_true")
    parser.add_argument("--ds.attn_implementation", "--attn_implementation", dest="attention")
    given, _ = parser.parse_known_args(argv)
    if given.packing:
        return (
            "--ds.packing_samples (which ring attention requires) must not be set with --pcrm.prefix_sharing: packed samples "
            "need FlashAttention, which accepts no mask"
        )
    if given.attention is None or "flash" in given.attention:
        got = given.attention or "OpenRLHF's default, flash_attention_2"
        return f"--ds.attn_implementation must be sdpa or eager with --pcrm.prefix_sharing, got {got}, which accepts no mask"
    return None
