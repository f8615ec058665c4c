"""The page of `pcrm optimize`: proxy and gold reward of policies with increasing optimization."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._printable import printable
from ..._version import __version__
from ..pages import page, style
from ..pages.figure import Figure
from ..statistics import Floats
from . import COEFFICIENTS, Curve, Reference, best_of_n, figures, reference, softmax_policy
from .pools import Pools

if TYPE_CHECKING:
    from .rl import Settings, Step

_VALUES = ("kl", "proxy", "gold", "proxy_gain", "gold_gain")


@dataclass(frozen=True)
class Run:
    """An RL run against a proxy: its steps, and pools of the trained policy for the same prompts."""

    settings: Settings
    steps: list[Step]
    after: Pools


@dataclass(frozen=True)
class _Change:
    """How a policy was optimized, and its means before and after. The gains have intervals."""

    by: str
    proxy: tuple[float, float]
    gold: tuple[float, float]
    proxy_gain: Floats
    gold_gain: Floats


@dataclass(frozen=True)
class _Model:
    pools: Pools
    reference: Reference
    best: Curve
    softmax: Curve
    run: Run | None

    @cached_property
    def change(self) -> _Change:
        if self.run is not None:
            return self._trained(self.run)
        b = self.best
        proxy, gold = ((v[-1, 0] - g[-1, 0], v[-1, 0]) for v, g in ((b.proxy, b.proxy_gain), (b.gold, b.gold_gain)))
        return _Change(f"best of {b.at[-1]}", proxy, gold, b.proxy_gain[-1], b.gold_gain[-1])

    def _trained(self, run: Run) -> _Change:
        before, after = self.reference, reference(run.after.scores, run.after.gold)
        # Pools with a single number, the difference of a prompt's means, so that intervals resample prompts.
        scores, gold = (
            [[b.mean() - a.mean()] for a, b in zip(*both, strict=True)]
            for both in ((self.pools.scores, run.after.scores), (self.pools.gold, run.after.gold))
        )
        gains = reference(scores, gold)
        return _Change(
            f"{run.settings.algorithm.upper()}, {run.settings.steps} steps",
            (before.proxy_mean[0], after.proxy_mean[0]),
            (before.gold_mean[0], after.gold_mean[0]),
            gains.proxy_mean,
            gains.gold_mean,
        )


def write(
    models: Sequence[Pools],
    out: str | os.PathLike[str],
    *,
    counts: Sequence[int] | None = None,
    coefficients: Sequence[float] = COEFFICIENTS,
    runs: dict[str, Run] | None = None,
) -> dict[str, Any]:
    """Write summary.json, optimize.html, the figures as SVG and, for RL runs, rl.csv into a folder, which is created.

    Args:
        models: At least one model, each a proxy.
        counts, coefficients: As in `best_of_n` and `softmax_policy`. The page orders them by KL divergence.
        runs: RL runs, by the name of the model.

    Returns:
        The content of summary.json: the keys of docs/optimize.md for one model, else {"models": {name: keys}}.

    Raises:
        ValueError: As from `best_of_n` and `softmax_policy`.
        OSError: The folder cannot be written.
    """
    runs = runs or {}
    analyzed = {
        m.name: _Model(
            m,
            reference(m.scores, m.gold),
            _ordered(best_of_n(m.scores, m.gold, counts)),
            _ordered(softmax_policy(m.scores, m.gold, coefficients)),
            runs.get(m.name),
        )
        for m in models
    }
    summaries = {name: _summary(m) for name, m in analyzed.items()}
    summary = next(iter(summaries.values())) if len(models) == 1 else {"models": summaries}
    with style.style():
        pictures = _figures(analyzed)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for f in pictures:
        (folder / f"{f.name}.svg").write_text(style.standalone(f.svg), encoding="utf-8")
    if runs:
        (folder / "rl.csv").write_text(_csv(runs), encoding="utf-8")
    html = page.render(
        title="Optimization against a reward model" if len(models) > 1 else f"Optimization against {models[0].name}",
        subtitle=" · ".join(lines(summary)),
        columns=list(analyzed),
        rows=_rows(analyzed),
        note="Gains are relative to the reference policy. Brackets: 95% bootstrap intervals over prompts.",
        figures=pictures,
        figures_first=True,
        footer=f"pcrm {__version__} · {_contents(models)}",
    )
    (folder / "optimize.html").write_text(html, encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return summary


def lines(summary: dict[str, Any]) -> list[str]:
    """How proxy and gold reward changed, one line per model."""
    if "models" not in summary:
        return [summary["scaled"]["text"]]
    return [f"{name}: {s['scaled']['text']}" for name, s in summary["models"].items()]


def _ordered(curve: Curve) -> Curve:
    """The curve sorted by KL divergence, each policy once. For equal divergences the larger coefficient is first."""
    _, first = np.unique(curve.at, return_index=True)
    first = first[::-1] if curve.at.dtype.kind == "f" else first
    order = first[np.argsort(curve.kl[first, 0], kind="stable")]
    return Curve(**{f.name: getattr(curve, f.name)[order] for f in dataclasses.fields(Curve)})


def _summary(m: _Model) -> dict[str, Any]:
    found: dict[str, Any] = {
        "pools": len(m.pools.scores),
        "responses": sum(map(len, m.pools.scores)),
        "reference": {
            k: v
            for field, key in (("proxy_mean", "proxy"), ("proxy_sd",) * 2, ("gold_mean", "gold"), ("gold_sd",) * 2)
            for k, v in _interval(key, getattr(m.reference, field)).items()
        },
    }
    for key, name, curve in (("best_of_n", "n", m.best), ("softmax_policy", "coefficient", m.softmax)):
        found[key] = []
        for k, at in enumerate(curve.at.tolist()):
            point: dict[str, Any] = {name: at if math.isfinite(at) else str(at), "pools": int(curve.pools[k])}
            for value in _VALUES:
                point |= _interval(value, getattr(curve, value)[k])
            found[key].append(point)
    if m.run is not None:
        found["rl"] = {
            "settings": dataclasses.asdict(m.run.settings),
            "steps": [dataclasses.asdict(s) for s in m.run.steps],
        }
    found["scaled"] = _scaled(m)
    return found


def _scaled(m: _Model) -> dict[str, Any]:
    c = m.change
    found: dict[str, Any] = {"by": c.by, "proxy_from": float(c.proxy[0]), "proxy_to": float(c.proxy[1])}
    found |= _interval("proxy_gain", c.proxy_gain)
    in_sd = ""
    if (sd := float(m.reference.proxy_sd[0])) > 0:
        found["proxy_gain_in_sd"] = float(c.proxy_gain[0]) / sd
        in_sd = f", {found['proxy_gain_in_sd']:.1f} SD of the reference policy"
    found |= {"gold_from": float(c.gold[0]), "gold_to": float(c.gold[1])} | _interval("gold_gain", c.gold_gain)
    # Round first and add 0, to avoid -0.00.
    ends = [f"{round(float(x), 2) + 0:.2f}" for x in (*c.proxy, *c.gold)]
    gain = f"{round(float(c.proxy_gain[0]), 2) + 0:+.2f}"
    found["text"] = (
        f"{c.by}: proxy reward from {ends[0]} to {ends[1]} ({gain}{in_sd}), gold reward from {ends[2]} to {ends[3]}"
    )
    return found


def _interval(key: str, numbers: Floats) -> dict[str, Any]:
    """A value and its interval as keys of summary.json. Empty if the value is undefined."""
    value, *ends = (x if math.isfinite(x) else None for x in numbers.tolist())
    return {} if value is None else {key: value, f"{key}_ci": ends}


def _rows(models: dict[str, _Model]) -> list[page.Row]:
    all_ = list(models.values())
    rows: list[page.Row] = []

    def add(label: str, numbers: Iterable[Floats]) -> None:
        rows.append((label, [_cell(n) for n in numbers]))

    for what in ("proxy", "gold"):
        add(f"Reference policy: {what} reward", (getattr(m.reference, f"{what}_mean") for m in all_))
        add("… standard deviation within a prompt", (getattr(m.reference, f"{what}_sd") for m in all_))
    for label, curves in (
        ("Best of {:g}", [m.best for m in all_]),
        ("RL optimum, b = {:g}", [m.softmax for m in all_]),
    ):
        # The default n depend on the sizes of the pools. A policy with divergence 0 is the reference.
        moved = curves[0].at[curves[0].kl[:, 0] > 0]
        common = [at for at in moved if all(at in c.at for c in curves)]
        for what in ("proxy_gain", "gold_gain"):
            rows.append(None)
            for at in common:
                add(f"{label.format(at)}: {what.replace('_', ' ')}", (getattr(c, what)[c.at == at][0] for c in curves))
    if all(m.run is not None for m in all_):
        rows.append(None)
        by = all_[0].change.by
        add(f"{by}: proxy gain", (m.change.proxy_gain for m in all_))
        add(f"{by}: gold gain", (m.change.gold_gain for m in all_))
    return rows


def _cell(numbers: Floats) -> page.Cell:
    if not math.isfinite(numbers[0]):
        return "\N{EN DASH}", ""
    value, low, high = (f"{round(x, 3) + 0:.3f}".replace("-", "\N{MINUS SIGN}") for x in numbers.tolist())
    return value, f"[{low}, {high}]"


def _figures(models: dict[str, _Model]) -> list[Figure]:
    def curves(which: str) -> dict[str, tuple[Floats, Floats, Floats]]:
        found = {name: getattr(m, which) for name, m in models.items()}
        return {name: (c.kl, c.proxy_gain, c.gold_gain) for name, c in found.items()}

    first = next(iter(models.values()))
    pictures = [
        figures.policies(
            "best-of-n",
            "Best of n",
            "Each point is the best of n responses by proxy score; the labels are n. Expected values over all subsets of the "
            "pools, with 95% intervals. The proxy is over-optimized where proxy reward rises and gold reward does not.",
            curves("best"),
            [str(n) for n in first.best.at.tolist()],
        ),
        figures.policies(
            "softmax-policy",
            "RL optimum on the pools",
            "Each point is the policy that maximizes proxy reward minus b times its KL divergence; the labels are b. It is "
            "proportional to exp(score / b). At the same b, a proxy with a larger scale moves the policy farther.",
            curves("softmax"),
            [f"{b:g}" for b in first.softmax.at.tolist()],
        ),
    ]
    if runs := {name: m.run for name, m in models.items() if m.run is not None}:
        pictures.append(figures.rl({name: _columns(r.steps) for name, r in runs.items()}))
    return pictures


def _columns(steps: list[Step]) -> dict[str, Floats]:
    keys = ("step", "proxy_mean", "proxy_sd", "proxy_max", "gold_mean", "kl")
    return {key: np.array([getattr(s, key) for s in steps], np.float64) for key in keys}


def _csv(runs: dict[str, Run]) -> str:
    keys = [f.name for f in dataclasses.fields(next(iter(runs.values())).steps[0])]
    rows = [["proxy", *keys]]
    for name, run in runs.items():
        for step in run.steps:
            rows.append([printable(name), *("" if (v := getattr(step, k)) is None else str(v) for k in keys)])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _contents(models: Sequence[Pools]) -> str:
    def one(m: Pools) -> str:
        sizes = [len(s) for s in m.scores]
        each = f"{sizes[0]:,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
        return f"{len(sizes):,} prompt{'s' * (len(sizes) > 1)} with {each} responses each"

    return "; ".join(dict.fromkeys(one(m) for m in models))
