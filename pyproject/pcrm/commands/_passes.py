"""What the commands share that add columns to the rows of a file and go on after a kill."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from .. import __version__
from ..datafiles import Source
from ..shards import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", default="train", help="of a data set that has some (default: %(default)s)")
    parser.add_argument(
        "--on-error",
        choices=("fail", "skip"),
        default="fail",
        help="what a bad row does: end the command, or be left out and listed in OUT.skipped.jsonl (default: %(default)s)",
    )


def run(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    source: str,
    name: str,
    work: Callable[[argparse.Namespace], Output],
) -> int:
    """Do the work, which finishes the output that it returns. `name` is the source's in the usage."""
    if os.path.exists(args.out) and os.path.exists(source) and os.path.samefile(args.out, source):
        parser.error(f"--out is {name}")
    try:
        output = work(args)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command goes on from {args.out}.parts", file=sys.stderr)
        return 130
    left_out = f", {output.skipped} skipped: {output.side}" if output.skipped else ""
    print(f"{args.out}: {output.rows} rows{left_out}")
    return 0


def settings_of_input(args: argparse.Namespace, name: str, source: Source) -> dict[str, Any]:
    """What going on with an output needs to be the same: the input and the version."""
    identity = {f"{name} ({key})": value for key, value in source.identity.items()}
    return {"--split": args.split, "pcrm": __version__} | identity


def finish(output: Output, source: str) -> Output:
    if not output.rows + output.skipped:
        raise ValueError(f"{source}: holds no rows")
    output.finish()
    return output


def tokenizer(path: str) -> tuple[Any, str]:
    """A tokenizer, and what tells it from others."""
    from transformers import AutoTokenizer

    loaded: Any = AutoTokenizer.from_pretrained(path)
    vocabulary = json.dumps(sorted(loaded.get_vocab().items()))
    return loaded, hashlib.sha256(vocabulary.encode()).hexdigest()
