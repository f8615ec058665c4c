"""`pcrm fit`: fit a constraint to target margins and a data set."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from pathlib import Path

import numpy as np

from ..data.sources import Source, open_source
from ..evaluate.fitted_constraint import plot_curve, read_similarities, summary_lines, win_probability
from ..settings import COMPUTED_PRIORS, Constraint, margin_of
from ..settings.fitted import write_toml
from ._parser import Parser

_DESCRIPTION = """\
Fit a constraint to the column `prior` of a data set, which `pcrm prior` adds. The target margin is
--target-alike for similar pairs, --target-unlike for dissimilar pairs, and midway between the two
for the median pair. Give targets as margins or as win probabilities, where margin = log(p / (1 - p)).

Print the effect on the pairs, plot the curve, and write a pcrm.toml, which the trainers and
pcrm.Constraint.from_toml read. Prefer a lexical or cosine prior: models trained
with the length ratio favor long responses more.
"""
_EXAMPLES = (
    "pcrm fit with-prior.jsonl --target-alike 1 --target-unlike 3",
    "pcrm fit with-prior.jsonl --win-alike 0.7 --win-unlike 0.95 --out win.toml",
)


def main(argv: list[str]) -> int:
    parser = Parser("pcrm fit", _DESCRIPTION, *_EXAMPLES)
    parser.add_argument(
        "data",
        metavar="DATA",
        help="preferences with a prior: a file (.jsonl, .jsonl.gz, .json, .csv, .parquet), a folder of `datasets`, or a "
        "data set on the hub",
    )
    for side, text in (
        ("alike", "similar pairs, greater than 0"),
        ("unlike", "dissimilar pairs, greater than that of similar pairs"),
    ):
        target = parser.add_mutually_exclusive_group(required=True)
        target.add_argument(f"--target-{side}", type=float, metavar="MARGIN", help=f"target margin of {text}")
        target.add_argument(
            f"--win-{side}",
            dest=f"target_{side}",
            type=_win,
            metavar="P",
            help="the same as a win probability in (0.5, 1)",
        )
    parser.add_argument(
        "--quantiles",
        type=float,
        nargs=2,
        default=(0.05, 0.95),
        metavar=("LOW", "HIGH"),
        help="quantiles of the similarities that count as dissimilar and similar (default: 0.05 0.95)",
    )
    parser.add_argument(
        "--column", default="prior", metavar="NAME", help="column with the similarities (default: %(default)s)"
    )
    parser.add_argument(
        "--prior",
        choices=(*COMPUTED_PRIORS, "column"),
        help="prior to name in the pcrm.toml. A trainer computes it for data without a column 'prior'; with `column`, such "
        "data is an error (default: the prior that `pcrm prior` recorded with DATA, else column)",
    )
    parser.add_argument(
        "--split", default="train", help="split to read, if the data set has splits (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("pcrm.toml"),
        metavar="FILE",
        help="output: the pcrm.toml (default: %(default)s)",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="output: the plot (default: --out with the suffix .png)"
    )
    parser.add_argument("--force", action="store_true", help="replace existing output files")
    args = parser.parse_args(argv)
    if args.out.suffix != ".toml":
        raise ValueError(f"--out must end in .toml, got {args.out}")
    plot: Path = args.plot or args.out.with_suffix(".png")
    if plot == args.out:
        raise ValueError(f"--plot must be another file than --out, got {plot} for both")
    for path in (args.out, plot):
        if path.exists() and not args.force:
            raise FileExistsError(f"{path}: already exists. Add --force to replace it")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent}: no such folder")
    from matplotlib.backend_bases import FigureCanvasBase  # fail before reading a large file

    if plot.suffix[1:].lower() not in (endings := FigureCanvasBase.get_supported_filetypes()):
        raise ValueError(f"--plot must end in one of .{', .'.join(sorted(endings))}, got {plot}")

    source = open_source(args.data, args.split)
    prior = _prior(source, args.column, args.prior)
    s = read_similarities(source, args.column)
    low, high = args.quantiles
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            constraint = Constraint.fit(
                s, target_alike=args.target_alike, target_unlike=args.target_unlike, quantiles=(low, high)
            )
        except ValueError as error:
            raise ValueError(re.sub(r"\btarget_(alike|unlike)\b", r"--target-\1", str(error))) from None
    at = np.quantile(s, (high, low))
    pairs = f"{len(s):,} pairs of {args.data!r}, column {args.column!r}"
    goals = [
        f"target margin {target:.4g} (win probability {win_probability(target):.3f}) at the similarity {where:.4g}, quantile {q:g}"
        for target, where, q in zip((args.target_alike, args.target_unlike), at, (high, low), strict=True)
    ]
    # Write the files before printing, because printing may fail on a closed pipe.
    plot_curve(plot, s, constraint, at)
    write_toml(args.out, constraint, prior, [f"Made by pcrm fit of {pairs}:", *goals])
    lines = [pairs, *goals, "", *summary_lines(s, constraint), "", f"{args.out} and {plot} written"]
    for warning in warned:
        print(f"pcrm fit: warning: {warning.message}", file=sys.stderr)
    print("\n".join(lines))
    return 0


def _win(text: str) -> float:
    try:
        return margin_of(float(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number in (0.5, 1), got {text!r}") from None


def _prior(source: Source, column: str, asked: str | None) -> str:
    """Return the prior to name in the toml: the one asked for, else the recorded one, else "column".

    Raises:
        ValueError: A trainer that computes the prior asked for would get other numbers than those in the column.
    """
    record = source.prior if column == "prior" else None
    if record is None:
        return asked or "column"
    # Trainers compare responses without the prompt, and use angular cosines.
    computed = record["prior"] in COMPUTED_PRIORS and not record.get("with_prompt") and not record.get("raw")
    recorded = record["prior"] if computed else "column"
    if asked not in (None, "column", recorded):
        raise ValueError(
            f"--prior must be {recorded} for {source.name}, got {asked}: the record of its column 'prior' says {record}"
        )
    return asked or recorded
