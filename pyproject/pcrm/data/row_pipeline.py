"""What the commands share that add columns to the rows of a file and go on after a kill."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from .._pretrained import load_tokenizer
from .._version import __version__
from .preferences import RowError, listed
from .resumable import Output
from .sources import Batch, Source


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
        kept = os.path.isdir(f"{args.out}.parts")
        done = f"the same command goes on from {args.out}.parts" if kept else "nothing was written"
        print(f"{parser.prog}: interrupted; {done}", file=sys.stderr)
        return 130
    left_out = f", {output.skipped} skipped: {output.side}" if output.skipped else ""
    print(f"{args.out}: {output.rows} rows{left_out}")
    return 0


def settings_of_input(args: argparse.Namespace, name: str, source: Source) -> dict[str, Any]:
    """What going on with an output needs to be the same: the input and the version."""
    identity = {f"{name} ({key})": value for key, value in source.identity.items()}
    return {"--split": args.split, "pcrm": __version__} | identity


def bad_row(batch: Batch, i: int, error: RowError) -> ValueError:
    """What ends the command at row i of a batch, where bad rows are not skipped."""
    return ValueError(f"{batch.place(i)}: {error.message} (--on-error skip leaves such rows out)")


def finish(output: Output, source: str) -> Output:
    if (first := output.first_skipped) is not None and not output.rows:
        raise ValueError(
            f"{source}: all {output.skipped} rows were refused, so there is nothing to write. The first: "
            f"{first['place']}: {first['error']}"
        )
    if not output.rows:
        raise ValueError(f"{source}: holds no rows")
    output.finish()
    return output


def kind(source: Source, kinds: Iterable[tuple[str, ...]], wanted: str) -> tuple[str, ...]:
    """Which kind the rows are: the first whose columns the table has, or the first line that is of a kind.

    Args:
        wanted: The kinds in words, for the error where there is none.
    """

    def kind_of(columns: Any) -> tuple[str, ...] | None:
        return next((kind for kind in kinds if all(name in columns for name in kind)), None)

    if (columns := source.columns) is not None:
        if (found := kind_of(columns)) is None:
            raise ValueError(f"{source.name}: has no columns {wanted}; its columns are {listed(columns)}")
        return found
    first = None
    for batch in source.batches():
        for i, row in enumerate(batch.rows()):
            if not isinstance(row, RowError) and (found := kind_of(row)) is not None:
                return found
            if first is None:
                of = row.message if isinstance(row, RowError) else f"its keys are {listed(row)}"
                first = f" with {wanted}; of the first, {batch.place(i).removeprefix(f'{source.name}, ')}, {of}"
    raise ValueError(f"{source.name}: holds no rows{first or ''}")


def tokenizer(path: str) -> tuple[Any, str]:
    """A tokenizer, and what tells it from others."""
    loaded = load_tokenizer(path)
    vocabulary = json.dumps(sorted(loaded.get_vocab().items()))
    return loaded, hashlib.sha256(vocabulary.encode()).hexdigest()
