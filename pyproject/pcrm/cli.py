"""The command line."""

from __future__ import annotations

import importlib
import os
import sys

from ._printable import printable

# What each command is for, and the extra that it needs.
_COMMANDS = {
    "demo": ("see what the constraint does, in a few minutes", "demo"),
    "check": ("see what is wrong with preferences before you train on them", "data"),
    "fit": ("find the betas for the margins that you want on your data", "data,plot"),
    "prior": ("add to preferences how alike their responses are", "data,encoders"),
    "pairs": ("write the comparisons of rankings as pairs", "data"),
    "reward": ("train a reward model as `trl reward` does", "trl"),
    "dpo": ("train a policy as `trl dpo` does", "trl"),
    "run": ("run a script that uses TRL as it is", "trl"),
    "openrlhf": ("OpenRLHF's train_rm and train_dpo with the constrained loss", "openrlhf"),
    "score": ("score pairs or rankings with a trained reward model", "data,trl"),
    "calibrate": ("remove length bias from scores, or divide them by a fitted temperature", "data"),
    "optimize": ("see how far a reward model is to be optimized against", "report,trl"),
    "report": ("see what a reward model's scores are like", "report"),
    "average": ("average the weights of several reward models", "data"),
    "verify": ("recompute what a trace recorded", None),
    "doctor": ("what this machine computes with, and whether it computes right", None),
}

# Errors may come from deep inside a training run: those that are not pcrm's own keep their tracebacks.
_TRAINING = ("reward", "dpo", "run", "openrlhf")


def main(argv: list[str] | None = None) -> int:
    """Run a command, the module of its name in `pcrm.commands`; return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    usage = "\n".join(
        ["usage: pcrm COMMAND [--help | ...]", "", *(f"  {name:<10}{text}" for name, (text, _) in _COMMANDS.items())]
    )
    if not argv or argv[0] in ("-h", "--help"):
        print(usage, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    name, *rest = argv
    if name == "--version":
        from ._version import __version__

        print(f"pcrm {__version__}")
        return 0
    if name not in _COMMANDS:
        print(f"pcrm: there is no command {name!r}\n{usage}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f".commands.{name}", __package__).main(rest)
    except ModuleNotFoundError as error:
        extra = _COMMANDS[name][1]
        hint = f": pip install 'pcrm[{extra}]'" if extra else ""
        print(f"pcrm {name}: {error}{hint}", file=sys.stderr)
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except RuntimeError as error:
        from ._engine.native import NativeLibraryError

        if not isinstance(error, NativeLibraryError):
            raise
        print(f"pcrm {name}: {error}", file=sys.stderr)
    except (ValueError, OSError) as error:
        if name in _TRAINING and not _is_ours(error):
            raise
        # A file's contents may be in it: what a terminal would obey is escaped.
        text = "\n".join(map(printable, str(error).split("\n")))
        print(f"pcrm {name}: {text}", file=sys.stderr)
    return 1


def _is_ours(error: BaseException) -> bool:
    """Whether code of this package raised it, or something built in that it called."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and at.tb_frame.f_globals.get("__name__", "").startswith("pcrm.")


if __name__ == "__main__":
    sys.exit(main())
