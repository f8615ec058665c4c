"""The page of `pcrm optimize`: how far proxy and gold go together while a policy is optimized."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..report import figures, page, style
from ..report.figures import Figure
from ..report.statistics import Floats
from . import COEFFICIENTS, Curve, Reference, best_of_n, reference, softmax_policy
from .pools import Pools

if TYPE_CHECKING:
    from .rl import Settings, Step

_VALUES = ("kl", "proxy", "gold", "proxy_gain", "gold_gain")


@dataclass(frozen=True)
class Run:
    """An RL run against a proxy: its steps, and pools of the trained policy to the prompts of the pools before."""

    settings: Settings
    steps: list[Step]
    after: Pools


@dataclass(frozen=True)
class _Model:
    pools: Pools
    reference: Reference
    best: Curve
    softmax: Curve
    run: Run | None

    @cached_property
    def change(self) -> tuple[str, tuple[float, float], tuple[float, float], Floats, Floats]:
        """What optimized the policy; proxy before and after; gold so; the gains with their intervals."""
        if self.run is None:
            b = self.best
            n, ends = (
                int(b.at[-1]),
                [(v[-1, 0] - g[-1, 0], v[-1, 0]) for v, g in ((b.proxy, b.proxy_gain), (b.gold, b.gold_gain))],
            )
            return f"best of {n}", ends[0], ends[1], b.proxy_gain[-1], b.gold_gain[-1]
        after = self.run.after
        # Pools of one number each, the difference of a prompt's means, so that intervals resample prompts.
        gains = reference(
            *(
                [[a.mean() - b.mean()] for a, b in zip(later, earlier, strict=True)]
                for later, earlier in ((after.scores, self.pools.scores), (after.gold, self.pools.gold))
            )
        )
        trained = reference(after.scores, after.gold)
        s = self.run.settings
        return (
            f"{s.algorithm.upper()}, {s.steps} steps",
            (self.reference.proxy_mean[0], trained.proxy_mean[0]),
            (self.reference.gold_mean[0], trained.gold_mean[0]),
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
    """Write summary.json, optimize.html, the figures as SVG and, of RL runs, rl.csv into a folder, which is made.

    Args:
        models: At least one, a proxy each.
        counts, coefficients: As `best_of_n` and `softmax_policy` have them; in ascending and
            descending order, whatever it was.
        runs: By the names of models.

    Returns:
        What summary.json holds: the keys of docs/optimize.md for one model, else {"models": {name: keys}}.

    Raises:
        ValueError: as `best_of_n` and `softmax_policy`.
        OSError: the folder cannot be written.
    """
    runs = runs or {}
    analyzed = {
        m.name: _Model(
            m,
            reference(m.scores, m.gold),
            best_of_n(m.scores, m.gold, None if counts is None else sorted(set(counts))),
            softmax_policy(m.scores, m.gold, sorted(set(coefficients), reverse=True)),
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
        note="In brackets 95% bootstrap intervals, which resample prompts. Gains are over the reference policy.",
        figures=pictures,
        footer=f"pcrm {__version__} · {_contents(models)}",
    )
    (folder / "optimize.html").write_text(html, encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return summary


def lines(summary: dict[str, Any]) -> list[str]:
    """By how much the reward scaled, a line a model."""
    if "models" not in summary:
        return [summary["scaled"]["text"]]
    return [f"{name}: {s['scaled']['text']}" for name, s in summary["models"].items()]


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
            point: dict[str, Any] = {name: at, "pools": int(curve.pools[k])}
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
    by, proxy, gold, proxy_gain, gold_gain = m.change
    found: dict[str, Any] = {"by": by, "proxy_from": float(proxy[0]), "proxy_to": float(proxy[1])}
    found |= _interval("proxy_gain", proxy_gain)
    in_sd = ""
    if (sd := float(m.reference.proxy_sd[0])) > 0:
        found |= {"proxy_gain_in_sd": float(proxy_gain[0]) / sd}
        in_sd = f", {found['proxy_gain_in_sd']:.1f} sd of the reference policy"
    found |= {"gold_from": float(gold[0]), "gold_to": float(gold[1])} | _interval("gold_gain", gold_gain)
    found["text"] = (
        f"{by}: proxy reward scaled from {proxy[0]:.2f} to {proxy[1]:.2f} ({proxy_gain[0]:+.2f}{in_sd}), "
        f"gold from {gold[0]:.2f} to {gold[1]:.2f}"
    )
    return found


def _interval(key: str, numbers: Floats) -> dict[str, Any]:
    """As summary.json has it; nothing where the number is not defined."""
    value, *ends = (x if math.isfinite(x) else None for x in numbers.tolist())
    return {} if value is None else {key: value, f"{key}_ci": ends}


def _rows(models: dict[str, _Model]) -> list[page.Row]:
    first = next(iter(models.values()))
    rows: list[page.Row] = []

    def add(label: str, numbers: list[Floats]) -> None:
        rows.append((label, [_cell(n) for n in numbers]))

    all_ = list(models.values())
    add("Reference policy: proxy", [m.reference.proxy_mean for m in all_])
    add("… standard deviation within a prompt", [m.reference.proxy_sd for m in all_])
    add("Reference policy: gold", [m.reference.gold_mean for m in all_])
    add("… standard deviation within a prompt", [m.reference.gold_sd for m in all_])
    for name, curves, label in (
        ("Best of", [m.best for m in all_], "n"),
        ("Softmax policy", [m.softmax for m in all_], "b"),
    ):
        at = curves[0].at.tolist()
        # Pools of other sizes have other n.
        shown = [a for a in at if a != 1 or label == "b"]
        shown = [a for a in shown if all(a in c.at for c in curves)]
        for what in ("proxy_gain", "gold_gain"):
            rows.append(None)
            for a in shown:
                where = f"Best of {a}" if label == "n" else f"{name}, b = {a:g}"
                add(
                    f"{where}: {what.replace('_', ' ')}",
                    [getattr(c, what)[c.at.tolist().index(a)] for c in curves],
                )
    if first.run is not None:
        rows.append(None)
        changes = [m.change for m in all_]
        add(f"{changes[0][0]}: proxy gain", [c[3] for c in changes])
        add(f"{changes[0][0]}: gold gain", [c[4] for c in changes])
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
            "The response that the proxy scores highest among n, the numbers at the points: expected values over all "
            "subsets of the pools. Where proxy goes up and gold does not follow, the proxy is overoptimized.",
            curves("best"),
            [str(n) for n in first.best.at.tolist()],
        ),
        figures.policies(
            "softmax-policy",
            "RL's optimum on the pools",
            "The policy with the highest proxy reward less b times its KL divergence, in proportion to exp(score / b); "
            "the numbers at the points are b. Of the same b, a proxy of larger scale goes farther.",
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
            rows.append([name, *("" if (v := getattr(step, k)) is None else str(v) for k in keys)])
    return "".join(",".join(f'"{c}"' if "," in c else c for c in row) + "\n" for row in rows)


def _contents(models: Sequence[Pools]) -> str:
    def one(m: Pools) -> str:
        sizes = [len(s) for s in m.scores]
        each = f"{sizes[0]:,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
        return f"{len(sizes):,} prompts with {each} responses each"

    return "; ".join(dict.fromkeys(one(m) for m in models))
