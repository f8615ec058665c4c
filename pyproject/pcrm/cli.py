"""The command line."""

from __future__ import annotations

import difflib
import importlib
import os
import sys

from ._printable import printable, text_of

# The commands by group, each with what it does and the extra that it needs.
_GROUPS: dict[str, dict[str, tuple[str, str | None]]] = {
    "Data": {
        "check": ("Check preference data before training", "data"),
        "pairs": ("Turn rankings into preference pairs", "data"),
        "prior": ("Add a column with the similarity of the two responses", "data,encoders"),
        "fit": ("Fit the constraint to your data and target margins", "data,plot"),
    },
    "Train": {
        "compare": ("Compare plain and constrained reward models on your own pairs", "report,trl"),
        "reward": ("Train a reward model, with the flags of `trl reward`", "trl"),
        "dpo": ("Train a policy with DPO, with the flags of `trl dpo`", "trl"),
        "run": ("Run a TRL script with the constrained loss, without changing it", "trl"),
        "openrlhf": ("Run OpenRLHF's train_rm or train_dpo with the constrained loss", "openrlhf"),
        "llamafactory": ("Run LLaMA-Factory's rm or dpo stage with the constrained loss", "llamafactory"),
    },
    "Evaluate": {
        "score": ("Score pairs or rankings with a trained reward model", "data,trl"),
        "report": ("Report accuracy, margins and calibration of scores", "report"),
        "calibrate": ("Fit a temperature to scores, or remove length bias from them", "data"),
        "optimize": ("Measure reward over-optimization", "report,trl"),
    },
    "Tools": {
        "demo": ("Try plain and constrained models on generated pairs", "demo"),
        "average": ("Average the weights of several reward models", "data"),
        "verify": ("Recompute a recorded training run and check its losses", None),
        "doctor": ("Show which backends this machine has, and test them", None),
    },
}
_COMMANDS = {name: entry for group in _GROUPS.values() for name, entry in group.items()}

# An error from deep inside a training run keeps its traceback, unless it is one of pcrm's own.
_TRAINING = ("reward", "dpo", "run", "openrlhf", "llamafactory")


def _usage() -> str:
    """The commands by group."""
    lines = ["usage: pcrm COMMAND [--help | ...]"]
    for group, commands in _GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:<14}{text}" for name, (text, _) in commands.items())]
    lines += [
        "",
        "pcrm COMMAND --help lists the arguments of a command, with examples.",
        "Start with: pcrm check PAIRS, then pcrm compare PAIRS --model BASE",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run a command, the module of that name in `pcrm.commands`, and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    name, *rest = argv
    if name == "--version":
        from ._version import __version__

        print(f"pcrm {__version__}")
        return 0
    if name not in _COMMANDS:
        near = difflib.get_close_matches(name, _COMMANDS, 1)
        hint = f"Did you mean {near[0]}? " if near else ""
        print(f"pcrm: {name!r} is not a pcrm command. {hint}See pcrm --help", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f".commands.{name}", __package__).main(rest)
    except ModuleNotFoundError as error:
        extra = _COMMANDS[name][1]
        hint = f": pip install 'pcrm[{extra}]'" if extra else ""
        print(f"pcrm {name}: {error}{hint}", file=sys.stderr)
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:  # commands that can resume say how
        print(f"pcrm {name}: interrupted", file=sys.stderr)
        return 130
    except RuntimeError as error:
        from ._engine.native import NativeLibraryError

        if not isinstance(error, NativeLibraryError):
            raise
        print(f"pcrm {name}: {error}", file=sys.stderr)
    except (ValueError, OSError) as error:
        if name in _TRAINING and not _is_ours(error):
            raise
        # The message may contain text from a file: escape control characters.
        text = "\n".join(map(printable, text_of(error).split("\n")))
        print(f"pcrm {name}: {text}", file=sys.stderr)
    return 1


def _is_ours(error: BaseException) -> bool:
    """Whether code of this package raised the error, or a builtin that it called."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and at.tb_frame.f_globals.get("__name__", "").startswith("pcrm.")


if __name__ == "__main__":
    sys.exit(main())
