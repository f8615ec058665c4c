"""Target margins: a user's request for a constraint that is not fitted to data yet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import _check


@dataclass(frozen=True)
class Targets:
    """Target margins for similar and dissimilar pairs.

    A trainer calls `Constraint.fit` to turn them into a `Constraint`, using the similarities of its
    training data.

    Args:
        alike: The target margin of similar pairs, greater than 0, in units of the score.
        unlike: The target margin of dissimilar pairs, finite and greater than `alike`.

    Raises:
        TypeError: A target is not a number.
        ValueError: Not 0 < alike < unlike < inf.
    """

    alike: float
    unlike: float

    def __post_init__(self) -> None:
        for name in ("alike", "unlike"):
            object.__setattr__(self, name, _check.not_nan(f"target_{name}", getattr(self, name)))
        if not self.alike > 0:
            raise ValueError(
                f"target_alike must be greater than 0, got {self.alike:g}: a ceiling of 0 or less would reward ties and reversals"
            )
        if not self.alike < self.unlike < math.inf:
            raise ValueError(
                f"target_unlike must be finite and greater than target_alike, which is {self.alike:g}, got {self.unlike:g}"
            )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Targets:
        """Return the targets in settings, given for each side as `target_<side>` or as the win probability `win_<side>`.

        Raises:
            TypeError, ValueError: As in `Targets` and `margin_of`. Messages use the names in `given`.
        """
        margins, said = [], []
        for side in ("alike", "unlike"):
            name = f"win_{side}" if f"win_{side}" in given else f"target_{side}"
            value = _check.not_nan(name, given[name])
            margins.append(_log_odds(name, value) if name.startswith("win") else value)
            said.append((name, f"{value:g} (margin {margins[-1]:.4g})" if name.startswith("win") else f"{value:g}"))
        (alike, its_value), (unlike, value) = said
        if 0 < margins[0] < math.inf and margins[1] <= margins[0]:
            raise ValueError(f"{unlike} must be finite and greater than {alike}, which is {its_value}, got {value}")
        return cls(*margins)


def margin_of(win_probability: float) -> float:
    """Return the margin for a win probability p: log(p / (1 - p)), the inverse of the sigmoid.

    In the Bradley-Terry model, a fraction p of annotators prefers the chosen response of a pair
    with this margin. For example, 0.7 gives a margin of 0.85, and 0.95 gives 2.94.

    Args:
        win_probability: p, in (0.5, 1).

    Returns:
        The margin in units of the score, finite and greater than 0.

    Raises:
        TypeError: `win_probability` is not a number.
        ValueError: `win_probability` is not in (0.5, 1). Outside that range the margin would not
            be finite and positive.
    """
    return _log_odds("win_probability", _check.not_nan("win_probability", win_probability))


def _log_odds(name: str, p: float) -> float:
    if not 0.5 < p < 1:
        raise ValueError(f"{name} must be in (0.5, 1), got {p:g}")
    return math.log(p / (1 - p))
