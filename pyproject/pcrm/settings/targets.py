"""Target margins: what a user wants of a constraint before there are data to fit it to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import _check


@dataclass(frozen=True)
class Targets:
    """The margins that a constraint shall want of alike and of unlike pairs.

    A trainer fits a `Constraint` to them with `Constraint.fit`, on the similarities of its training data.

    Args:
        alike: The margin wanted for alike pairs, greater than 0.
        unlike: The margin wanted for unlike pairs, greater than `alike`.

    Raises:
        TypeError: no numbers.
        ValueError: not 0 < alike < unlike < inf.
    """

    alike: float
    unlike: float

    def __post_init__(self) -> None:
        for name in ("alike", "unlike"):
            object.__setattr__(self, name, _check.not_nan(f"target_{name}", getattr(self, name)))
        if not self.alike > 0:
            raise ValueError(
                f"target_alike is {self.alike:g}, must be greater than 0: a ceiling of zero or less rewards ties and reversals"
            )
        if not self.alike < self.unlike < math.inf:
            raise ValueError(
                f"target_unlike is {self.unlike:g}, must be finite and greater than target_alike, which is {self.alike:g}"
            )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Targets:
        """The targets of settings: of each side either `target_<side>` or `win_<side>`, a win probability.

        Raises:
            TypeError, ValueError: as of `Targets` and `margin_of`, under the names that are given.
        """
        margins, said = [], []
        for side in ("alike", "unlike"):
            name = f"win_{side}" if f"win_{side}" in given else f"target_{side}"
            value = _check.not_nan(name, given[name])
            margins.append(_log_odds(name, value) if name.startswith("win") else value)
            said.append((name, f"{value:g} (margin {margins[-1]:.4g})" if name.startswith("win") else f"{value:g}"))
        (alike, its_value), (unlike, value) = said
        if 0 < margins[0] < math.inf and margins[1] <= margins[0]:
            raise ValueError(f"{unlike} is {value}, must be finite and greater than {alike}, which is {its_value}")
        return cls(*margins)


def margin_of(win_probability: float) -> float:
    """The margin whose sigmoid is a win probability p: log(p / (1 - p)).

    By the Bradley-Terry model a pair with that margin is ranked as chosen by a share p of
    the annotators. 0.7 is a margin of 0.85, 0.95 one of 2.94.

    Raises:
        TypeError: no number.
        ValueError: not in (0.5, 1): a target is a finite margin greater than 0.
    """
    return _log_odds("win_probability", _check.not_nan("win_probability", win_probability))


def _log_odds(name: str, p: float) -> float:
    if not 0.5 < p < 1:
        raise ValueError(f"{name} is {p:g}, must be in (0.5, 1)")
    return math.log(p / (1 - p))
