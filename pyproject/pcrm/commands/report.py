"""`pcrm report`: what a reward model's scores are like, as numbers and as a page."""

from __future__ import annotations

import argparse
import contextlib

_DESCRIPTION = """\
Writes summary.json, one self-contained report.html and its figures as SVG into DIR. SCORES are
files that end in .jsonl, .jsonl.gz or .parquet or folders of `datasets`, of rows
  chosen_score, rejected_score   with prior, and chosen, rejected, prompt or chosen_length,
                                 rejected_length where there are any
  scores, ratings                lists of one prompt, with responses or lengths
  score, response                or score, length
Several files are several models, side by side; NAME=FILE names one, and files of one name are of
one model. --live draws the metrics of a training run instead.
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pcrm report", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scores", metavar="SCORES", nargs="*", help="FILE or NAME=FILE")
    parser.add_argument("--out", metavar="DIR", required=True, help="where to write; what is there is replaced")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--constraint", metavar="TOML", help="the pcrm.toml whose curve margins are compared with")
    group.add_argument("--preset", metavar="NAME", help="the same of a published setting, such as alpaca/length_ratio")
    parser.add_argument("--split", default="train", help="of a data set that has some (default: %(default)s)")
    parser.add_argument("--live", metavar="FILE", help="a run's trainer_state.json, or its output folder")
    parser.add_argument(
        "--watch", action="store_true", help="with --live: draw again when the file changes, until Ctrl-C"
    )
    args = parser.parse_args(argv)
    if bool(args.scores) == bool(args.live):
        parser.error("give SCORES or --live")
    if args.watch and not args.live:
        parser.error("--watch goes with --live")
    if args.live:
        from ..report import live

        with contextlib.suppress(KeyboardInterrupt):
            live.write(args.live, args.out, watch=args.watch)
        return 0

    from ..report import reading, summary
    from ..settings import Constraint

    constraint = None
    if args.constraint:
        constraint = Constraint.from_toml(args.constraint)
    elif args.preset:
        constraint = Constraint.preset(args.preset)
    summary.write(reading.read(args.scores, args.split), args.out, constraint)
    print(f"{args.out}: report.html, summary.json and the figures")
    return 0
