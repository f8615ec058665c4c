"""Warn during training if the constraint does not bind, or if most margins exceed their ceilings."""

from __future__ import annotations

import numpy as np

from ..settings import Constraint
from .metrics import Mode, PairSums

# Margins start at 0, so no constraint binds at first. With a learning rate that falls linearly to 0, half of the steps
# cover three quarters of the way.
_SOON_ENOUGH = 0.5
# If none of 300 pairs is above its target, fewer than 1% of all pairs are, with 95% confidence (the rule of three).
_ENOUGH_PAIRS = 300
# If both numbers are below this, the second term of the loss pulls less than 1% as hard as the first pushes, and wins in
# fewer than 1% of the pairs. The fraction of pairs is not enough: a target that margins approach from below does bind.
_NEARLY_NONE = 0.01
_MOST = 0.5


def is_idle(sums: PairSums) -> bool:
    """Whether the model trains nearly as if it had no constraint."""
    return sums.over_target < _NEARLY_NONE * sums.bounded and sums.relative_pull < _NEARLY_NONE


class BindingCheck:
    """Warn once if the constraint has no effect, and once if most margins exceed their ceilings.

    Args:
        constraint: The constraint. Its kind decides which settings the message names.
        prefix: Prefix of the settings' names in messages.
    """

    def __init__(self, constraint: Constraint, prefix: str = "pcrm_") -> None:
        self._constraint = constraint
        self._prefix = prefix
        self._trained_on = PairSums()  # since half of the steps
        self._said: set[str] = set()

    def look(self, sums: PairSums, mode: Mode, progress: float) -> str | None:
        """Return a message if there is a new one, else None.

        Args:
            sums: Sums over the training pairs since the last call, or over one whole evaluation.
            mode: Whether `sums` are from training or from evaluation.
            progress: Fraction of the training steps done so far; 0 if nothing was trained.
        """
        if progress < _SOON_ENOUGH:
            return None
        if mode == "train":
            self._trained_on.merge(sums)
            sums = self._trained_on
        if sums.bounded < _ENOUGH_PAIRS:
            return None
        name, message = self._judged(sums, "training" if mode == "train" else "evaluation")
        if message is None or name in self._said:
            return None
        self._said.add(name)
        return message

    def _judged(self, sums: PairSums, of: str) -> tuple[str, str | None]:
        known = f"over {sums.bounded:,} {of} pairs the mean margin is {sums.margin / sums.bounded:.3g} and"
        if is_idle(sums):
            return "idle", (
                f"the constraint is not binding: {known} {_range('target', sums, 0.5)}. The model trains as if "
                f"unconstrained. {self._remedy('lower')}, or train longer"
            )
        if sums.over_ceiling > _MOST * sums.bounded:
            return "over", (
                f"{sums.over_ceiling / sums.bounded:.0%} of the margins exceed their ceilings: {known} "
                f"{_range('ceiling', sums, 1.0)}. The loss mostly pulls margins down. {self._remedy('higher')}"
            )
        return "", None

    def _remedy(self, way: str) -> str:
        if self._constraint.is_random:
            return f"Set {way} values of {self._prefix}low and {self._prefix}high"
        if self._constraint.is_fixed:
            return f"Set a {way} {self._prefix}delta"
        return f"Set {way} targets with {self._prefix}target_alike and {self._prefix}target_unlike"


def _range(name: str, sums: PairSums, factor: float) -> str:
    low, high = (f"{factor * q:.3g}" for q in np.quantile(sums.deltas.values, (0.1, 0.9)))
    return f"the {name} is {low}" if low == high else f"the {name}s are {low} to {high} (10th to 90th percentile)"
