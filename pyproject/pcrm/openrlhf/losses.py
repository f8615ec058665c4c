"""The losses with OpenRLHF's signatures. OpenRLHF is not required."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import losses
from .._engine.deltas import check_similarities
from ..settings import Constraint

# OpenRLHF passes 0 for a missing column. A real prior is not 0 for each of 64 pairs by accident.
_ZEROS = 64

# Receives the margins of each call, shape (B,), and the priors, if there are any.
Observer = Callable[[torch.Tensor, torch.Tensor | None], None]


class PCRMPairWiseLoss(torch.nn.Module):
    """Prior-constrained replacement for OpenRLHF's `PairWiseLoss`.

        >>> trainer.loss_fn = PCRMPairWiseLoss(pcrm.Constraint.preset("alpaca/length_ratio"))

    With m = chosen_reward - reject_reward and delta = constraint.delta(margin), the loss is the batch mean of
    -log sigmoid(m) - log sigmoid(delta - m). The prior similarity of each pair travels in `margin`. OpenRLHF therefore
    needs `--model.margin_loss_enable` (`--margin_loss` before 0.10.2), and the data set needs a column `margin`.

    Args:
        constraint: Maps a prior to a ceiling of the margin. A fixed constraint needs no prior; if one is given, it is
            validated and ignored. `Constraint.fixed(math.inf)` gives OpenRLHF's own loss without a margin.
        label_smoothing, center_rewards_coefficient: As in `pcrm.functional.pcrm_loss`.
    """

    def __init__(
        self, constraint: Constraint, *, label_smoothing: float = 0.0, center_rewards_coefficient: float = 0.0
    ) -> None:
        super().__init__()
        self.loss = losses.PCRMLoss(
            constraint, label_smoothing=label_smoothing, center_rewards_coefficient=center_rewards_coefficient
        )
        self.observer: Observer | None = None
        self._zeros: int | None = 0  # pairs seen so far, None once a margin was not 0

    def forward(
        self, chosen_reward: torch.Tensor, reject_reward: torch.Tensor, margin: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of a batch.

        Args:
            chosen_reward, reject_reward: Scores, shape (B,). bfloat16 and float16 scores, OpenRLHF's default, are
                subtracted in float32.
            margin: Prior similarities in [0, 1], shape (B,). OpenRLHF passes a column of whole numbers as integers,
                which are accepted if they are 0 or 1; a rating such as 3 is an error.

        Returns:
            A scalar: float64 for float64 scores, else float32.

        Raises:
            TypeError: `margin` is not a tensor of numbers, or the scores have an unsupported dtype.
            ValueError: `margin` is missing, has the wrong shape, is outside [0, 1] (the message names the index), or is 0
                for at least the first 64 pairs; or the scores have different shapes. The check costs a synchronization
                with the device; OpenRLHF's own loop has several per step.
        """
        prior = self._prior(chosen_reward, margin)
        loss = self.loss(chosen_reward, reject_reward, prior)
        if self.observer is not None:
            chosen, rejected = (
                x.detach().to(torch.promote_types(x.dtype, torch.float32)) for x in (chosen_reward, reject_reward)
            )
            self.observer(chosen - rejected, prior)
        return loss

    def _prior(self, chosen_reward: torch.Tensor, margin: torch.Tensor | None) -> torch.Tensor | None:
        if margin is None and self.loss.constraint.is_fixed:
            return None
        if margin is None:
            raise ValueError(
                "margin must be the prior of each pair, got None: run with --model.margin_loss_enable and a data set with a "
                "column 'margin'"
            )
        if not isinstance(margin, torch.Tensor) or margin.is_complex() or margin.dtype == torch.bool:
            what = margin.dtype if isinstance(margin, torch.Tensor) else type(margin).__name__
            raise TypeError(f"margin must be a tensor of numbers in [0, 1], got {what}")
        if margin.shape != chosen_reward.shape:
            raise ValueError(
                f"margin must have the shape of chosen_reward, {tuple(chosen_reward.shape)}, got {tuple(margin.shape)}"
            )
        whole = not margin.is_floating_point()
        prior = margin.double() if whole else margin
        try:
            check_similarities(prior, "margin")
        except ValueError as error:
            kind = "whole numbers such as ratings" if whole else "something else"
            raise ValueError(
                f"{error}: the data set's column 'margin' must contain the prior of each pair, but contains {kind}"
            ) from None
        if self._zeros is not None:
            self._zeros = None if prior.any() else self._zeros + len(prior)
            if (self._zeros or 0) >= _ZEROS:
                raise ValueError(
                    f"margin must not be 0 for all pairs, got 0 for the first {self._zeros}. OpenRLHF passes 0 for a missing "
                    "column: check that the data set has a column 'margin' with the prior of each pair"
                )
        return prior


class PCRMDPOLoss(torch.nn.Module):
    """Prior-constrained replacement for OpenRLHF's `DPOLoss`.

    With z = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)) and
    delta = constraint.delta(prior), the loss is the batch mean of -log sigmoid(z) - log sigmoid(delta - z). OpenRLHF's
    trainer passes no margin to a DPO loss, so set `prior` before each call, as `PCRMDPOTrainer` does.

    Args:
        constraint: Maps a prior to a ceiling of z. A fixed constraint needs no prior. `Constraint.fixed(math.inf)` gives
            OpenRLHF's own loss.
        beta, label_smoothing: As in `pcrm.functional.pcrm_dpo_loss`.
        ipo: Must be False: IPO's squared loss has no constraint.

    Attributes:
        prior: Similarities in [0, 1] of the pairs of the next call, shape (B,). Each call resets it, so that it is never
            used for two batches.

    Raises:
        TypeError, ValueError: An argument is invalid.
    """

    def __init__(
        self, constraint: Constraint, beta: float = 0.1, label_smoothing: float = 0.0, ipo: bool = False
    ) -> None:
        super().__init__()
        if ipo:
            raise ValueError(
                "ipo must be False, because IPO's squared loss has no constraint, got True: remove --model.ipo_enable"
            )
        self.loss = losses.PCRMDPOLoss(constraint, beta, label_smoothing=label_smoothing)
        self.prior: torch.Tensor | None = None
        self.observer: Observer | None = None

    def forward(
        self,
        policy_chosen_logps: torch.Tensor,
        policy_rejected_logps: torch.Tensor,
        reference_chosen_logps: torch.Tensor,
        reference_rejected_logps: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the loss of a batch and the detached implicit rewards.

        Args:
            policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps:
                Log probabilities of the responses, shape (B,).

        Raises:
            TypeError, ValueError: As in `pcrm.functional.pcrm_dpo_loss`; or `prior` is missing, has the wrong shape, or is
                outside [0, 1].
        """
        prior, self.prior = self.prior, None
        if prior is None and not self.loss.constraint.is_fixed:
            raise ValueError(
                "prior must be set before each call of the loss, got None: set it, or train with pcrm.openrlhf.PCRMDPOTrainer"
            )
        if prior is not None and prior.shape != policy_chosen_logps.shape:
            raise ValueError(
                f"prior must have the shape of policy_chosen_logps, {tuple(policy_chosen_logps.shape)}, got {tuple(prior.shape)}"
            )
        logps = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
        loss, chosen_rewards, rejected_rewards = self.loss(*logps, prior)
        if self.observer is not None:
            self.observer(chosen_rewards - rejected_rewards, prior)
        return loss, chosen_rewards, rejected_rewards
