"""The figures of `pcrm optimize`, each for all models at once."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.ticker import NullLocator

from ..pages import style
from ..pages.figure import Figure, legend
from ..statistics import Floats


def policies(
    name: str, title: str, caption: str, models: dict[str, tuple[Floats, Floats, Floats]], labels: list[str]
) -> Figure:
    """Proxy and gold gain of optimized policies over their KL divergence.

    Args:
        models: KL, proxy gain and gold gain by model, shape (k, 3) each: values and the ends of their intervals.
        labels: Labels of the k points, drawn at the points of the first model.
    """
    order = list(models)
    figure, axes = style.figure(1, 3.1, 1, 2)
    for ax, what, column in zip(axes, ("proxy reward", "gold reward"), (1, 2), strict=True):
        ax.axhline(0, color=style.MUTED, linewidth=0.8, zorder=1)
        for i, numbers in enumerate(models.values()):
            kl, gain = numbers[0][:, 0], numbers[column]
            ax.fill_between(kl, gain[:, 1], gain[:, 2], color=style.color(i), alpha=0.18, linewidth=0, zorder=2)
            ax.plot(kl, gain[:, 0], style.line(i), color=style.color(i), marker="o", markersize=3.5, zorder=3)
        # The square root spreads small divergences and, unlike a logarithm, includes 0.
        ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
        right = max(float(m[0][:, 0].max()) for m in models.values()) or 1.0
        ax.set_xlim(0, 1.05 * right)
        ticks = [t for t in (0, 0.001, 0.01, 0.1, 0.5, 1, 2, 3, 4, 6, 8, 10) if t <= 1.05 * right]
        ax.set_xticks([t for t in ticks if t == 0 or math.sqrt(t / right) > 0.12])
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("KL divergence from the reference policy, nats")
        ax.set_ylabel(f"gain in {what}")
        kl, gain = next(iter(models.values()))[0][:, 0], next(iter(models.values()))[column][:, 0]
        shown = 0.0  # the position of the axis
        for x, y, label in zip(kl, gain, labels, strict=True):
            at = math.sqrt(x / right)
            if at - shown > 0.06:  # the width of a label
                ax.annotate(label, (x, y), (0, 5), textcoords="offset points", ha="center", color=style.MUTED)
                shown = at
    legend(figure, order, order)
    return Figure(name, title, caption, style.svg(figure, name, title))


def rl(models: dict[str, dict[str, Floats]]) -> Figure:
    """Proxy, gold and KL of RL runs by step. Missing numbers are NaN.

    Args:
        models: By name: `step`, `proxy_mean`, `proxy_sd`, `proxy_max`, `gold_mean` and `kl`, shape (steps,).
    """
    order = list(models)
    with_kl = any(np.isfinite(m["kl"]).any() for m in models.values())
    figure, axes = style.figure(1, 2.8, 1, 2 + with_kl)
    for i, m in enumerate(models.values()):
        color, line = style.color(i), style.line(i)
        low, high = m["proxy_mean"] - m["proxy_sd"], m["proxy_mean"] + m["proxy_sd"]
        axes[0].fill_between(m["step"], low, high, color=color, alpha=0.18, linewidth=0, zorder=2)
        axes[0].plot(m["step"], m["proxy_max"], color=color, linewidth=0.7, dashes=(3, 2), zorder=3)
        axes[0].plot(m["step"], m["proxy_mean"], line, color=color, zorder=4)
        axes[1].plot(m["step"], m["gold_mean"], line, color=color, zorder=4)
        if with_kl:
            axes[2].plot(m["step"], m["kl"], line, color=color, zorder=4)
    for ax, label in zip(axes, ("proxy reward", "gold reward", "KL divergence, nats per response"), strict=False):
        ax.set_xlabel("step")
        ax.set_ylabel(label)
        ax.margins(x=0.02)
    legend(figure, order, order)
    return Figure(
        "rl",
        "RL against the proxy",
        "Means over the responses of each step. The band is one standard deviation of the proxy reward, the dashed line its "
        "maximum.",
        style.svg(figure, "rl", "Proxy, gold and KL by step"),
    )
