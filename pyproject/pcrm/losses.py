"""The losses as torch modules: each holds a constraint and its settings; a call needs the prior of each pair."""

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
    """Prior-constrained loss of a reward model.

        >>> loss_fn = pcrm.PCRMLoss(pcrm.Constraint.preset("alpaca/length_ratio"))
        >>> prior = pcrm.priors.length_ratio(chosen_ids, rejected_ids)
        >>> loss = loss_fn(chosen_rewards, rejected_rewards, prior)

    Computes `pcrm.functional.pcrm_loss` with delta = constraint.delta(prior).

    Args:
        constraint: Maps the prior (similarity) of a pair to delta, the ceiling of its margin.
        label_smoothing, center_rewards_coefficient, reduction, check_finite: As in
            `pcrm.functional.pcrm_loss`.

    Raises:
        TypeError: `constraint` is not a `pcrm.Constraint`, or a setting has the wrong type.
        ValueError: A setting is out of range, as in `pcrm_loss`.
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
        """Make the loss with a constraint fitted to target margins and the priors of the training pairs.

            >>> loss_fn = pcrm.PCRMLoss.fitted(prior, target_alike=1.0, target_unlike=3.0)

        Args:
            similarities: The priors of all training pairs, not of one batch. As in `Constraint.fit`.
            target_alike, target_unlike: The target margins of similar and dissimilar pairs, as in `Constraint.fit`.
            settings: The other arguments of `PCRMLoss`.

        Raises:
            TypeError, ValueError: As in `Constraint.fit` and `PCRMLoss`.
        """
        return cls(Constraint.fit(similarities, target_alike=target_alike, target_unlike=target_unlike), **settings)

    def forward(
        self, chosen_rewards: torch.Tensor, rejected_rewards: torch.Tensor, prior: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of a batch.

        Args:
            chosen_rewards, rejected_rewards: Scores, shape (B,).
            prior: Similarities in [0, 1], shape (B,). A fixed constraint does not need it.

        Raises:
            TypeError, ValueError: As in `pcrm_loss` and `Constraint.delta`. Also if the prior is missing.
        """
        delta, origin = delta_of(self.constraint, prior, chosen_rewards)
        return pcrm_loss(chosen_rewards, rejected_rewards, delta, origin=origin, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join([repr(self.constraint), *(f"{k}={v!r}" for k, v in self.settings.items() if v)])


class PCRMDPOLoss(torch.nn.Module):
    """Prior-constrained DPO loss.

        >>> loss_fn = pcrm.PCRMDPOLoss(pcrm.Constraint.preset("dpo/length_ratio"), beta=0.1)
        >>> loss, chosen_rewards, rejected_rewards = loss_fn(pc, pr, rc, rr, prior)

    Computes `pcrm.functional.pcrm_dpo_loss` with delta = constraint.delta(prior).

    Args:
        constraint: Maps the prior (similarity) of a pair to delta, the ceiling of its implicit-reward margin.
        beta, label_smoothing, reduction: As in `pcrm.functional.pcrm_dpo_loss`.

    Raises:
        TypeError: `constraint` is not a `pcrm.Constraint`, or a setting has the wrong type.
        ValueError: A setting is out of range, as in `pcrm_dpo_loss`.
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
        """Make the loss with a constraint fitted to target margins and the priors of the training pairs.

            >>> loss_fn = pcrm.PCRMDPOLoss.fitted(prior, target_alike=1.0, target_unlike=3.0)

        Args:
            similarities: The priors of all training pairs, not of one batch. As in `Constraint.fit`.
            target_alike, target_unlike: The target margins of similar and dissimilar pairs, as in `Constraint.fit`.
            settings: The other arguments of `PCRMDPOLoss`.

        Raises:
            TypeError, ValueError: As in `Constraint.fit` and `PCRMDPOLoss`.
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
        """Return the loss of a batch and its implicit rewards, as `pcrm_dpo_loss` does.

        Args:
            policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps:
                Log probabilities of the responses, shape (B,).
            prior: Similarities in [0, 1], shape (B,). A fixed constraint does not need it.

        Raises:
            TypeError, ValueError: As in `pcrm_dpo_loss` and `Constraint.delta`. Also if the prior is missing.
        """
        logps = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
        delta, origin = delta_of(self.constraint, prior, policy_chosen_logps)
        return pcrm_dpo_loss(*logps, delta, origin=origin, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join([repr(self.constraint), *(f"{k}={v!r}" for k, v in self.settings.items() if v)])


def _checked(constraint: Constraint) -> Constraint:
    if isinstance(constraint, Targets):
        raise TypeError(
            "constraint must be a pcrm.Constraint, got Targets: fit them to the priors of your data with `fitted`"
        )
    if not isinstance(constraint, Constraint):
        raise TypeError(f"constraint must be a pcrm.Constraint, got {type(constraint).__name__}")
    return constraint


def delta_of(
    constraint: Constraint, prior: torch.Tensor | None, chosen: torch.Tensor | None = None
) -> tuple[torch.Tensor | float, Origin]:
    """Return the delta of a batch, and the prior and constraint it comes from, for the loss to record.

    If `chosen` is given, the prior must be one number or have its shape.
    """
    if constraint.is_fixed:
        return constraint.delta(1.0), Origin(None, constraint.recorded)
    if prior is None:
        raise ValueError("prior is missing: pass the prior of each pair (only a fixed constraint works without it)")
    if not isinstance(prior, torch.Tensor):
        prior = torch.as_tensor(_check.array("prior", prior) if hasattr(prior, "__array_interface__") else prior)
    wanted = getattr(chosen, "shape", prior.shape)
    if prior.dim() > 0 and prior.shape != wanted:
        raise ValueError(f"prior must have shape {tuple(wanted)} or be one number, got shape {tuple(prior.shape)}")
    return constraint.delta(prior), Origin(prior, constraint.recorded)


def warn_of_smoothing(label_smoothing: float, constraint: Constraint | Targets) -> None:
    """Warn that label smoothing has no effect on constrained pairs: see `pcrm.functional.pcrm_loss`."""
    if label_smoothing > 0 and (isinstance(constraint, Targets) or constraint.delta(1.0) < math.inf):
        warnings.warn(
            f"label_smoothing={label_smoothing} has no effect on training where delta is finite: it adds the constant "
            "label_smoothing * delta to the loss, and the gradient stays the same. Set it to 0, or use an infinite delta",
            stacklevel=4,
        )
