"""`pcrm run`: run an unmodified TRL script, with the constrained loss if its configuration asks for it."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import runpy
import sys
from pathlib import Path

from ._parser import Parser

_ABOUT = """\
Run a script that uses TRL, without changing it. The DPO trainer uses the constrained loss if its
configuration sets `loss_type: [pcrm]`, and the reward trainer does if its configuration sets a
`pcrm_*` field. Otherwise both train as TRL does.
"""
_EXAMPLES = (
    "pcrm run train.py --config dpo.yaml",
    "pcrm run -m trl.scripts.reward --config reward.yaml",
)


def main(argv: list[str]) -> int:
    parser = Parser("pcrm run", _ABOUT, *_EXAMPLES, usage="pcrm run [-m] SCRIPT [ARGUMENTS ...]")
    parser.add_argument("-m", action="store_true", help="SCRIPT is the name of a module, as in python -m")
    parser.add_argument("script", metavar="SCRIPT", help="Python file, or with -m a module")
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
        try:
            found = importlib.util.find_spec(args.script)
        except (ImportError, ValueError):  # the package of the module does not exist, or the name has no parts
            found = None
        if found is None:
            parser.error(f"SCRIPT must be a module that Python can find, got {args.script!r}")
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
