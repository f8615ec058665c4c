"""Shared code of commands that process the rows of a file: their options, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.resumable import ResumableOutput


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split", default="train", help="split to read, if the data set has splits (default: %(default)s)"
    )
    parser.add_argument(
        "--on-error",
        choices=("fail", "skip"),
        default="fail",
        help="on a bad row: stop, or leave it out and list it in OUT.skipped.jsonl (default: %(default)s)",
    )


def run(
    parser: argparse.ArgumentParser,
    source: str,
    input_name: str,
    out: str,
    work: Callable[[], ResumableOutput],
    *,
    written: Callable[[ResumableOutput], str] = lambda output: f"{output.rows} rows",
) -> int:
    """Call `work`, which returns its finished output, and return the exit status.

    Args:
        source, out: The input and the output.
        input_name: The name of the input in the usage.
        written: The description of the finished output.
    """
    if os.path.exists(out) and os.path.exists(source) and os.path.samefile(out, source):
        parser.error(f"--out must be another file than {input_name}, got {out}")
    from ..data.row_pipeline import BadRowError

    try:
        output = work()
    except BadRowError as error:
        raise ValueError(f"{error}. To leave out bad rows, add --on-error skip") from None
    except KeyboardInterrupt:
        kept = os.path.isdir(f"{out}.parts")
        done = f"give the same command again to resume from {out}.parts" if kept else "nothing was written"
        print(f"{parser.prog}: interrupted; {done}", file=sys.stderr)
        return 130
    left_out = f", {output.skipped} skipped: {output.skipped_path}" if output.skipped else ""
    print(f"{out}: {written(output)}{left_out}")
    return 0
