"""`pcrm pairs`: write the comparisons of rankings as pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _rows
from ._parser import Parser

if TYPE_CHECKING:
    from ..data.resumable import ResumableOutput

_DESCRIPTION = """\
Write the comparisons of rankings as pairs. A row of RANKINGS has several responses to one prompt:

  prompt, responses, ratings    higher is better
  prompt, responses, ranks      1 is best

with or without a prompt, plain or conversational. Every two responses with different ratings or
ranks become a row of OUT. Ties are left out. A pair has chosen and rejected, rating_chosen and
rating_rejected or rank_chosen and rank_rejected, and all other columns of its ranking.

RANKINGS ends in .jsonl, .jsonl.gz, .json or .parquet, or is a folder of `datasets` or a data set
on the hub. OUT ends in .jsonl, .jsonl.gz or .parquet, or is a folder. An existing OUT is replaced
at the end. To resume an interrupted run, give the same command again; its shards are in OUT.parts.
"""
_EXAMPLES = (
    "pcrm pairs rankings.jsonl --out pairs.jsonl",
    "pcrm pairs rankings.jsonl --out pairs.parquet --on-error skip",
)


def main(argv: list[str]) -> int:
    parser = Parser("pcrm pairs", _DESCRIPTION, *_EXAMPLES)
    parser.add_argument("rankings", metavar="RANKINGS", help="rankings")
    parser.add_argument("--out", required=True, help="output: the pairs")
    _rows.add_arguments(parser)
    args = parser.parse_args(argv)

    def work() -> ResumableOutput:
        from ..data.write_pairs import write_pairs

        return write_pairs(args.rankings, args.out, split=args.split, skip=args.on_error == "skip")

    return _rows.run(parser, args.rankings, "RANKINGS", args.out, work, written=_written)


def _written(output: ResumableOutput) -> str:
    ties = output.counts["ties"]
    left_out = f", {ties} ties left out" if ties else ""
    return f"{output.rows} pairs from {output.counts['rankings']} rankings{left_out}"
