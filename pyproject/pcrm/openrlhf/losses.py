"""The losses with the signatures of OpenRLHF's, which is not needed to use them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import losses
from .._engine.deltas import check_similarities
from ..settings import Constraint

# What OpenRLHF gives for a column that is not there is 0. Among 64 pairs a real prior
# that is 0 for all of them is no accident either.
_ZEROS = 64

# What is told the margins of each call, shape (B,), and the priors, if there are any.
Observer = Callable[[torch.Tensor, torch.Tensor | None], None]


class PCRMPairWiseLoss(torch.nn.Module):
    """The prior-constrained loss in the place of OpenRLHF's `PairWiseLoss`.

        >>> trainer.loss_fn = PCRMPairWiseLoss(pcrm.Constraint.preset("alpaca/length_ratio"))

    With m = chosen_reward - reject_reward and delta = constraint.delta(margin) it is
    -log sigmoid(m) - log sigmoid(delta - m), the mean over the batch: `margin` carries the
    prior similarity of each pair, and so OpenRLHF needs `--model.margin_loss_enable`
    (`--margin_loss` before 0.10.2) and the data set a column `margin`.

    Args:
        constraint: What turns a prior into a ceiling of the margin. With a fixed one no
            prior is needed, and one that is given is checked and left; `Constraint.fixed(math.inf)`
            gives OpenRLHF's own loss without a margin.
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
        """The loss of a batch.

        Args:
            chosen_reward, reject_reward: Scores, shape (B,). Those of bfloat16 and float16,
                OpenRLHF's own, are subtracted in float32.
            margin: Prior similarities in [0, 1], shape (B,). Integers, as which OpenRLHF
                hands over a column of whole numbers, are taken as what they are: 0 and 1
                are priors, a rating such as 3 is not.

        Returns:
            A scalar, float64 for float64 scores, else float32.

        Raises:
            TypeError: margin is no tensor of numbers; scores of other dtypes.
            ValueError: margin is missing, has another shape, is outside [0, 1] (named by
                its index), or is 0 for all of the first 64 pairs or more; scores of other shapes. The check costs a synchronization
                with the device; OpenRLHF's own loop has several a step.
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
                "margin is missing: it carries the prior of each pair, so run with --model.margin_loss_enable "
                "and a data set with a column 'margin'"
            )
        if not isinstance(margin, torch.Tensor) or margin.is_complex() or margin.dtype == torch.bool:
            what = margin.dtype if isinstance(margin, torch.Tensor) else type(margin).__name__
            raise TypeError(f"margin is {what}, must be a tensor of numbers in [0, 1]")
        if margin.shape != chosen_reward.shape:
            raise ValueError(f"margin has shape {tuple(margin.shape)}, chosen_reward has {tuple(chosen_reward.shape)}")
        whole = not margin.is_floating_point()
        prior = margin.double() if whole else margin
        try:
            check_similarities(prior, "margin")
        except ValueError as error:
            kind = "whole numbers such as ratings" if whole else "something else"
            raise ValueError(
                f"{error}: the data set's column 'margin' must hold the prior of each pair, and holds {kind}"
            ) from None
        if self._zeros is not None:
            self._zeros = None if prior.any() else self._zeros + len(prior)
            if (self._zeros or 0) >= _ZEROS:
                raise ValueError(
                    f"margin is 0 for all of the first {self._zeros} pairs, which is what OpenRLHF makes of a column "
                    "that is not there: does the data set have a column 'margin' with the prior of each pair?"
                )
        return prior


class PCRMDPOLoss(torch.nn.Module):
    """The prior-constrained loss in the place of OpenRLHF's `DPOLoss`.

    With z = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    and delta = constraint.delta(prior) it is -log sigmoid(z) - log sigmoid(delta - z), the mean
    over the batch. OpenRLHF's trainer passes no margin to a DPO loss: set `prior` before each
    call, as `PCRMDPOTrainer` does.

    Args:
        constraint: What turns a prior into a ceiling of z. With a fixed one no prior is
            needed; `Constraint.fixed(math.inf)` gives OpenRLHF's own loss.
        beta, label_smoothing: As in `pcrm.functional.pcrm_dpo_loss`.
        ipo: Must be False: IPO's squared loss has no constraint.

    Attributes:
        prior: Similarities in [0, 1] of the pairs of the next call, shape (B,). Each call
            takes them away, so that none serves two batches.

    Raises:
        TypeError, ValueError: an argument that is not what it should be.
    """

    def __init__(
        self, constraint: Constraint, beta: float = 0.1, label_smoothing: float = 0.0, ipo: bool = False
    ) -> None:
        super().__init__()
        if ipo:
            raise ValueError("ipo is True: IPO's squared loss has no constraint, leave --model.ipo_enable away")
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
        """The loss of a batch and its implicit rewards, detached.

        Args:
            policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps:
                Log probabilities of the responses, shape (B,).

        Raises:
            TypeError, ValueError: as in `pcrm.functional.pcrm_dpo_loss`; a prior that is
                missing, of another shape or outside [0, 1].
        """
        prior, self.prior = self.prior, None
        if prior is None and not self.loss.constraint.is_fixed:
            raise ValueError(
                "prior is missing: set it before each call of the loss, or train with pcrm.openrlhf.PCRMDPOTrainer"
            )
        if prior is not None and prior.shape != policy_chosen_logps.shape:
            raise ValueError(
                f"prior has shape {tuple(prior.shape)}, policy_chosen_logps has {tuple(policy_chosen_logps.shape)}"
            )
        logps = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
        loss, chosen_rewards, rejected_rewards = self.loss(*logps, prior)
        if self.observer is not None:
            self.observer(chosen_rewards - rejected_rewards, prior)
        return loss, chosen_rewards, rejected_rewards
