"""`pcrm run`: a TRL script as it is, with the constrained loss where its configuration asks for it."""

from __future__ import annotations

import argparse
import ast
import os
import runpy
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pcrm run",
        usage="pcrm run [-m] SCRIPT [ARGUMENTS ...]",
        description="Runs a script that uses TRL, unmodified. Its DPO trainer trains with the constrained loss where its "
        "configuration says `loss_type: [pcrm]`, its reward trainer where its configuration sets a field `pcrm_*`; "
        "otherwise they train as TRL does.",
    )
    parser.add_argument("-m", action="store_true", help="SCRIPT is a module's name")
    parser.add_argument("script", metavar="SCRIPT")
    parser.add_argument("arguments", metavar="ARGUMENTS", nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    if not args.m and not os.path.isfile(args.script):
        parser.error(f"there is no file {args.script!r}")
    if not args.m and _imports_unsloth(args.script):
        # It writes TRL's trainers anew and must come before TRL. Ours are then subclasses of its trainers.
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
        return False  # running the script says what is wrong with it
    names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level]
    return any(name.split(".")[0] == "unsloth" for name in names)
