"""`pcrm run`: run an unmodified TRL script, with the constrained loss if its configuration asks for it."""

from __future__ import annotations

import argparse
import ast
import os
import runpy
import sys
from pathlib import Path

_ABOUT = """\
Run a script that uses TRL, without changing it. The DPO trainer uses the constrained loss if its
configuration sets `loss_type: [pcrm]`, and the reward trainer does if its configuration sets a field
`pcrm_*`. Otherwise both train as TRL does.
"""
_EXAMPLES = """\
examples:
  pcrm run train.py --config dpo.yaml
  pcrm run -m trl.scripts.reward --config reward.yaml
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pcrm run",
        usage="pcrm run [-m] SCRIPT [ARGUMENTS ...]",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-m", action="store_true", help="treat SCRIPT as a module name")
    parser.add_argument("script", metavar="SCRIPT", help="the script, or with -m the module")
    parser.add_argument("arguments", metavar="ARGUMENTS", nargs=argparse.REMAINDER, help="arguments of the script")
    args = parser.parse_args(argv)
    if not args.m and not os.path.isfile(args.script):
        parser.error(f"SCRIPT must be an existing file, got {args.script!r}")
    if not args.m and _imports_unsloth(args.script):
        # Unsloth rewrites TRL's trainers, so it must be imported before TRL. Ours are then subclasses of its trainers.
        import unsloth  # noqa: F401  # pyright: ignore[reportMissingImports]
    from ..trl import enable

    enable()
    sys.argv = [args.script, *args.arguments]
    if args.m:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(args.script, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(args.script)))
        runpy.run_path(args.script, run_name="__main__")
    return 0


def _imports_unsloth(script: str) -> bool:
    try:
        tree = ast.parse(Path(script).read_bytes())
    except (SyntaxError, ValueError):
        return False  # running the script will report the error
    names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level]
    return any(name.split(".")[0] == "unsloth" for name in names)
