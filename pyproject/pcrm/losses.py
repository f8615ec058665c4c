"""The losses as modules: a constraint and its settings, called with the prior of each pair."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch

from . import _check
from ._engine.dtypes import REDUCTIONS, Reduction
from ._engine.trace import Origin
from .functional import pcrm_dpo_loss, pcrm_loss
from .settings import Constraint, Targets


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

    Raises:
        TypeError, ValueError: as in `pcrm_loss`, of the settings.
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
        self.constraint = _checked(constraint)
        _check.label_smoothing(label_smoothing)
        _check.one_of("reduction", reduction, REDUCTIONS)
        _check.at_least_0("center_rewards_coefficient", center_rewards_coefficient)
        self.settings: dict[str, Any] = {
            "label_smoothing": label_smoothing,
            "center_rewards_coefficient": center_rewards_coefficient,
            "reduction": reduction,
            "check_finite": check_finite,
        }

    @classmethod
    def fitted(cls, similarities: Any, *, target_alike: float, target_unlike: float, **settings: Any) -> PCRMLoss:
        """The loss with the constraint of these targets, fitted to the priors of the training pairs.

            >>> loss_fn = pcrm.PCRMLoss.fitted(prior, target_alike=1.0, target_unlike=3.0)

        Args:
            similarities, target_alike, target_unlike: As in `Constraint.fit`: all of the training data, not a batch.
            settings: The other arguments of the loss.

        Raises:
            TypeError, ValueError: as in `Constraint.fit`, and of the settings.
        """
        return cls(Constraint.fit(similarities, target_alike=target_alike, target_unlike=target_unlike), **settings)

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
        delta, origin = delta_of(self.constraint, prior)
        return pcrm_loss(chosen_rewards, rejected_rewards, delta, origin=origin, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join([repr(self.constraint), *(f"{k}={v!r}" for k, v in self.settings.items() if v)])


class PCRMDPOLoss(torch.nn.Module):
    """The prior-constrained DPO loss.

        >>> loss_fn = pcrm.PCRMDPOLoss(pcrm.Constraint.preset("dpo/length_ratio"), beta=0.1)
        >>> loss, chosen_rewards, rejected_rewards = loss_fn(pc, pr, rc, rr, prior)

    The formula and the settings are those of `pcrm.functional.pcrm_dpo_loss`, with
    delta = constraint.delta(prior).

    Args:
        constraint: What turns a prior into a ceiling of the difference of implicit rewards.
        beta, label_smoothing, reduction: As in `pcrm.functional.pcrm_dpo_loss`.

    Raises:
        TypeError, ValueError: as in `pcrm_dpo_loss`, of the settings.
    """

    def __init__(
        self,
        constraint: Constraint,
        beta: float = 0.1,
        *,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.constraint = _checked(constraint)
        _check.label_smoothing(label_smoothing)
        _check.one_of("reduction", reduction, REDUCTIONS)
        _check.positive("beta", beta)
        self.settings: dict[str, Any] = {"beta": beta, "label_smoothing": label_smoothing, "reduction": reduction}

    @classmethod
    def fitted(cls, similarities: Any, *, target_alike: float, target_unlike: float, **settings: Any) -> PCRMDPOLoss:
        """The loss with the constraint of these targets, fitted to the priors of the training pairs.

            >>> loss_fn = pcrm.PCRMDPOLoss.fitted(prior, target_alike=1.0, target_unlike=3.0)

        Args:
            similarities, target_alike, target_unlike: As in `Constraint.fit`: all of the training data, not a batch.
            settings: The other arguments of the loss.

        Raises:
            TypeError, ValueError: as in `Constraint.fit`, and of the settings.
        """
        return cls(Constraint.fit(similarities, target_alike=target_alike, target_unlike=target_unlike), **settings)

    def forward(
        self,
        policy_chosen_logps: torch.Tensor,
        policy_rejected_logps: torch.Tensor,
        reference_chosen_logps: torch.Tensor,
        reference_rejected_logps: torch.Tensor,
        prior: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loss of a batch and its implicit rewards.

        Args:
            policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps:
                Log probabilities of the responses, shape (B,).
            prior: Similarities in [0, 1], shape (B,). Not needed for a fixed constraint.

        Raises:
            TypeError, ValueError: as in `pcrm_dpo_loss` and `Constraint.delta`; a missing prior.
        """
        logps = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
        delta, origin = delta_of(self.constraint, prior)
        return pcrm_dpo_loss(*logps, delta, origin=origin, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join([repr(self.constraint), *(f"{k}={v!r}" for k, v in self.settings.items() if v)])


def _checked(constraint: Constraint) -> Constraint:
    if isinstance(constraint, Targets):
        raise TypeError(
            "constraint must be a pcrm.Constraint, got Targets: `fitted` makes a loss of them and of your data's priors"
        )
    if not isinstance(constraint, Constraint):
        raise TypeError(f"constraint is a {type(constraint).__name__}, must be a pcrm.Constraint")
    return constraint


def delta_of(constraint: Constraint, prior: torch.Tensor | None) -> tuple[torch.Tensor | float, Origin]:
    """Return the delta of a batch, and what it was made from, for the loss to record."""
    if constraint.is_fixed:
        return constraint.delta(1.0), Origin(None, constraint.recorded)
    if prior is None:
        raise ValueError("prior is missing: only a fixed constraint needs none")
    if not isinstance(prior, torch.Tensor):
        prior = torch.as_tensor(_check.array("prior", prior) if hasattr(prior, "__array_interface__") else prior)
    return constraint.delta(prior), Origin(prior, constraint.recorded)


def warn_of_smoothing(label_smoothing: float, constraint: Constraint | Targets) -> None:
    """Warn that label smoothing does not act on a constrained pair: see `pcrm.functional.pcrm_loss`."""
    if label_smoothing > 0 and (isinstance(constraint, Targets) or constraint.delta(1.0) < math.inf):
        warnings.warn(
            f"label_smoothing is {label_smoothing}: where delta is finite it adds label_smoothing * delta to pcrm's "
            "loss and moves no gradient",
            stacklevel=4,
        )
