"""Whether a constraint binds, as training goes on: a message for who would not read the metrics."""

from __future__ import annotations

import numpy as np

from ..settings import Constraint
from .metrics import Mode, PairSums

# Margins are 0 in the beginning, and no constraint binds then. Half of the steps are three quarters of the way for a
# learning rate that falls linearly to 0.
_SOON_ENOUGH = 0.5
# If none of 300 pairs is over its target, the share of all pairs is below 1 % with 95 % confidence (the rule of three).
_ENOUGH_PAIRS = 300
# Below both, the second term pulls less than a hundredth as hard as the first pushes, and no hundredth of the pairs is
# where it wins. The share alone would not do: a target that nearly all margins approach from below holds them there.
_NEARLY_NONE = 0.01
_MOST = 0.5


class BindingCheck:
    """Says once that the constraint does nothing, and once that most margins are over their ceilings.

    Args:
        constraint: The constraint, whose kind decides what to do.
        prefix: What the messages put before a setting's name.
    """

    def __init__(self, constraint: Constraint, prefix: str = "pcrm_") -> None:
        self._constraint = constraint
        self._prefix = prefix
        self._trained_on = PairSums()  # since it is soon enough
        self._said: set[str] = set()

    def look(self, sums: PairSums, mode: Mode, progress: float) -> str | None:
        """Return the message, if there is one to give and it was not given before.

        Args:
            sums: Of the pairs of training since the last call, or of one whole evaluation.
            mode: Which of both.
            progress: The share of the training's steps that are done; 0 where nothing was trained.
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
        known = f"over {sums.bounded:,} {of} pairs, the mean margin is {sums.margin / sums.bounded:.3g} and"
        if sums.over_target < _NEARLY_NONE * sums.bounded and sums.relative_pull < _NEARLY_NONE:
            return "idle", (
                f"the constraint is not binding: {known} {_range('target', sums, 0.5)}, so the model is trained as if without a "
                f"constraint. {self._remedy('lower')}, or train longer"
            )
        if sums.over_ceiling > _MOST * sums.bounded:
            return "over", (
                f"{sums.over_ceiling / sums.bounded:.0%} of the margins are over their ceilings: {known} "
                f"{_range('ceiling', sums, 1.0)}, so the loss mostly pulls margins down. {self._remedy('higher')}"
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
    return f"the {name} is {low}" if low == high else f"{name}s are {low} to {high} (10th to 90th percentile)"
