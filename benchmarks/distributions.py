"""Compute the distributions of each prior and of delta on a data set, as tables and a figure.

    python benchmarks/distributions.py pairs.jsonl.gz --model path/to/encoder        # writes docs/priors.png

The encoder's tokenizer also splits the texts for the length ratio.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from pcrm.demo.data import read_preferences

import pcrm
from pcrm import Constraint

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MARGINS = (1, 2, 4, 8)
TARGETS = {"target_alike": 1.0, "target_unlike": 6.0}

# The published settings of priors, where there are any.
PRESETS = {
    "length ratio": ["alpaca/length_ratio"],
    "lexical": [],
    "cosine, angular": ["alpaca/cosine", "tldr/cosine"],
    "cosine, raw": ["dpo/cosine"],
}


def priors(chosen: list[str], rejected: list[str], model: str) -> dict[str, np.ndarray]:
    def timed(name: str, compute: Callable[[], torch.Tensor]) -> np.ndarray:
        begin = time.perf_counter()
        s = compute().double().numpy()
        print(f"{name:<18}{len(s) / (time.perf_counter() - begin):>12,.0f} pairs/s")
        return s

    ask = pcrm.priors.of_texts
    return {
        "length ratio": timed("length ratio", lambda: ask(chosen, rejected, prior="length_ratio", tokenizer=model)),
        "lexical": timed("lexical", lambda: ask(chosen, rejected, prior="lexical")),
        "cosine, angular": timed("cosine, angular", lambda: ask(chosen, rejected, prior="cosine", model=model)),
        "cosine, raw": timed("cosine, raw", lambda: ask(chosen, rejected, prior="cosine", model=model, angular=False)),
    }


def tables(found: dict[str, np.ndarray]) -> str:
    """Return tables of the quantiles of similarities and deltas, and of the fraction of pairs whose target a margin exceeds."""
    deltas = [
        "| prior | | " + " | ".join(f"{q:.0%}" for q in QUANTILES) + " |",
        "|---|---|" + "---|" * len(QUANTILES),
    ]
    over = ["| a margin of | | " + " | ".join(map(str, MARGINS)) + " |", "|---|---|" + "---|" * len(MARGINS)]
    for name, s in found.items():
        q = np.quantile(s, QUANTILES)
        deltas.append(f"| {name} | s | " + " | ".join(f"{v:.3f}" for v in q) + " |")
        constraints = {preset: Constraint.preset(preset) for preset in PRESETS[name]}
        constraints["fitted"] = Constraint.fit(s, **TARGETS)
        for label, constraint in constraints.items():
            deltas.append(f"| | delta, {label} | " + " | ".join(f"{v:,.1f}" for v in constraint.delta(q)) + " |")
            share = (f"{np.mean(constraint.target(s) < m):.1%}" for m in MARGINS)
            over.append(f"| {name} | {label} | " + " | ".join(share) + " |")
    return "\n".join([*deltas, "", *over])


def draw(path: Path, found: dict[str, np.ndarray], data: str) -> None:
    figure, axes = plt.subplots(2, len(found), figsize=(13, 6), sharex=True, sharey="row", layout="constrained")
    x = np.linspace(0, 1, 1001)
    for (name, s), (pairs, curve) in zip(found.items(), axes.T, strict=True):
        pairs.hist(s, bins=list(np.linspace(0, 1, 51)), weights=np.full(len(s), 100 / len(s)), color="#1f6f8b")
        pairs.set_title(name, fontsize=11)
        for preset, style in zip(PRESETS[name], ("--", ":"), strict=False):
            curve.plot(x, Constraint.preset(preset).target(x), style, color="#b3541e", label=preset)
        curve.plot(x, Constraint.fit(s, **TARGETS).target(x), color="black", label="fitted to 1 and 6")
        low, middle, high = np.quantile(s, (0.05, 0.5, 0.95))
        for ax in (pairs, curve):
            ax.axvspan(low, high, color="0.93", zorder=0, linewidth=0)
            ax.axvline(middle, color="0.6", linewidth=0.8, zorder=1)
            ax.spines[["top", "right"]].set_visible(False)
        curve.set_ylim(0, 15)
        curve.set_xlim(0, 1)
        curve.set_xlabel("prior similarity $s$")
        curve.legend(frameon=False, fontsize=8, loc="best")
    axes[0, 0].set_ylabel("% of the pairs")
    axes[1, 0].set_ylabel("target $\\delta(s)/2$, units of the score")
    figure.suptitle(f"{data}; shaded: the middle 90 % of the pairs, with their median", fontsize=10, color="0.3")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="file of plain preferences (.jsonl, .jsonl.gz or .parquet)")
    parser.add_argument("--model", required=True, help="folder of an encoder")
    parser.add_argument("--name", help="name of the data in the figure (default: that of the file)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "priors.png")
    args = parser.parse_args()
    rows = read_preferences(args.data)
    found = priors([r["chosen"] for r in rows], [r["rejected"] for r in rows], args.model)
    print(tables(found))
    draw(args.out, found, f"{len(rows):,} pairs of {args.name or Path(args.data).name}")


if __name__ == "__main__":
    main()
