"""`pcrm report`: report accuracy, margins and calibration of a reward model's scores."""

from __future__ import annotations

from .._printable import printable
from ..data.prior_record import check_recorded
from ._parser import Parser

_DESCRIPTION = """\
Print a table of a reward model's accuracy, margins, calibration and rank correlations. Write
summary.json, one self-contained report.html and its figures as SVG to DIR.

SCORES end in .jsonl, .jsonl.gz, .json, .csv or .parquet, or are folders of `datasets`. A row has

  chosen_score, rejected_score   optional: prior; delta; chosen, rejected, prompt, or
                                 chosen_length, rejected_length
  scores, ratings                lists for one prompt; optional: responses or lengths
  score                          optional: response or length

Several files are several models, side by side. NAME=FILE names a model; files with the same name
belong to the same model.
"""
_EXAMPLES = (
    "pcrm report scores.jsonl --out report --preset alpaca/length_ratio",
    "pcrm report plain=plain.jsonl constrained=constrained.jsonl --out report",
)


def main(argv: list[str]) -> int:
    parser = Parser("pcrm report", _DESCRIPTION, *_EXAMPLES)
    parser.add_argument("scores", metavar="SCORES", nargs="+", help="rows with scores, as FILE or NAME=FILE")
    parser.add_argument("--out", metavar="DIR", required=True, help="output folder; existing files are replaced")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--constraint", metavar="TOML", help="pcrm.toml with the curve to compare margins with")
    group.add_argument(
        "--preset", metavar="NAME", help="published curve to compare margins with, such as alpaca/length_ratio"
    )
    parser.add_argument(
        "--split", default="train", help="split to read, if the data set has splits (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    parser.check_folder("--out", args.out)
    from .._engine.native import library

    library()  # statistics need it: fails before the files are read
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
