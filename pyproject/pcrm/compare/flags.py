"""Checks of values from the command line, whose messages name the flag."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def check(settings: Any, positive: Iterable[str]) -> None:
    """Check settings whose attributes are named as the flags are.

    Args:
        settings: Has `target_alike`, `target_unlike` and `seed`.
        positive: The attributes that must be greater than 0 and finite, or None.

    Raises:
        ValueError: A value is out of its range.
    """
    for name in ("target_alike", "target_unlike", *positive):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} must be greater than 0 and finite, got {value:g}")
    if settings.target_unlike <= settings.target_alike:
        raise ValueError(
            f"--target-unlike must be greater than --target-alike, got {settings.target_unlike:g} and "
            f"{settings.target_alike:g}"
        )
    if not 0 <= settings.seed < 2**32:
        raise ValueError(f"--seed must be in [0, 2**32), got {settings.seed}")
