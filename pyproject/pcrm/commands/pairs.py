"""`pcrm pairs`: the comparisons of rankings as pairs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from . import _rows

if TYPE_CHECKING:
    from ..data.resumable import ResumableOutput

_DESCRIPTION = """\
Writes the comparisons of rankings as pairs. RANKINGS has several responses to a prompt in a row:

  prompt, responses, ratings    higher is better
  prompt, responses, ranks      1 is best

with a prompt or without one, plain or conversational. Each two responses with different ratings
or ranks become a row of OUT. Ties are left out. A pair has chosen and rejected, rating_chosen
and rating_rejected or rank_chosen and rank_rejected, and all other columns of its ranking.

RANKINGS and OUT end in .jsonl, .jsonl.gz or .parquet or are folders of `datasets`; RANKINGS may
be a data set of the hub. OUT is replaced if it is there, once all is done. Killed, the same
command goes on where it was; until then its shards are in OUT.parts.
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pcrm pairs", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rankings", metavar="RANKINGS", help="the rankings")
    parser.add_argument("--out", required=True, help="where to write their pairs")
    _rows.add_arguments(parser)
    args = parser.parse_args(argv)

    def work() -> ResumableOutput:
        from ..data.write_pairs import write_pairs

        return write_pairs(args.rankings, args.out, split=args.split, skip=args.on_error == "skip")

    return _rows.run(parser, args.rankings, "RANKINGS", args.out, work, written=_written)


def _written(output: ResumableOutput) -> str:
    ties = output.counts["ties"]
    left_out = f", {ties} ties left out" if ties else ""
    return f"{output.rows} pairs of {output.counts['rankings']} rankings{left_out}"
