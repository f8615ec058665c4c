"""`pcrm fit`: the betas that give a data set the margins that its user wants."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np

from ..data.sources import Source, open_source
from ..evaluate.fitted_constraint import plot_curve, read_similarities, summary_lines, win_probability
from ..settings import COMPUTED_PRIORS, Constraint, margin_of
from ..settings.fitted import write_toml

_FIT = """\
Finds the constraint whose target margin is --target-alike for the alike pairs of a data set,
--target-unlike for its unlike ones and midway for the median pair between them, by the numbers
in its column `prior`, which `pcrm prior` makes. Prints what it does to the data, draws it and
writes a pcrm.toml, which pcrm.Constraint.from_toml and the trainers read. Targets may also be
win probabilities, of which the margin is the log odds. Prefer a lexical or cosine prior: models
trained with the length ratio favor long responses more.
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pcrm fit", description=_FIT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="preferences with a prior: .jsonl, .jsonl.gz, .parquet, a folder of `datasets`, a data set of the hub",
    )
    for side, text in (("alike", "alike pairs, greater than 0"), ("unlike", "unlike pairs, greater than that")):
        target = parser.add_mutually_exclusive_group(required=True)
        target.add_argument(f"--target-{side}", type=float, metavar="MARGIN", help=f"target margin of {text}")
        target.add_argument(
            f"--win-{side}", dest=f"target_{side}", type=_win, metavar="P", help="as a win probability in (0.5, 1)"
        )
    parser.add_argument(
        "--quantiles",
        type=float,
        nargs=2,
        default=(0.05, 0.95),
        metavar=("LOW", "HIGH"),
        help="quantiles of the similarities that count as unlike and alike (default: 0.05 0.95)",
    )
    parser.add_argument(
        "--column", default="prior", metavar="NAME", help="where the similarities are (default: %(default)s)"
    )
    parser.add_argument(
        "--prior",
        choices=(*COMPUTED_PRIORS, "column"),
        help="prior to write into the toml, which a trainer computes for data without a column 'prior'; `column` makes "
        "it refuse such data (default: the one that `pcrm prior` recorded with DATA, else column)",
    )
    parser.add_argument("--split", default="train", help="of a data set that has some (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("pcrm.toml"), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="default: --out with the suffix .png")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    args = parser.parse_args(argv)
    if args.out.suffix != ".toml":
        raise ValueError(f"--out is {args.out}, must end in .toml")
    plot: Path = args.plot or args.out.with_suffix(".png")
    if plot == args.out:
        raise ValueError(f"--out and --plot are both {plot}")
    for path in (args.out, plot):
        if path.exists() and not args.force:
            raise FileExistsError(f"{path} is there already: --force replaces it")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent}: no such folder")
    import matplotlib  # noqa: F401  (not after a long reading)

    source = open_source(args.data, args.split)
    prior = _prior(source, args.column, args.prior)
    s = read_similarities(source, args.column)
    low, high = args.quantiles
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        constraint = Constraint.fit(
            s, target_alike=args.target_alike, target_unlike=args.target_unlike, quantiles=(low, high)
        )
    at = np.quantile(s, (high, low))
    pairs = f"{len(s):,} pairs of {args.data!r}, column {args.column!r}"
    goals = [
        f"target margin {target:.4g} (win probability {win_probability(target):.3f}) at the similarity {where:.4g}, quantile {q:g}"
        for target, where, q in zip((args.target_alike, args.target_unlike), at, (high, low), strict=True)
    ]
    # Before anything is printed, which may end in a closed pipe.
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
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _prior(source: Source, column: str, asked: str | None) -> str:
    """The prior that the toml names: the one asked for, else the one that is recorded, else "column".

    Raises:
        ValueError: A trainer that computes the prior asked for gets other numbers than those recorded.
    """
    record = source.prior if column == "prior" else None
    if record is None:
        return asked or "column"
    # Trainers compare responses alone, and cosines as angles.
    computed = record["prior"] in COMPUTED_PRIORS and not record.get("with_prompt") and not record.get("raw")
    recorded = record["prior"] if computed else "column"
    if asked not in (None, "column", recorded):
        raise ValueError(
            f"--prior must be {recorded} for {source.name}, got {asked}: the record of its column 'prior' says {record}"
        )
    return asked or recorded
