"""The figures of docs/experiments.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from methods import ALL, Data, fit_two_points
from pcrm.demo.plot import plot_margins
from pcrm.evaluate.pages import style
from tables import COEFFICIENTS, COLUMNS, SHOWN, Estimates, Found, interval

COMPARED = ("plain", "fixed, fitted", "length ratio, fitted", "cosine, fitted", "length ratio, published")


def _write(figure: Any, file: Path, title: str) -> None:
    file.write_text(style.standalone(style.svg(figure, file.stem, title)))


def differences(file: Path, estimates: Estimates) -> None:
    """The difference of each method from plain, with its interval."""
    methods = [m for m in ALL if m in estimates and m != "plain"]
    base, base_resampled = estimates["plain"]
    with style.style():
        figure, axes = style.figure(1, 0.5 + 0.42 * len(methods), 2, 3, sharey=True)
        for ax, (key, better) in zip(axes.flat, SHOWN.items(), strict=True):
            k = list(COLUMNS).index(key)
            ax.axvline(0, color=style.MUTED, linewidth=0.8, zorder=1)
            for y, method in enumerate(reversed(methods)):
                value, resampled = estimates[method]
                low, high = interval(value[k] - base[k], resampled[:, k] - base_resampled[:, k])
                color = style.color(0 if "fitted" in method else 1 if "published" in method else 6)
                ax.plot([low, high], [y, y], color=color, zorder=2)
                ax.plot(value[k] - base[k], y, "o", color=color, markersize=4, zorder=3)
            note = {1: " (more is better)", -1: " (less is better)", 0: ""}[better]
            ax.set_title(COLUMNS[key].head + note, fontsize=7.5)
            ax.set_yticks(range(len(methods)), list(reversed(methods)))
            ax.locator_params(axis="x", nbins=4)
            ax.grid(axis="x")
        _write(figure, file, "Each method less plain, with 95% intervals")


def optimization(file: Path, found: Found) -> None:
    """The softmax policies of tier B, or of tier A without B: proxy reward and human rating."""
    runs = found.get("B") or found["A"]
    with style.style():
        figure, axes = style.figure(1, 2.9, 1, 3)
        for i, method in enumerate(m for m in COMPARED if m in runs):
            kl, proxy, rating = np.mean([run.curves.mean(0) for run in runs[method]], 0)
            look: Any = {"color": style.color(i), "linestyle": style.line(i), "label": method}
            axes[0].plot(COEFFICIENTS, proxy, **look)
            axes[1].plot(kl, proxy, **look)
            axes[2].plot(kl, rating, **look)
        axes[0].set_xscale("log")
        axes[0].invert_xaxis()
        axes[0].set_xlabel("weight b of the KL penalty")
        axes[1].set_xlabel("KL from the reference, nats")
        axes[2].set_xlabel("KL from the reference, nats")
        for ax, title in zip(axes, ("reward gained", "reward gained", "human rating gained"), strict=True):
            ax.set_title(title)
            ax.grid(axis="y")
            ax.set_ylim(bottom=0)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
        _write(figure, file, "Reward and human rating that softmax policies gain")


def margins(file: Path, train: Data, test: Data, rows: list[dict[str, Any]]) -> None:
    """The figure of the README: the margin of each test pair over its prior, plain and constrained, for one seed."""
    tier = max(row["tier"] for row in rows)
    scores = {row["method"]: np.array(row["scores"]) for row in rows if (row["tier"], row["seed"]) == (tier, 0)}
    chosen, rejected = test.posts.pairs.T
    shown = {m: scores[m][chosen] - scores[m][rejected] for m in ("plain", "length ratio, fitted") if m in scores}
    plot_margins(
        file,
        test.priors["length_ratio"].numpy(),
        shown,
        fit_two_points(train.priors["length_ratio"]),
        f"{len(chosen):,} held-out pairs of summaries that people rated, two reward models of the same encoder",
    )
