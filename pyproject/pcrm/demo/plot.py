"""The picture: the margin of every held-out pair against its prior, without and with the constraint."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # works without a display

import matplotlib.pyplot as plt
import numpy as np

from .._printable import printable
from ..settings import Constraint

_COLORS = ("#b3541e", "#1f6f8b")  # they differ in lightness too, for print and for color-blind readers
# A reader expects the points on the target.
_WHY_BELOW = (
    "The target is where the loss pulls the margin of a pair whose order is certain. Preferences are noisy and these pairs "
    "were held out,\nso the model is unsure of most of them and their margins stay below the target. The constraint acts "
    "on the margins above it."
)


def plot_margins(
    path: Path, prior: np.ndarray, margins: dict[str, np.ndarray], constraint: Constraint, subtitle: str
) -> None:
    """Draw margin against prior for two models side by side: all pairs, the ceiling delta and the target delta/2."""
    s = np.linspace(0, 1, 400)
    delta = constraint.delta(s)
    low, high = (f(f(m) for m in margins.values()) for f in (min, max))
    pad = 0.05 * (max(high, delta.max()) - min(low, 0))
    limits = (min(low, 0) - pad, max(high, delta.max()) + pad)
    figure, axes = plt.subplots(1, 3, figsize=(12, 5), sharey=True, width_ratios=(1, 1, 0.42), layout="constrained")
    for ax, (name, margin), color in zip(axes, margins.items(), _COLORS, strict=False):
        ax.axhline(0, color="0.75", linewidth=0.8, zorder=1)
        ax.fill_between(s, delta, limits[1], color="0.93", zorder=0, linewidth=0)
        ax.scatter(prior, margin, s=9, alpha=0.35, color=color, linewidths=0, zorder=2, rasterized=True)
        ax.plot(s, delta, color="0.35", linewidth=1, linestyle="--", zorder=3, label="ceiling  $\\delta(s)$")
        ax.plot(s, delta / 2, color="black", linewidth=1.6, zorder=3, label="target  $\\delta(s)/2$")
        over = float((margin > constraint.delta(prior)).mean())
        ax.set_title(f"{name}: sd {margin.std():.2f}, {over:.1%} over the ceiling", fontsize=11)
        ax.set_xlabel("prior similarity $s$ of the two responses")
        ax.set_xlim(-0.02, 1.02)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(*limits)
    axes[0].set_ylabel("margin, chosen minus rejected score")
    axes[0].legend(loc="lower left", frameon=False, fontsize=9)
    bins = np.linspace(*limits, 50)
    for (name, margin), color in zip(margins.items(), _COLORS, strict=False):
        axes[2].hist(margin, bins=list(bins), orientation="horizontal", color=color, alpha=0.25, histtype="stepfilled")
        axes[2].hist(
            margin, bins=list(bins), orientation="horizontal", color=color, histtype="step", linewidth=1.4, label=name
        )
    axes[2].set_xlabel("pairs")
    axes[2].spines[["top", "right"]].set_visible(False)
    axes[2].legend(frameon=False, fontsize=9)
    figure.suptitle(
        printable(subtitle), fontsize=10, color="0.3", parse_math=False
    )  # it has the name of the user's file
    figure.supxlabel(_WHY_BELOW, fontsize=9, color="0.3")
    figure.savefig(path, dpi=150)
    plt.close(figure)
