"""How well the saved scores are calibrated, with sigmoid(margin) and with the win probability of their own loss.

    python experiments/tldr/win_probability.py DATA --model ENCODER

DATA and ENCODER are those of run.py. The command reads scores.parquet and trains nothing. The confidence of a
model is the mean of max(P, 1 - P) over the test pairs, with P = sigmoid(margin), or
`pcrm.win_probability` for the delta that the model was trained with. The command prints tables, with
intervals as in tables.py.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from methods import TARGETS, Data, fit_two_points
from numpy.typing import NDArray
from pcrm.evaluate import statistics
from posts import Posts
from run import HERE, data_of, kept
from tables import Floats, bootstrap, interval

from pcrm import Constraint, win_probability

# By method, fitted to the train pairs. The delta of a random constraint depends on which response is the chosen one, so it
# has no such P.
CONSTRAINTS = {
    "plain": Constraint.fixed(math.inf),
    "fixed, published": Constraint.preset("tldr/fixed"),
    "fixed, fitted": Constraint.fixed(sum(TARGETS.values())),
    "length ratio, published": Constraint.preset("tldr/length_ratio"),
    "length ratio, fitted": fit_two_points,
    "cosine, published": Constraint.preset("tldr/cosine"),
    "cosine, fitted": fit_two_points,
}

HEADS = (
    "confidence less accuracy, by the loss",
    "confidence, sigmoid's less the loss's",
    "confidence less accuracy, by sigmoid",
    "ECE, by sigmoid",
    "ECE, by the loss",
    "ECE, the loss's less sigmoid's",
    "Brier, by sigmoid",
    "Brier, the loss's less sigmoid's",
    "NLL, by sigmoid",
    "ruled out by the loss",
)
_SIGNED = (0, 1, 2, 5, 7)  # differences, bold where their interval does not hold 0


def deltas(method: str, train: Data, test: Data) -> Floats:
    """The constraint of each test pair, float64, (pairs,)."""
    constraint, prior = CONSTRAINTS[method], method.partition(",")[0].replace(" ", "_")
    if not isinstance(constraint, Constraint):
        constraint = constraint(train.priors[prior])
    if constraint.is_fixed:
        return np.full(len(test.posts.pairs), constraint.delta(0.0))
    return constraint.delta(test.priors[prior].numpy())


class Reading:
    """The columns of the scores of one model, on any resample of posts."""

    def __init__(self, posts: Posts, scores: Floats, delta: Floats) -> None:
        self.margins, self.delta = scores[posts.pairs[:, 0]] - scores[posts.pairs[:, 1]], delta
        self.p = np.stack([win_probability(self.margins, d) for d in (np.full(len(delta), math.inf), delta)])

    def columns(self, sample: NDArray[np.int64], pairs: NDArray[np.int64], responses: NDArray[np.int64]) -> list[float]:
        margins, delta, p = self.margins[pairs], self.delta[pairs], self.p[:, pairs]
        accuracy = (margins > 0).mean()
        sigmoid, loss = np.maximum(p, 1 - p).mean(1)
        brier, brier_of_loss = ((1 - p) ** 2).mean(1)
        ece, ece_of_loss = (_ece(statistics.reliability(margins, d)) for d in (None, delta))
        return [
            float(x)
            for x in (
                loss - accuracy,
                sigmoid - loss,
                sigmoid - accuracy,
                ece,
                ece_of_loss,
                ece_of_loss - ece,
                brier,
                brier_of_loss - brier,
                -np.log(p[0]).mean(),
                (p[1] == 0).mean(),
            )
        ]


def _ece(bins: tuple[Floats, ...]) -> float:
    count, confidence, right, *_ = bins
    return float(np.nansum(count * np.abs(right - confidence)) / count.sum())


def table(posts: Posts, runs: dict[str, list[Reading]]) -> list[str]:
    lines = [f"| method | {' | '.join(HEADS)} |", "|---" * (len(HEADS) + 1) + "|"]
    for method, (value, resampled) in bootstrap(posts, runs).items():
        low, high = interval(value, resampled)
        cells = []
        for k, numbers in enumerate(zip(value, low, high, strict=True)):
            text, *ends = (f"{x:+.3f}" if k in _SIGNED else f"{x:.3f}" for x in numbers)
            bold = k in _SIGNED and (low[k] > 0 or high[k] < 0)
            cells.append(f"{f'**{text}**' if bold else text} <small>{' to '.join(ends)}</small>")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True, metavar="ENCODER")
    args = parser.parse_args()
    train, test = (data_of(args.data, split, args.model) for split in ("train", "test"))
    found: dict[str, dict[str, list[Reading]]] = {}
    for row in kept(HERE / "scores.parquet"):
        if row["method"] in CONSTRAINTS:
            delta = deltas(row["method"], train, test)
            reading = Reading(test.posts, np.array(row["scores"], np.float64), delta)
            found.setdefault(row["tier"], {}).setdefault(row["method"], []).append(reading)
    for tier, runs in sorted(found.items(), reverse=True):
        print(f"\n{tier}\n", *table(test.posts, runs), sep="\n")


if __name__ == "__main__":
    main()
