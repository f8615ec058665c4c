"""A constraint fitted to the similarities of a data set, for `pcrm fit`: read, describe and plot."""

from __future__ import annotations

from array import array
from decimal import Decimal
from pathlib import Path

import numpy as np

from ..data.preferences import RowError
from ..data.sources import Source
from ..settings import Constraint
from ..settings.fitted import formula, near_ends
from .statistics import Floats

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_MARGINS = (1, 2, 4, 8)


def read_similarities(source: Source, column: str) -> Floats:
    """Read a column of numbers in [0, 1] from a file or data set.

    Raises:
        OSError: The data cannot be read.
        ValueError: The data has no rows or no such column, or a value is not a number in [0, 1]. The message names the
            file and the line (or row).
    """
    found = array("d")
    for batch in source.batches():
        for i, row in enumerate(batch.rows([column])):
            if isinstance(row, RowError):
                raise ValueError(f"{batch.place(i)}: {row.message}")
            if column not in row:
                raise ValueError(
                    f"{batch.place(i)}: must have a column {column!r}, got none. Add the column 'prior' with `pcrm prior "
                    f"{source.name} --out FILE`, or name another column with --column"
                )
            value = row[column]
            if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)) or not 0 <= value <= 1:
                raise ValueError(f"{batch.place(i)}: {column} must be a number in [0, 1], got {value!r:.80}")
            found.append(float(value))
    if not found:
        raise ValueError(f"{source.name}: must have at least one row, got none")
    return np.array(found)


def win_probability(target: Floats | float) -> Floats:
    """The probability that chosen wins at a target margin. The inverse of `margin_of`."""
    return 1 / (1 + np.exp(-np.asarray(target)))  # targets are positive, so exp does not overflow


def summary_lines(s: Floats, constraint: Constraint) -> list[str]:
    """Describe the curve of a constraint from `Constraint.fit` and its effect on the pairs."""
    c = constraint
    delta = c.delta(s)
    q = np.array([s.min(), *np.quantile(s, _QUANTILES), s.max()])
    at = c.delta(q)
    rows: list[tuple[str, list[str]]] = [
        ("quantile of the pairs", ["min", *(f"{p:.0%}" for p in _QUANTILES), "max"]),
        ("similarity s", [f"{v:.3f}" for v in q]),
        ("ceiling delta(s)", [f"{v:.2f}" for v in at]),
        ("target margin delta/2", [f"{v:.2f}" for v in at / 2]),
        ("as a win probability", [f"{v:.3f}" for v in win_probability(at / 2)]),
        ("", []),
        ("a margin of", [f"{m}" for m in _MARGINS]),
        ("is above the target of", [f"{np.mean(delta / 2 < m):.1%}" for m in _MARGINS]),
        ("is above the ceiling of", [f"{np.mean(delta < m):.1%}" for m in _MARGINS]),
    ]
    assert c.floor is not None and c.cap is not None
    # Includes the pairs exactly at the quantiles: rounding moves a fitted target by at most a factor of 1 + 3e-10.
    floor, cap = (np.mean(np.isclose(delta, end, rtol=1e-9, atol=0)) for end in (c.floor, c.cap))
    alike, unlike, middle = c.floor / 2, c.cap / 2, float(np.median(delta)) / 2
    tenth = (unlike - alike) / 10
    near = near_ends(s, c)
    return [
        formula(c),
        "",
        *((f"{name:<24}" + "".join(f"{v:>8}" for v in values)).rstrip() for name, values in rows),
        "",
        f"{floor:.1%} of the pairs have the lowest target, {c.floor / 2:.4g}. {cap:.1%} have the highest, {c.cap / 2:.4g}. "
        f"{1 - floor - cap:.1%} are between.",
        f"{near[0]:.1%} of the pairs have targets in the lowest tenth of the range, {alike:.4g} to {alike + tenth:.4g}, and {near[1]:.1%} in",
        f"the highest, {unlike - tenth:.4g} to {unlike:.4g}. The median target is {middle:.4g}; the middle of the range is {(alike + unlike) / 2:.4g}.",
        f"The constraint pulls only on pairs above their target. The lowest target is {delta.min() / 2:.4g}, so a model whose",
        "margins stay well below that trains as if unconstrained.",
    ]


def plot_curve(path: Path, s: Floats, constraint: Constraint, at: Floats) -> None:
    """Plot target and ceiling against the similarity, with a histogram of the pairs."""
    import matplotlib

    matplotlib.use("Agg")  # works without a display
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
    pairs.set_ylabel("% of pairs per 0.02")
    pairs.set_xlabel("prior similarity $s$ of the two responses")
    pairs.set_xlim(0, 1)
    for ax in (curve, pairs):
        ax.spines[["top", "right"]].set_visible(False)
        for value in at:
            ax.axvline(value, color="#b3541e", linewidth=0.8, linestyle=":", zorder=0)
    figure.savefig(path, dpi=150, format=path.suffix[1:] or "png")
    plt.close(figure)
