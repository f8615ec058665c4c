"""The results of `pcrm compare`: a table of the models, and sentences that summarize it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..evaluate import statistics
from ..evaluate.pages import page
from ..training.binding import is_idle
from ..training.metrics import PairSums

Floats = NDArray[np.float64]

# A model overfits if its training accuracy is this much above the upper end of the interval of its test accuracy. Near
# 50% there is nothing that it could have learned by heart.
_OVERFIT, _LEARNED = 0.1, 0.6

_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Model:
    """What is known of a model.

    Attributes:
        margins: Of the test pairs, shape (N,).
        train_margins: Of training pairs.
        temperature: What the scores were divided by, with the ends of its 95% interval; None for the others.
    """

    margins: Floats
    train_margins: Floats
    temperature: tuple[float, float | None, float | None] | None = None

    @property
    def train_accuracy(self) -> float:
        return float((self.train_margins > 0).mean())

    @property
    def losses(self) -> Floats:
        """-log sigmoid of each test margin."""
        return np.logaddexp(0, -self.margins)


def table(models: dict[str, Model]) -> str:
    """The numbers of the models, a column each, with 95% intervals of the accuracy and the temperature."""
    found = {name: statistics.pairs(m.margins) for name, m in models.items()}
    all_models = list(models.items())

    def row(label: str, cells: Sequence[str]) -> page.Row:
        return label, [(cell, "") for cell in cells]

    rows: list[page.Row] = [
        row("Accuracy on test pairs", [_percent(found[name]["accuracy"][0]) for name in models]),
        row("  95% interval", ["{} to {}".format(*map(_percent, found[name]["accuracy"][1:])) for name in models]),
        row("Accuracy on training pairs", [_percent(m.train_accuracy) for _, m in all_models]),
        row("Negative log-likelihood (NLL)", [_number(found[name]["nll"][0]) for name in models]),
        row("Calibration error (ECE)", [_number(found[name]["ece"][0]) for name in models]),
        row("Margin, standard deviation", [_number(found[name]["margin/sd"][0], 2) for name in models]),
        row(
            "Temperature",
            ["\N{EN DASH}" if m.temperature is None else _number(m.temperature[0], 2) for _, m in all_models],
        ),
    ]
    if any(m.temperature is not None and m.temperature[1:] != (None, None) for _, m in all_models):
        rows.append(row("  95% interval", [_interval(m.temperature) for _, m in all_models]))
    return page.text(list(models), rows)


def _interval(temperature: tuple[float, float | None, float | None] | None) -> str:
    if temperature is None or temperature[1:] == (None, None):
        return ""
    return " to ".join("∞" if end is None else _number(end, 2) for end in temperature[1:])


def _percent(x: float | None) -> str:
    return "?" if x is None or math.isnan(x) else f"{100 * x:.1f}%"


def _number(x: float | None, digits: int = 3) -> str:
    return "?" if x is None or math.isnan(x) else f"{round(x, digits) + 0:.{digits}f}".replace("-", _MINUS)


def difference(a: Floats, b: Floats, prompts: Sequence[str]) -> tuple[float, float, float]:
    """The mean of a - b over pairs, with the ends of its 95% interval: 1.96 standard errors over prompts.

    Pairs of one prompt share responses, so they count as one cluster.

    Args:
        a, b: Of the same pairs, shape (N,).
        prompts: Of the pairs.
    """
    d = a - b
    mean = float(d.mean())
    _, cluster = np.unique(np.asarray(prompts), return_inverse=True)
    sums = np.bincount(cluster, d - mean)
    half = 1.96 * math.sqrt(float((sums**2).sum())) / len(d)
    return mean, mean - half, mean + half


def headline(plain: Model, constrained: Model, prompts: Sequence[str]) -> str:
    """The result in two sentences."""
    a, b = float(constrained.margins.std()), float(plain.margins.std())
    ratio = f"{_number(a / b, 2)} times" if b > 0 else "infinitely"
    correct, before = ((m.margins > 0).astype(np.float64) for m in (constrained, plain))
    mean, low, high = difference(correct, before, prompts)
    same = "is the same within error" if low <= 0 <= high else f"is {'higher' if mean > 0 else 'lower'}"
    return (
        f"The margins of the constrained model spread {ratio} as far as those of the plain model (standard deviation "
        f"{_number(a, 2)} and {_number(b, 2)}).\nIts accuracy {same} ({_signed(100 * mean, 1)} points, 95% interval "
        f"{_signed(100 * low, 1)} to {_signed(100 * high, 1)})."
    )


def _signed(x: float, digits: int) -> str:
    x = round(x, digits) + 0
    return f"{'+' if x > 0 else _MINUS if x < 0 else ''}{abs(x):.{digits}f}"


def calibration(tempered: Model, constrained: Model, prompts: Sequence[str]) -> str:
    """How the calibration of the constrained model compares with that of a temperature, in one sentence."""
    mean, low, high = difference(constrained.losses, tempered.losses, prompts)
    if low <= 0 <= high:
        verdict = "is the same within error as that of plain + temperature"
    else:
        verdict = f"is {'higher (worse)' if mean > 0 else 'lower (better)'} than that of plain + temperature"
    interval = f"{_signed(mean, 3)}, 95% interval {_signed(low, 3)} to {_signed(high, 3)}"
    return f"The NLL of the constrained model {verdict} ({interval})."


def warnings(models: dict[str, Model], delta: Floats) -> list[str]:
    """What is wrong with these models, with a remedy each: they overfit, or the constraint hardly acts.

    Args:
        models: "plain" and "constrained" are among them.
        delta: The ceiling of each test pair.
    """
    lines = []
    for name in ("plain", "constrained"):
        m = models[name]
        accuracy, _, high = statistics.pairs(m.margins)["accuracy"]
        if m.train_accuracy > max(_LEARNED, (accuracy if high is None else high) + _OVERFIT):
            lines.append(
                f"The {name} model overfits: its accuracy is {_percent(m.train_accuracy)} on training pairs and "
                f"{_percent(accuracy)} on test pairs. Train with fewer --epochs, a lower --learning-rate or more pairs."
            )
    sums = PairSums()
    sums.add(models["constrained"].margins, delta)
    if is_idle(sums):
        over = sums.over_target / sums.bounded
        high = float(np.quantile(np.abs(models["plain"].margins), 0.9))
        remedy = f"Set lower targets, such as --target-alike {high / 3:.2g} --target-unlike {high:.2g}"
        lines.append(
            f"The constraint hardly acts: {_percent(over)} of the test margins are over their targets, which are "
            f"{_number(float(delta.min()) / 2, 2)} to {_number(float(delta.max()) / 2, 2)}. {remedy}, or train longer."
        )
    return lines
