"""The losses as modules: a constraint and its settings, called with the prior of each pair."""

from __future__ import annotations

from typing import Any

import torch

from .constraint import Constraint
from .functional import Reduction, pcrm_loss


class PCRMLoss(torch.nn.Module):
    """The prior-constrained loss of a reward model.

        >>> loss_fn = pcrm.PCRMLoss(pcrm.Constraint.preset("alpaca/length_ratio"))
        >>> prior = pcrm.priors.length_ratio(chosen_ids, rejected_ids)
        >>> loss = loss_fn(chosen_rewards, rejected_rewards, prior)

    The formula and the settings are those of `pcrm.functional.pcrm_loss`, with
    delta = constraint.delta(prior).

    Args:
        constraint: What turns a prior into a ceiling of the margin.
        label_smoothing, center_rewards_coefficient, reduction, check_finite: As in
            `pcrm.functional.pcrm_loss`.
    """

    def __init__(
        self,
        constraint: Constraint,
        *,
        label_smoothing: float = 0.0,
        center_rewards_coefficient: float = 0.0,
        reduction: Reduction = "mean",
        check_finite: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(constraint, Constraint):
            raise TypeError(f"constraint is a {type(constraint).__name__}, must be a pcrm.Constraint")
        self.constraint = constraint
        self.settings: dict[str, Any] = {
            "label_smoothing": label_smoothing,
            "center_rewards_coefficient": center_rewards_coefficient,
            "reduction": reduction,
            "check_finite": check_finite,
        }

    def forward(
        self, chosen_rewards: torch.Tensor, rejected_rewards: torch.Tensor, prior: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss of a batch.

        Args:
            chosen_rewards, rejected_rewards: Scores, shape (B,).
            prior: Similarities in [0, 1], shape (B,). Not needed for a fixed constraint.

        Raises:
            TypeError, ValueError: as in `pcrm_loss` and `Constraint.delta`; a missing prior.
        """
        if self.constraint.is_fixed:
            delta: torch.Tensor | float = self.constraint.delta(1.0)
        elif prior is None:
            raise ValueError("prior is missing: only a fixed constraint needs none")
        else:
            delta = self.constraint.delta(torch.as_tensor(prior))
        return pcrm_loss(chosen_rewards, rejected_rewards, delta, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join([repr(self.constraint), *(f"{k}={v!r}" for k, v in self.settings.items() if v)])
