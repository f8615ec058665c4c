"""The numbers of the demo's table: what a reward model's scores of held-out pairs are like."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
from scipy.stats import spearmanr

Row = dict[str, Any]


def calibration_error(margin: np.ndarray) -> float:
    """Expected calibration error of P(chosen preferred) = sigmoid(margin), in [0, 1].

    Ten equal bins of the confidence max(P, 1 - P) over [0.5, 1]. In each, the mean confidence is compared with the share
    of pairs whose preferred response scores higher. This is the plug-in estimate, which is biased upward on few pairs.
    """
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    correct = margin > 0
    bins = np.minimum(((confidence - 0.5) * 20).astype(int), 9)
    gaps = [
        abs(confidence[bins == b].mean() - correct[bins == b].mean()) * (bins == b).mean()
        for b in range(10)
        if (bins == b).any()
    ]
    return float(sum(gaps))


def spearman_by_prompt(rows: list[Row], chosen: np.ndarray, rejected: np.ndarray) -> float | None:
    """Mean over prompts of the rank correlation of scores with `rating_chosen` and `rating_rejected`.

    Prompts with fewer than three different responses, or whose ratings are all equal, do not count. None if no prompt
    counts or the rows have no ratings.
    """
    if not all({"rating_chosen", "rating_rejected"} <= row.keys() for row in rows):
        return None
    prompts: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for row, c, r in zip(rows, chosen, rejected, strict=True):
        prompts[row["prompt"]][row["chosen"]] = (c, row["rating_chosen"])
        prompts[row["prompt"]][row["rejected"]] = (r, row["rating_rejected"])
    correlations = []
    for responses in prompts.values():
        scores, ratings = zip(*responses.values(), strict=True)
        if len(scores) >= 3 and len(set(ratings)) > 1 and len(set(scores)) > 1:
            correlations.append(spearmanr(scores, ratings)[0])
    return float(np.mean(correlations)) if correlations else None


def evaluate(rows: list[Row], chosen: np.ndarray, rejected: np.ndarray, ceiling: np.ndarray) -> dict[str, float | None]:
    """Return the numbers of the table. `ceiling` is the delta of each pair."""
    margin = chosen - rejected
    return {
        "accuracy": float((margin > 0).mean()),
        "margin_mean": float(margin.mean()),
        "margin_sd": float(margin.std()),
        "margin_p95": float(np.quantile(margin, 0.95)),
        "share_over_ceiling": float((margin > ceiling).mean()),
        "ece": calibration_error(margin),
        "spearman_rating": spearman_by_prompt(rows, chosen, rejected),
    }


LABELS = {
    "accuracy": "accuracy",
    "margin_mean": "margin, mean",
    "margin_sd": "margin, sd",
    "margin_p95": "margin, 95th percentile",
    "share_over_ceiling": "share over the ceiling",
    "ece": "calibration error, plug-in",
    "spearman_rating": "Spearman with the true reward",
}


def headline(plain: dict[str, Any], constrained: dict[str, Any]) -> str:
    """What the constraint did, in one sentence."""
    return (
        f"The constraint keeps {1 - constrained['share_over_ceiling']:.1%} of the margins under their ceilings "
        f"(plain {1 - plain['share_over_ceiling']:.1%}) and narrows their spread from {plain['margin_sd']:.2f} to "
        f"{constrained['margin_sd']:.2f}, at an accuracy of {constrained['accuracy']:.1%} (plain {plain['accuracy']:.1%})."
    )


def table(results: dict[str, dict[str, float | None]]) -> str:
    """Return the results as text, with a column for each model."""
    first = max(map(len, LABELS.values()))
    widths = [max(len(name), 8) for name in results]
    lines = [" " * first + "".join(f"  {name:>{w}}" for name, w in zip(results, widths, strict=True))]
    for key, label in LABELS.items():
        cells = []
        for numbers, width in zip(results.values(), widths, strict=True):
            value = numbers[key]
            cells.append(f"  {'-' if value is None or math.isnan(value) else f'{value:.3f}':>{width}}")
        lines.append(f"{label:<{first}}" + "".join(cells))
    return "\n".join(lines)
