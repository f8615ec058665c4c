"""What the commands share that go through the rows of a file: their options, and how they end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.resumable import ResumableOutput


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
    source: str,
    input_name: str,
    out: str,
    work: Callable[[], ResumableOutput],
    *,
    written: Callable[[ResumableOutput], str] = lambda output: f"{output.rows} rows",
) -> int:
    """Do the work, which returns its finished output, and return the exit status.

    Args:
        source, out: The input and the output.
        input_name: What the usage calls the input.
        written: What is said of the finished output.
    """
    if os.path.exists(out) and os.path.exists(source) and os.path.samefile(out, source):
        parser.error(f"--out is {input_name}")
    from ..data.row_pipeline import BadRowError

    try:
        output = work()
    except BadRowError as error:
        raise ValueError(f"{error} (--on-error skip leaves such rows out)") from None
    except KeyboardInterrupt:
        kept = os.path.isdir(f"{out}.parts")
        done = f"the same command goes on from {out}.parts" if kept else "nothing was written"
        print(f"{parser.prog}: interrupted; {done}", file=sys.stderr)
        return 130
    left_out = f", {output.skipped} skipped: {output.skipped_path}" if output.skipped else ""
    print(f"{out}: {written(output)}{left_out}")
    return 0
