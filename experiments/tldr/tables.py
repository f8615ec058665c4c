"""The results from the saved scores: results.csv, and the tables of docs/experiments.md.

Statistics of one run are those of `pcrm report` and `pcrm optimize`. Intervals are the mean over seeds plus or minus 1.96
standard deviations of a bootstrap that resamples test posts and, independently, seeds. They cover the variation between
posts and between seeds, but not between data sets or models. They are not quantiles of the resamples, because the calibration
error of a resample is on average larger than that of its data. Differences from plain use the same posts and seeds in each
resample.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from methods import ALL
from numpy.typing import NDArray
from pcrm.evaluate import statistics
from pcrm.evaluate.optimization import best_of_n, softmax_policy
from posts import Posts
from tqdm.auto import tqdm

RESAMPLES = 1000
BEST_OF = 4
# Coefficients of the softmax policies, from almost the reference to almost the highest score of each pool. They are so
# close together that linear interpolation between them is accurate.
COEFFICIENTS = np.geomspace(50, 0.01, 80)
COEFFICIENT, KL = 0.5, 0.5  # where the columns look: one penalty for all, and one divergence for all

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    head: str
    digits: int


COLUMNS = {
    "accuracy": Column("pair accuracy", 3),
    "spearman": Column("Spearman", 3),
    "kendall": Column("Kendall", 3),
    "margin_sd": Column("margin sd", 2),
    "margin_p95": Column("margin 95%", 2),
    "ece": Column("ECE", 3),
    "spearman_length": Column("Spearman with length", 3),
    "best_of_4_rating": Column("best of 4", 3),
    "rl_proxy": Column("proxy, b = .5", 2),
    "rl_rating": Column("rating, b = .5", 3),
    "rl_kl": Column("KL, b = .5", 3),
    "rl_rating_at_kl": Column("rating, KL = .5", 3),
}

SCORES = list(COLUMNS)[:7]
OPTIMIZATION = list(COLUMNS)[7:]
# The main columns, and whether higher is better (1), lower is better (-1) or neither (0).
SHOWN = {"accuracy": 1, "spearman": 1, "best_of_4_rating": 1, "rl_rating_at_kl": 1, "margin_sd": 0, "ece": -1}


class Measured(Protocol):
    """The scores of one model, and their columns on any resample of posts."""

    def columns(
        self, sample: NDArray[np.int64], pairs: NDArray[np.int64], responses: NDArray[np.int64]
    ) -> list[float]: ...


class Run:
    """The scores of the test summaries by one model, and all their columns on any resample of posts."""

    def __init__(self, posts: Posts, scores: Floats) -> None:
        self.margins = scores[posts.pairs[:, 0]] - scores[posts.pairs[:, 1]]
        self.scores, self.lengths = scores, posts.lengths
        pools = [slice(a, b) for a, b in zip(posts.offsets, posts.offsets[1:], strict=False)]
        _, self.spearman, self.kendall = statistics.rankings(scores, posts.ratings, posts.offsets)
        self.best = np.full(len(pools), np.nan)
        curves = []
        for i, pool in enumerate(pools):
            one = [scores[pool]], [posts.ratings[pool]]
            if len(one[0][0]) >= BEST_OF:
                self.best[i] = best_of_n(*one, [BEST_OF]).gold_gain[0, 0]
            curve = softmax_policy(*one, COEFFICIENTS)
            curves.append([curve.kl[:, 0], curve.proxy_gain[:, 0], curve.gold_gain[:, 0]])
        self.curves = np.array(curves)  # (posts, 3, coefficients)

    def columns(self, sample: NDArray[np.int64], pairs: NDArray[np.int64], responses: NDArray[np.int64]) -> list[float]:
        """The columns in the order of COLUMNS. `sample` are posts; `pairs` and `responses` are all pairs and responses of these."""
        margins = self.margins[pairs]
        share, confidence, right, *_ = statistics.reliability(margins)
        kl, proxy, rating = self.curves[sample].mean(0)
        at = np.log(COEFFICIENTS[::-1])

        def where(b: float, curve: Floats) -> float:
            return float(np.interp(np.log(b), at, curve[::-1]))

        return [
            float((margins > 0).mean()),
            float(np.nanmean(self.spearman[sample])),
            float(np.nanmean(self.kendall[sample])),
            float(margins.std()),
            float(np.quantile(margins, 0.95)),
            float(np.nansum(share * np.abs(right - confidence)) / len(margins)),
            statistics.spearman(self.scores[responses], self.lengths[responses]),
            float(np.nanmean(self.best[sample])),
            where(COEFFICIENT, proxy),
            where(COEFFICIENT, rating),
            where(COEFFICIENT, kl),
            float(np.interp(KL, kl, rating)),
        ]


# By method: the value of each column, and the values of each resample, (resamples, columns).
Estimates = dict[str, tuple[Floats, Floats]]
Found = dict[str, dict[str, list[Run]]]  # by tier and method


def write(posts: Posts, rows: list[dict[str, Any]], results: Path, page: Path) -> tuple[Found, dict[str, Estimates]]:
    """Write results.csv and the tables of the page between their marks; return their contents by tier."""
    found: Found = {}
    for row in tqdm(rows, desc="statistics", disable=None):
        run = Run(posts, np.array(row["scores"], np.float64))
        found.setdefault(row["tier"], {}).setdefault(row["method"], []).append(run)
    everything = np.arange(len(posts.prompts)), np.arange(len(posts.pairs)), np.arange(len(posts.responses))
    with results.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["tier", "method", "seed", *COLUMNS])
        for row in rows:
            run = found[row["tier"]][row["method"]][row["seed"]]
            writer.writerow([row["tier"], row["method"], row["seed"], *(f"{v:.5f}" for v in run.columns(*everything))])
    text = page.read_text()
    estimates = {tier: bootstrap(posts, runs) for tier, runs in found.items()}
    for tier, of_tier in estimates.items():
        text = replaced(text, f"{tier}: scores", table(of_tier, SCORES))
        text = replaced(text, f"{tier}: optimization", table(of_tier, OPTIMIZATION))
        text = replaced(text, f"{tier}: differences", differences(of_tier, list(SHOWN)))
    page.write_text(text)
    return found, estimates


def bootstrap(posts: Posts, runs: Mapping[str, Sequence[Measured]], resamples: int = RESAMPLES) -> Estimates:
    """Means over seeds of all columns, measured and resampled. All methods have the same resamples."""
    random = np.random.default_rng(0)
    of_pairs = [np.flatnonzero(posts.pair_post == p) for p in range(len(posts.prompts))]
    of_responses = [np.flatnonzero(posts.post == p) for p in range(len(posts.prompts))]
    seeds = min(map(len, runs.values()))  # where it was stopped, what all methods have
    found: dict[str, list[list[float]]] = {method: [] for method in runs}
    for i in tqdm(range(resamples + 1), desc="bootstrap", disable=None):
        sample, drawn = np.arange(len(of_pairs)), np.arange(seeds)
        if i:  # the first is what was measured
            sample, drawn = random.integers(len(sample), size=len(sample)), random.integers(seeds, size=seeds)
        pairs, responses = (np.concatenate([of[p] for p in sample]) for of in (of_pairs, of_responses))
        for method, models in runs.items():
            values = {s: models[s].columns(sample, pairs, responses) for s in set(drawn.tolist())}
            found[method].append(np.mean([values[s] for s in drawn], 0).tolist())
    return {method: (np.array(values[0]), np.array(values[1:])) for method, values in found.items()}


def interval(value: Any, resampled: Floats) -> tuple[Any, Any]:
    """The 95% interval; see the module."""
    half = 1.96 * resampled.std(0)
    return value - half, value + half


def table(estimates: Estimates, keys: Sequence[str]) -> str:
    """A table of these columns for all methods, with intervals."""

    def cell(column: Column, value: float, low: float, high: float) -> str:
        return f"{value:.{column.digits}f} <small>{low:.{column.digits}f} to {high:.{column.digits}f}</small>"

    return _markdown(estimates, keys, cell)


def differences(estimates: Estimates, keys: Sequence[str]) -> str:
    """A table of the differences from plain, in bold if the interval excludes 0."""
    base, base_resampled = estimates["plain"]
    less = {
        m: (value - base, resampled - base_resampled) for m, (value, resampled) in estimates.items() if m != "plain"
    }

    def cell(column: Column, value: float, low: float, high: float) -> str:
        text = f"{value:+.{column.digits}f}"
        text = f"**{text}**" if low > 0 or high < 0 else text
        return f"{text} <small>{low:+.{column.digits}f} to {high:+.{column.digits}f}</small>"

    return _markdown(less, keys, cell)


def _markdown(estimates: Estimates, keys: Sequence[str], cell: Callable[[Column, float, float, float], str]) -> str:
    lines = ["| method | " + " | ".join(COLUMNS[key].head for key in keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for method in (m for m in ALL if m in estimates):
        value, resampled = estimates[method]
        low, high = interval(value, resampled)
        places = [(COLUMNS[key], list(COLUMNS).index(key)) for key in keys]
        lines.append(f"| {method} | " + " | ".join(cell(c, value[k], low[k], high[k]) for c, k in places) + " |")
    return "\n".join(lines)


def replaced(text: str, name: str, body: str) -> str:
    """Replace the text between the marks of a name in the page."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    return before + begin + body + "\n" + end + rest.split(end)[1]
