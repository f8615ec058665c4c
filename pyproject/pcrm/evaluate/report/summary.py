"""The report: numbers, figures and page for the scores of models."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..._version import __version__
from ...settings import Constraint
from .. import statistics
from ..pages import page, style
from ..pages.figure import Figure
from ..scores import Scores
from ..statistics import Estimates
from . import figures

# The keys of summary.json in order, with their labels in the table. None starts a new section.
_LABELS: dict[str, str | None] = {
    "accuracy": "Accuracy",
    "accuracy_longer_chosen": "… where the chosen response is longer",
    "accuracy_shorter_chosen": "… where it is shorter",
    "accuracy_calibrated": "… of calibrated scores",
    "flip_rate": "Pairs whose order changes with calibration",
    "-margin": None,
    "margin/mean": "Margin, mean",
    "margin/sd": "Margin, standard deviation",
    "margin/quantiles/0.5": "Margin, median",
    "margin/quantiles/0.95": "Margin, 95th percentile",
    "margin/share_over_5": "Margins above 5",
    "margin/share_over_10": "Margins above 10",
    "-calibration": None,
    "ece": "Calibration error (ECE)",
    "ece_plugin": "… plug-in estimate, biased upward",
    "ece_calibrated": "… of calibrated scores",
    "ece_by_loss": "… with the loss's probability",
    "nll": "Negative log-likelihood (NLL)",
    "nll_calibrated": "… of calibrated scores",
    "nll_by_loss": "… with the loss's probability",
    "brier": "Brier score",
    "brier_calibrated": "… of calibrated scores",
    "brier_by_loss": "… with the loss's probability",
    "ruled_out_by_loss": "Pairs with probability 0 under the loss",
    "temperature": "Best temperature",
    "-length": None,
    "spearman_score_length": "Spearman, score and length",
    "spearman_margin_length_difference": "Spearman, margin and length difference",
    "-constraint": None,
    "residual/mean": "Margin minus target, mean",
    "residual/sd": "Margin minus target, standard deviation",
    "violation_rate": "Margins above the ceiling",
    "-rating": None,
    "spearman_rating": "Spearman with the ratings, mean over prompts",
    "kendall_tau_b_rating": "Kendall's tau-b with the ratings, mean over prompts",
    "pooled_spearman_rating": "Spearman, all responses pooled",
    "pooled_kendall_tau_b_rating": "Kendall's tau-b, all responses pooled",
}
# The statistics of each principle.
_OF_PRINCIPLES = ("accuracy", "margin/mean", "margin/sd")
_PERCENT = (
    "accuracy",
    "accuracy_longer_chosen",
    "accuracy_shorter_chosen",
    "accuracy_calibrated",
    "flip_rate",
    "violation_rate",
    "ruled_out_by_loss",
    "share_over_5",
    "share_over_10",
)

_NOTE = (
    "Brackets: 95% intervals. The intervals of the calibration error invert a test. All others are bootstrap intervals over "
    "pairs, or over prompts for rank correlations with ratings."
)
_BY_LOSS = (
    " The loss's probability of a margin is the one for which this margin minimizes the constrained loss; all other rows "
    "use sigmoid(margin). It is meaningful only for models that were trained with these constraints. A single pair with "
    "probability 0 makes the NLL infinite."
)


def write(models: list[Scores], out: str | os.PathLike[str], constraint: Constraint | None = None) -> str:
    """Write summary.json, report.html and the figures as SVG into a folder, which is created.

    Args:
        models: At least one model, from `scores.read`.
        constraint: Adds the target curve. For models without their own deltas, it also adds the residuals, the violation
            rate and the calibration with the loss's probability.

    Returns:
        The table of the numbers as text.

    Raises:
        ValueError: The constraint is random, so it is not a function of the prior.
        OSError: The folder cannot be written.
    """
    if constraint is not None and constraint.is_random:
        raise ValueError("constraint must be a curve over the prior, to compare margins with, got a random constraint")
    by_prompt: dict[str, tuple[statistics.Floats, statistics.Floats]] = {}
    deltas = {m.name: _deltas(m, constraint) for m in models}
    estimates = {m.name: _estimates(m, deltas[m.name], by_prompt) for m in models}
    summaries = {name: _nested(e) for name, e in estimates.items()}
    principles = {m.name: {name: statistics.pairs(x) for name, x in m.by_principle.items()} for m in models}
    for m in models:
        if m.by_principle:
            summaries[m.name]["by_principle"] = {
                name: {"pairs": len(m.by_principle[name])} | _nested({k: e[k] for k in _OF_PRINCIPLES})
                for name, e in principles[m.name].items()
            }
    summary = next(iter(summaries.values())) if len(models) == 1 else {"models": summaries}

    with style.style():
        pictures = _figures(models, constraint, deltas, by_prompt)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for f in pictures:
        (folder / f"{f.name}.svg").write_text(style.standalone(f.svg), encoding="utf-8")
    rows = [*_rows(estimates), *_principle_rows(principles)]
    html = page.render(
        title="Reward model report" if len(models) > 1 else models[0].name,
        subtitle=_contents(models),
        columns=list(estimates),
        rows=rows,
        note=_NOTE + (_BY_LOSS if any("ece_by_loss" in e for e in estimates.values()) else ""),
        figures=pictures,
        footer=f"pcrm {__version__}" + (f" · {constraint!r}" if constraint is not None else ""),
    )
    (folder / "report.html").write_text(html, encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return page.text(list(estimates), rows)


def _deltas(m: Scores, constraint: Constraint | None) -> statistics.Floats | None:
    """The constraint of each pair: from the rows, or from their prior."""
    if m.delta is not None or constraint is None or not len(m.chosen):
        return m.delta
    if constraint.is_fixed:
        return np.full(len(m.chosen), constraint.delta(0.0))
    return None if m.prior is None else constraint.delta(m.prior)


def _estimates(m: Scores, delta: statistics.Floats | None, by_prompt: dict[str, Any]) -> Estimates:
    found: Estimates = {}
    if len(m.chosen):
        difference = None
        if m.chosen_length is not None and m.rejected_length is not None:
            difference = m.chosen_length - m.rejected_length
        found |= statistics.pairs(m.margins, difference, delta)
        if "ruled_out_by_loss" in found:
            found.setdefault("nll_by_loss", (math.inf, None, None))
        if m.calibrated is not None:
            found |= statistics.calibrated(m.margins, m.calibrated)
    if (points := m.by_length()) is not None:
        found |= statistics.lengths(*points)
    if len(m.scores):
        ranked, *correlations = statistics.rankings(m.scores, m.ratings, m.offsets)
        found |= ranked
        by_prompt[m.name] = correlations[0], correlations[1]
    return found


def _nested(estimates: Estimates) -> dict[str, Any]:
    """The estimates as in summary.json: `a/b` is b in the object a, and KEY_ci beside KEY is its interval. Infinities are None.

    The keys of `margin/quantiles` are numbers and take no suffix, so their intervals are in `margin/quantiles_ci`.
    """
    summary: dict[str, Any] = {}
    places = list(_LABELS)
    for key in sorted(estimates, key=lambda k: places.index(k if k in _LABELS else "margin/quantiles/0.5")):
        value, *interval = estimates[key]
        value = value if math.isfinite(value) else None
        head, *tail = key.split("/")
        if not tail:
            summary[head], summary[f"{head}_ci"] = value, interval
        elif len(tail) == 1:
            summary.setdefault(head, {}).update({tail[0]: value, f"{tail[0]}_ci": interval})
        else:
            inner = summary.setdefault(head, {})
            inner.setdefault(tail[0], {})[tail[1]] = value
            inner.setdefault(f"{tail[0]}_ci", {})[tail[1]] = interval
    return summary


def _rows(estimates: dict[str, Estimates]) -> list[page.Row]:
    rows: list[page.Row] = []
    for key, label in _LABELS.items():
        if label is None:
            rows.append(None)
        elif any(key in e for e in estimates.values()):
            rows.append((label, [_cell(key, e.get(key)) for e in estimates.values()]))
    return rows


def _principle_rows(principles: dict[str, dict[str, Estimates]]) -> list[page.Row]:
    """Accuracy and margin for each principle that a model has scores for."""
    rows: list[page.Row] = []
    for name in dict.fromkeys(name for by_name in principles.values() for name in by_name):
        found = [by_name.get(name, {}) for by_name in principles.values()]
        rows.append((f"By “{name}”: accuracy", [_cell("accuracy", e.get("accuracy")) for e in found]))
        rows.append(("… margin, mean", [_cell("margin/mean", e.get("margin/mean")) for e in found]))
    return [None, *rows] if rows else []


def _cell(key: str, estimate: tuple[float, float | None, float | None] | None) -> page.Cell:
    if estimate is None:
        return "\N{EN DASH}", ""
    percent = key.rpartition("/")[2] in _PERCENT

    def text(x: float | None) -> str:
        if x is None or math.isinf(x):
            return "∞"
        # Round first and add 0, to avoid -0.000.
        return (f"{round(100 * x, 1) + 0:.1f}%" if percent else f"{round(x, 3) + 0:.3f}").replace("-", "\N{MINUS SIGN}")

    value, low, high = map(text, estimate)
    return value, "" if estimate[1:] == (None, None) else f"[{low}, {high}]"


def _contents(models: list[Scores]) -> str:
    """The numbers of pairs, rankings and single responses. One entry if they are the same for all models."""

    def one(m: Scores) -> str:
        counts = ((len(m.chosen), "pair"), (len(m.offsets) - 1, "ranking"), (len(m.single), "single response"))
        return ", ".join(f"{n:,} {what}{'s' * (n > 1)}" for n, what in counts if n)

    lines = {m.name: one(m) for m in models}
    if len(set(lines.values())) == 1:
        return next(iter(lines.values())) + (" each" if len(models) > 1 else "")
    return "; ".join(f"{name}: {line}" for name, line in lines.items())


def _figures(
    models: list[Scores],
    constraint: Constraint | None,
    deltas: dict[str, statistics.Floats | None],
    by_prompt: dict[str, Any],
) -> list[Figure]:
    order = [m.name for m in models]
    margins = {m.name: m.margins for m in models}
    calibrated = {m.name: m.calibrated for m in models if m.calibrated is not None}
    constrained = {name: d for name, d in deltas.items() if d is not None and np.isfinite(d).any()}
    with_length = {m.name: (p[1], p[0]) for m in models if (p := m.by_length()) is not None}
    return [
        f
        for f in (
            figures.margins(margins, order),
            figures.calibration(margins, calibrated, constrained, order),
            figures.prior({m.name: (m.prior, m.margins) for m in models if m.prior is not None}, order, constraint),
            figures.length(with_length, order, " / ".join(dict.fromkeys(m.units for m in models))),
            figures.rankings(by_prompt, order),
        )
        if f is not None
    ]
