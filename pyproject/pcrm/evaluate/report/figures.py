"""The figures of a report. Each shows all models, and is None if no model has the data for it.

`order` lists all models of the report. It determines the color of each model in all figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ...settings import Constraint
from .. import statistics
from ..pages import style
from ..pages.figure import Figure, legend
from ..statistics import Floats

# With more points, a scatter plot hides their density, and the SVG is large.
_POINTS = 3000

_CALIBRATED_LINE = (0, (4, 2.5))  # dashes
_BY_LOSS_LINE = (0, (1, 1.5))  # dots

# Bins with a smaller fraction of the pairs do not determine the axis. At least one of ten bins has a tenth.
_SHARE_OF_A_BIN = 0.02


def margins(models: dict[str, Floats], order: list[str]) -> Figure | None:
    """Histograms of the margins, as the fraction of pairs in each bin."""
    models = {k: v for k, v in models.items() if len(v)}
    if not models:
        return None
    low, high = _range(
        np.concatenate([statistics.quantiles(m, np.array([0.0, 0.002, 0.998, 1.0])) for m in models.values()])
    )
    bins = int(np.clip(2 * min(map(len, models.values())) ** (1 / 3), 12, 60))
    figure, ax = style.figure(0.5, 2.9)
    edges = np.linspace(low, high, bins + 1)
    for name, m in models.items():
        i = order.index(name)
        share = statistics.histogram(m, bins, low, high) / len(m)
        _steps(ax, edges, share, style.color(i), style.line(i), filled=len(models) == 1)
    ax.axvline(0, color=style.MUTED, linewidth=0.8, zorder=1)
    ax.set_xlim(low, high)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("margin: chosen minus rejected score")
    ax.set_ylabel("fraction of pairs")
    ax.yaxis.set_major_formatter(_percent())
    legend(figure, list(models), order)
    return Figure(
        "margins",
        "Margins",
        "How far apart the two scores of a pair are. To the left of 0, the rejected response scores higher.",
        style.svg(figure, "margins", "Histogram of the margins"),
        wide=False,
    )


def calibration(
    models: dict[str, Floats], calibrated: dict[str, Floats], deltas: dict[str, Floats], order: list[str]
) -> Figure | None:
    """The reliability diagram, below a histogram of the pairs per bin.

    Dashed lines are calibrated margins. Dotted lines use the probability implied by the constrained loss, given the deltas.
    """
    models = {k: v for k, v in models.items() if len(v)}
    if not models:
        return None
    figure, (top, ax) = style.figure(0.5, 2.9, 2, 1, height_ratios=(1, 4), sharex=True)
    ax.plot([0.5, 1], [0.5, 1], color=style.MUTED, linewidth=0.9, zorder=1)
    lowest = 0.45
    curves = [(name, m, None, style.line(order.index(name))) for name, m in models.items()]
    curves += [(name, m, None, _CALIBRATED_LINE) for name, m in calibrated.items()]
    curves += [(name, models[name], delta, _BY_LOSS_LINE) for name, delta in deltas.items()]
    for name, m, delta, line in curves:
        color = style.color(order.index(name))
        count, confidence, accuracy, low, high = statistics.reliability(m, delta)
        seen = count > 0
        ax.plot(confidence[seen], accuracy[seen], linestyle=line, color=color, marker="o", markersize=3.5, zorder=3)
        ax.vlines(confidence[seen], low[seen], high[seen], color=color, linewidth=0.9, alpha=0.6, zorder=2)
        _steps(top, np.linspace(0.5, 1, 11), count / len(m), color, line, filled=len(curves) == 1)
        # A bin with few pairs may have any accuracy, as its interval shows. Only the other bins determine the axis.
        known = seen & (count >= _SHARE_OF_A_BIN * len(m))
        lowest = min(lowest, float(accuracy[known].min()) - 0.03)
    ax.set_xlim(0.5, 1.005)
    ax.set_ylim(max(lowest, -0.02), 1.02)
    ax.set_xlabel(f"confidence: max(P, 1 \N{MINUS SIGN} P){'' if deltas else ', P = sigmoid(margin)'}")
    ax.set_ylabel("accuracy")
    ax.xaxis.set_major_formatter(_percent())
    ax.yaxis.set_major_formatter(_percent())
    top.set_ylim(bottom=0)
    top.yaxis.set_major_formatter(_percent())
    top.set_ylabel("pairs")
    top.tick_params(bottom=False)
    legend(figure, list(models), order)
    dashed = " Dashed: calibrated scores." if calibrated else ""
    if deltas:
        dashed += " Dotted: P is the probability implied by the constrained loss; otherwise P = sigmoid(margin)."
    return Figure(
        "calibration",
        "Calibration",
        "Accuracy in ten equal bins of confidence, with 95% intervals. On the diagonal, accuracy equals confidence; below "
        f"it, the model is overconfident. The top panel shows the fraction of pairs per bin.{dashed}",
        style.svg(figure, "calibration", "Reliability diagram"),
        wide=False,
    )


def prior(models: dict[str, tuple[Floats, Floats]], order: list[str], constraint: Constraint | None) -> Figure | None:
    """All margins against their priors, one panel per model, with the target curve."""
    if not models:
        return None
    ends = [statistics.quantiles(m, np.array([0.0, 0.001, 0.999, 1.0])) for _, m in models.values()]
    low, high = _range(np.concatenate(ends))
    figure, axes = _panels(len(models), 3.3)
    s = np.linspace(0, 1, 301)
    for (name, (x, m)), ax in zip(models.items(), axes, strict=True):
        ax.axhline(0, color=style.RULE, linewidth=0.8, zorder=0)
        _cloud(ax, x, m, (0, 1), (low, high), style.color(order.index(name)))
        if constraint is not None:
            for curve, dashes, width in ((constraint.delta(s), (4, 2.5), 1.0), (constraint.target(s), (), 1.6)):
                ax.plot(s, curve, color=style.INK, linewidth=width, dashes=dashes, zorder=4)
        ax.set_xlim(-0.015, 1.015)
        ax.set_xticks([0, 0.5, 1] if len(models) > 1 else np.linspace(0, 1, 6))
        ax.set_ylim(low, high)
        ax.set_xlabel("prior (similarity of the two responses)")
        if len(models) > 1:
            ax.set_title(name)
    axes[0].set_ylabel("margin")
    if constraint is not None:
        from matplotlib.lines import Line2D

        figure.legend(
            handles=[
                Line2D([], [], color=style.INK, linewidth=1.6, label="target  δ(s)/2"),
                Line2D([], [], color=style.INK, linewidth=1.0, dashes=(4, 2.5), label="ceiling  δ(s)"),
            ],
            loc="outside upper right",
            ncols=2,
        )
    curve = (
        " The solid curve is the target margin, the dashed curve the ceiling. The constraint pulls only on pairs above "
        "their target, so most points may lie below it."
        if constraint
        else ""
    )
    return Figure(
        "prior",
        "Margin against prior",
        f"All pairs. More similar responses are farther right.{curve}",
        style.svg(figure, "prior", "Margin against prior"),
    )


def length(models: dict[str, tuple[Floats, Floats]], order: list[str], units: str) -> Figure | None:
    """Scores against lengths, one panel per model, with the lowess curve."""
    models = {k: v for k, v in models.items() if len(v[0])}
    if not models:
        return None
    right = max(float(statistics.quantiles(x, np.array([0.995]))[0]) for x, _ in models.values())
    left = min(float(x.min()) for x, _ in models.values())
    figure, axes = _panels(len(models), 3.0, sharey=False)
    pad = 0.02 * (right - left) or 0.5
    for (name, (x, y)), ax in zip(models.items(), axes, strict=True):
        low, high = _range(statistics.quantiles(y, np.array([0.0, 0.001, 0.999, 1.0])))
        _cloud(ax, x, y, (left, right), (low, high), style.color(order.index(name)))
        # Interpolating over a hundredth of the range makes no visible difference.
        smooth = statistics.lowess(x, y, delta=0.01 * float(np.ptp(x)))
        at, first = np.unique(x, return_index=True)
        if len(at) > 400:  # enough for any curve
            keep = np.unique(np.searchsorted(at, np.linspace(at[0], at[-1], 400)))
            at, first = at[keep], first[keep]
        ax.plot(at, smooth[first], color=style.INK, zorder=4)
        ax.set_xlim(left - pad, right + pad)
        ax.set_ylim(low, high)
        ax.set_xlabel(f"length of the response, {units}")
        if len(models) > 1:
            ax.set_title(name)
    axes[0].set_ylabel("score")
    return Figure(
        "length",
        "Score against length",
        "All responses, with a lowess curve (local lines through two thirds of the responses, three robust iterations). A "
        "flat curve means that longer responses do not score higher.",
        style.svg(figure, "length", "Score against length"),
    )


def rankings(models: dict[str, tuple[Floats, Floats]], order: list[str]) -> Figure | None:
    """Histograms of each prompt's rank correlations with the ratings."""
    models = {k: v for k, v in models.items() if np.isfinite(v[0]).any()}
    if not models:
        return None
    figure, axes = style.figure(1, 2.6, 1, 2, sharey=True)
    edges = np.linspace(-1, 1, 21)
    for k, (ax, label) in enumerate(zip(axes, ("Spearman's correlation", "Kendall's tau-b"), strict=True)):
        ax.axvline(0, color=style.MUTED, linewidth=0.8, zorder=1)
        for name, both in models.items():
            i = order.index(name)
            values = both[k][np.isfinite(both[k])]
            share = statistics.histogram(values, 20, -1, 1) / len(values)
            _steps(ax, edges, share, style.color(i), style.line(i), filled=len(models) == 1)
            ax.plot(values.mean(), 0, marker=(3, 0, 0), markersize=9, color=style.color(i), clip_on=False, zorder=5)
        ax.set_xlim(-1.02, 1.02)
        ax.set_xlabel(f"{label} with the ratings")
        ax.yaxis.set_major_formatter(_percent())
    axes[0].set_ylim(bottom=0)  # for both, after both are drawn
    axes[0].set_ylabel("fraction of prompts")
    legend(figure, list(models), order)
    prompts = sorted({int(np.isfinite(v[0]).sum()) for v in models.values()})
    return Figure(
        "rankings",
        "Rank correlation by prompt",
        f"{' to '.join(dict.fromkeys(f'{p:,}' for p in (prompts[0], prompts[-1])))} prompts. Triangles mark the means.",
        style.svg(figure, "rankings", "Rank correlation by prompt"),
    )


def _range(values: Floats) -> tuple[float, float]:
    """The range to show, given (lowest, low quantile, high quantile, highest) for each model.

    All values if the tails are short, else 30% more on either side than the range of the quantiles.
    """
    v = values.reshape(-1, 4)
    low, high = float(v[:, 1].min()), float(v[:, 2].max())
    reach = 0.3 * (high - low)
    low, high = max(float(v[:, 0].min()), low - reach), min(float(v[:, 3].max()), high + reach)
    pad = 0.03 * (high - low) or 0.5
    return low - pad, high + pad


def _cloud(ax: Any, x: Floats, y: Floats, xlim: tuple[float, float], ylim: tuple[float, float], color: str) -> None:
    """All points: one marker each, or for many points hexagons whose opacity shows the density."""
    if len(x) <= _POINTS:
        size, opacity = (8, 0.55) if len(x) < 800 else (5, 0.45)
        ax.scatter(x, y, s=size, color=color, alpha=opacity, linewidths=0, zorder=2)
        return
    from matplotlib.colors import to_rgba

    inside = (x >= xlim[0]) & (x <= xlim[1]) & (y >= ylim[0]) & (y <= ylim[1])
    box = ax.get_subplotspec().get_gridspec()
    width, height = ax.figure.get_size_inches()
    across = 60 // box.ncols
    # The number of rows that makes the hexagons regular.
    down = max(4, round(across * (height / box.nrows - 0.6) / (width / box.ncols - 0.6) / math.sqrt(3)))
    cells = ax.hexbin(
        x[inside], y[inside], gridsize=(across, down), extent=(*xlim, *ylim), mincnt=1, linewidths=0, zorder=2
    )
    count = np.asarray(cells.get_array(), float)
    # Opacity instead of lightness, because it also works on a dark background. A single point must be visible.
    opacity = 0.08 + 0.87 * np.log1p(count - 1) / max(math.log1p(count.max() - 1), 1e-9)
    colors = np.tile(to_rgba(color), (len(count), 1))
    colors[:, 3] = opacity.round(2)
    cells.set_array(None)
    cells.set_facecolor(colors)


def _steps(ax: Any, edges: Floats, share: Floats, color: str, line: Any, *, filled: bool) -> None:
    if filled:
        ax.stairs(share, edges, fill=True, color=color, alpha=0.25, linewidth=0, zorder=2)
    ax.stairs(share, edges, color=color, linewidth=1.4, linestyle=line, zorder=3)


def _panels(n: int, height: float, *, sharey: bool = True) -> tuple[Any, list[Any]]:
    columns = min(n, 3 if n != 4 else 2)
    rows = -(-n // columns)
    figure, axes = style.figure(1, height if rows == 1 else 2.5 * rows, rows, columns, sharey=sharey, squeeze=False)
    for ax in axes.flat[n:]:
        ax.remove()
    for ax in axes[:, 0]:
        ax.set_ylabel(" ")
    return figure, list(axes.flat[:n])


def _percent() -> Callable[[float, Any], str]:
    return lambda share, _: f"{100 * share:g}%"
