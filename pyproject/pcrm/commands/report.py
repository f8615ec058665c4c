"""`pcrm report`: what a reward model's scores are like, as numbers and as a page."""

from __future__ import annotations

import argparse

from .._printable import printable
from ..data.prior_record import check_recorded

_DESCRIPTION = """\
Print a table of a reward model's accuracy, margins, calibration and rank correlations. Write
summary.json, one self-contained report.html and its figures as SVG into DIR. SCORES are files
that end in .jsonl, .jsonl.gz or .parquet, or folders of `datasets`. A row has
  chosen_score, rejected_score   optional: prior; delta; chosen, rejected, prompt, or
                                 chosen_length, rejected_length
  scores, ratings                lists of one prompt; optional: responses or lengths
  score                          optional: response or length
Several files are several models, side by side. NAME=FILE names a model; files of the same name
belong to the same model.
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pcrm report", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scores", metavar="SCORES", nargs="+", help="FILE or NAME=FILE")
    parser.add_argument("--out", metavar="DIR", required=True, help="output folder; existing files are replaced")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--constraint", metavar="TOML", help="pcrm.toml whose curve margins are compared with")
    group.add_argument("--preset", metavar="NAME", help="published setting to compare with, as alpaca/length_ratio")
    parser.add_argument(
        "--split", default="train", help="split to read, if the data set has splits (default: %(default)s)"
    )
    args = parser.parse_args(argv)

    from .._engine.native import library

    library()  # without it there are no statistics: said before the files are read
    from ..evaluate import scores
    from ..evaluate.report import summary
    from ..settings import Constraint, load_config, presets

    constraint = None
    prior, said = "column", ""
    if args.constraint:
        constraint = Constraint.from_toml(args.constraint)
        prior, said = load_config(args.constraint).prior, f"--constraint {args.constraint}"
    elif args.preset:
        constraint = Constraint.preset(args.preset)
        prior, said = presets()[args.preset]["prior"], f"--preset {args.preset}"
    found = scores.read(args.scores, args.split)
    for model in found:
        for file, record in model.prior_records.items():
            check_recorded(record, prior, said, file)
    table = summary.write(found, args.out, constraint)
    print(f"{table}\n\nWrote report.html, summary.json and the figures to {printable(args.out)}")
    return 0
