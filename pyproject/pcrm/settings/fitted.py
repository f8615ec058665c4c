"""The output for a constraint that a run has fitted to its data: one line for the log, and a `pcrm.toml`.

NumPy is imported only when needed, because reading settings does not need it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .constraint import Constraint

_QUANTILES = (0.05, 0.5, 0.95)


def formula(constraint: Constraint) -> str:
    """Return the curve as a readable formula."""
    c = constraint
    clip = "".join(f", at {word} {v:.4g}" for word, v in (("least", c.floor), ("most", c.cap)) if v is not None)
    return f"delta(s) = {c.beta1:.6g} / (s + {c.beta2:.6g}) {'-' if c.beta3 < 0 else '+'} {abs(c.beta3):.6g}{clip}"


def near_ends(similarities: Any, constraint: Constraint) -> tuple[float, float]:
    """Return the fractions of pairs with a target near the lower and near the upper end: within 10% of the range."""
    import numpy as np

    assert constraint.floor is not None and constraint.cap is not None
    delta, tenth = constraint.delta(np.asarray(similarities, np.float64)), (constraint.cap - constraint.floor) / 10
    return float(np.mean(delta <= constraint.floor + tenth)), float(np.mean(delta >= constraint.cap - tenth))


def fit_line(similarities: Any, constraint: Constraint, prior: str) -> str:
    """Describe a fitted constraint in one line: the curve, the similarities and the targets of the pairs."""
    import numpy as np

    s = np.asarray(similarities, np.float64)
    at = np.quantile(s, _QUANTILES)
    alike, unlike = near_ends(s, constraint)
    assert constraint.floor is not None and constraint.cap is not None
    middle = "; ".join(
        f"{q:.0%} s = {v:.3g}, target {t:.3g}" for q, v, t in zip(_QUANTILES, at, constraint.target(at), strict=True)
    )
    return (
        f"Fitted to the prior {prior} of {len(s):,} pairs: {formula(constraint)}. Quantiles: {middle}. {alike:.0%} of the pairs "
        f"are within 10% of the target {constraint.floor / 2:.3g}, {unlike:.0%} within 10% of {constraint.cap / 2:.3g}"
    )


def write_toml(
    path: Path, constraint: Constraint, prior: str, comments: Sequence[str] = (), *, form: str = "pair"
) -> None:
    """Write a curve to a `pcrm.toml`, atomically."""
    values = {name: getattr(constraint, name) for name in ("beta1", "beta2", "beta3", "floor", "cap")}
    lines = [
        *(f"# {line}" for line in comments),
        "[constraint]",
        f'prior = "{prior}"  # these betas fit no other prior',
        *(f"{name} = {value!r}" for name, value in values.items() if value is not None),
        *(["", "[loss]", f'form = "{form}"'] if form != "pair" else []),
        "",
    ]
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text("\n".join(lines), encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
