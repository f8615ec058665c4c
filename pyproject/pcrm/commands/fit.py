"""`pcrm fit`: the betas that give a data set the margins that its user wants."""

from __future__ import annotations

import argparse
import os
from array import array
from decimal import Decimal
from pathlib import Path

import numpy as np

from ..data.preferences import RowError
from ..data.sources import Source, open_source
from ..settings import COMPUTED_PRIORS, Constraint, margin_of

_FIT = """\
Finds the constraint whose target margin is --target-alike for the alike pairs of a data set
and --target-unlike for its unlike ones, by the numbers in its column `prior`, which `pcrm
prior` makes. Prints what it does to the data, draws it and writes a pcrm.toml, which
pcrm.Constraint.from_toml and the trainers read. Targets may also be win probabilities, of
which the margin is the log odds.
"""

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_MARGINS = (1, 2, 4, 8)


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
    s = similarities(source, args.column)
    low, high = args.quantiles
    constraint = Constraint.fit(
        s, target_alike=args.target_alike, target_unlike=args.target_unlike, quantiles=(low, high)
    )
    at = np.quantile(s, (high, low))
    pairs = f"{len(s):,} pairs of {args.data!r}, column {args.column!r}"
    goals = [
        f"target margin {target:.4g} (win probability {_sigmoid(target):.3f}) at the similarity {where:.4g}, quantile {q:g}"
        for target, where, q in zip((args.target_alike, args.target_unlike), at, (high, low), strict=True)
    ]
    # Before anything is printed, which may end in a closed pipe.
    draw(plot, s, constraint, at)
    write(args.out, constraint, prior, [f"Made by pcrm fit of {pairs}:", *goals])
    print("\n".join([pairs, *goals, "", *report(s, constraint), "", f"{args.out} and {plot} written"]))
    return 0


def _win(text: str) -> float:
    try:
        return margin_of(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _sigmoid(x: np.ndarray | float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x)))  # of targets, which are greater than 0: exp does not overflow


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


def similarities(source: Source, column: str) -> np.ndarray:
    """A column of numbers in [0, 1] of a file or data set.

    Raises:
        OSError, ValueError: it cannot be read, has no rows or no such column, or one of its
            values is none; the message names file and line (or row).
    """
    found = array("d")
    for batch in source.batches():
        for i, row in enumerate(batch.rows([column])):
            if isinstance(row, RowError):
                raise ValueError(f"{batch.place(i)}: {row.message}")
            if column not in row:
                raise ValueError(
                    f"{batch.place(i)}: has no {column!r}: `pcrm prior {source.name} --out FILE` makes a column 'prior', "
                    "--column names another one"
                )
            value = row[column]
            if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)) or not 0 <= value <= 1:
                raise ValueError(f"{batch.place(i)}: {column} is {value!r:.80}, must be a number in [0, 1]")
            found.append(float(value))
    if not found:
        raise ValueError(f"{source.name}: holds no rows")
    return np.array(found)


def report(s: np.ndarray, constraint: Constraint) -> list[str]:
    """Lines about a fitted constraint on similarities: the curve, and what it does to the pairs."""
    c = constraint
    delta = c.delta(s)
    q = np.array([s.min(), *np.quantile(s, _QUANTILES), s.max()])
    at = c.delta(q)
    rows: list[tuple[str, list[str]]] = [
        ("quantile of the pairs", ["least", *(f"{p:.0%}" for p in _QUANTILES), "most"]),
        ("similarity s", [f"{v:.3f}" for v in q]),
        ("ceiling delta(s)", [f"{v:.2f}" for v in at]),
        ("target margin delta/2", [f"{v:.2f}" for v in at / 2]),
        ("as a win probability", [f"{v:.3f}" for v in _sigmoid(at / 2)]),
        ("", []),
        ("a margin of", [f"{m}" for m in _MARGINS]),
        ("is over the target of", [f"{np.mean(delta / 2 < m):.1%}" for m in _MARGINS]),
        ("and over the ceiling of", [f"{np.mean(delta < m):.1%}" for m in _MARGINS]),
    ]
    sign = "-" if c.beta3 < 0 else "+"
    assert c.floor is not None and c.cap is not None
    # The pairs right at the quantiles too: rounding moves a fitted target by 3e-10 of it at most.
    floor, cap = (np.mean(np.isclose(delta, end, rtol=1e-9, atol=0)) for end in (c.floor, c.cap))
    return [
        f"delta(s) = {c.beta1:.6g} / (s + {c.beta2:g}) {sign} {abs(c.beta3):.6g}, at least {c.floor:.4g}, at most {c.cap:.4g}",
        "",
        *((f"{name:<24}" + "".join(f"{v:>8}" for v in values)).rstrip() for name, values in rows),
        "",
        f"{floor:.1%} of the pairs are at the floor, target {c.floor / 2:.4g}; {cap:.1%} at the cap, target {c.cap / 2:.4g}; "
        f"{1 - floor - cap:.1%} between.",
        f"A pair is pulled back from where its margin passes its target, and no target is under {delta.min() / 2:.4g}: margins that",
        "stay far below are trained as without a constraint.",
    ]


def write(path: Path, constraint: Constraint, prior: str, comments: list[str]) -> None:
    """Put the constraint in a `pcrm.toml`, which is there whole or not at all."""
    c = constraint
    lines = [
        *(f"# {line}" for line in comments),
        "[constraint]",
        f'prior = "{prior}"  # these betas fit no other prior',
        *(f"{name} = {getattr(c, name)!r}" for name in ("beta1", "beta2", "beta3", "floor", "cap")),
        "",
    ]
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text("\n".join(lines))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def draw(path: Path, s: np.ndarray, constraint: Constraint, at: np.ndarray) -> None:
    """Write a picture of target and ceiling over the similarity, and of how many pairs have which."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed, and none may be there
    import matplotlib.pyplot as plt

    x = np.linspace(0, 1, 1001)
    delta = constraint.delta(x)
    figure, (curve, pairs) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, height_ratios=(2, 1), layout="constrained")
    curve.plot(x, delta, color="0.35", linewidth=1, linestyle="--", label="ceiling  $\\delta(s)$")
    curve.plot(x, delta / 2, color="black", linewidth=1.6, label="target  $\\delta(s)/2$")
    curve.plot(at, constraint.target(at), "o", color="#b3541e", label="fitted here")
    curve.set_ylim(0, 1.08 * delta.max())
    curve.set_ylabel("margin, in units of the score")
    curve.legend(frameon=False)
    pairs.hist(s, bins=list(np.linspace(0, 1, 51)), weights=np.full(len(s), 100 / len(s)), color="#1f6f8b")
    pairs.set_ylabel("% of the pairs, by 0.02")
    pairs.set_xlabel("prior similarity $s$ of the two responses")
    pairs.set_xlim(0, 1)
    for ax in (curve, pairs):
        ax.spines[["top", "right"]].set_visible(False)
        for value in at:
            ax.axvline(value, color="#b3541e", linewidth=0.8, linestyle=":", zorder=0)
    figure.savefig(path, dpi=150, format=path.suffix[1:] or "png")
    plt.close(figure)
