"""The hooks of `transformers.Trainer` that the constraint needs, whoever's trainer it is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import Trainer

from ..functional import pcrm_dpo_loss, pcrm_loss
from ..losses import delta_of
from ..settings import Config, Constraint, Targets
from . import fit
from .binding import BindingCheck
from .metrics import ConstraintMetrics, Demonstrations, Mode

logger = logging.getLogger(__name__)


class ConstraintHooks(Trainer):
    """Goes before a trainer in the bases of one with the constrained loss.

    Such a trainer calls `_begin` with the settings, `_fit` when the training data are there, and `_add_metrics` with
    each batch. Its log then has the metrics `pcrm/*`, `pcrm.toml` lies beside each checkpoint and is read when
    training goes on from there, and one message says if the constraint does not bind.

    Attributes:
        constrained: Whether the loss is ours. All of the others below are there only if it is.
        settings: What the arguments say about the constraint.
        constraint: The constraint. Targets are fitted to the training data by `_fit`.
    """

    setting_prefix: ClassVar[str] = "pcrm_"  # what messages put before a setting's name
    keeps_fit: ClassVar[bool] = True  # whether a constraint that is fitted is logged and written
    constrained: bool = True
    settings: Config
    constraint: Constraint

    _prior_name: str  # in pcrm.toml
    _fitted: bool = False  # whether the constraint was fitted here, and is kept beside the model
    _constraint_metrics: ConstraintMetrics
    _binding_check: BindingCheck
    # What transformers sets: a model is there by the time of a hook, gather's result is of the type of its argument.
    model: Any
    accelerator: Any

    def _begin(self, settings: Config, *, keep_margins: bool = False) -> None:
        """Take the settings; before any batch.

        Args:
            settings: What the arguments say about the constraint.
            keep_margins: As in `ConstraintMetrics`.
        """
        self._use(settings)
        self._constraint_metrics = ConstraintMetrics(log_prior=settings.prior != "random", keep_margins=keep_margins)

    def _fit(self, similarities: Callable[[], Any], prior: str) -> None:
        """Make a constraint of targets; before any batch.

        Args:
            similarities: Gives the priors of the training data, shape (N,): `pcrm.training.fit`.
            prior: The prior's name in `pcrm.toml`.
        """
        self._prior_name = prior
        self._fitted = isinstance(self.settings.constraint, Targets)
        if self._fitted:
            folder = self.args.output_dir if self.keeps_fit else None
            self._use(fit.fit(self.settings, similarities(), prior, folder))
        self._binding_check = BindingCheck(self.constraint, self.setting_prefix)

    def _use(self, settings: Config) -> None:
        self.settings = settings
        if isinstance(settings.constraint, Constraint):
            self.constraint = settings.constraint

    @property
    def _current_mode(self) -> Mode:
        return "train" if self.model.training else "eval"

    def _add_metrics(
        self,
        margin: torch.Tensor,
        delta: torch.Tensor | float,
        prior: torch.Tensor | None,
        demonstrations: Demonstrations | None = None,
    ) -> None:
        # The last batch of an evaluation repeats pairs until all processes have equally many. Only
        # accelerate can tell them. Training does train on its repeats.
        gather = self.accelerator.gather if self._current_mode == "train" else self.accelerator.gather_for_metrics
        self._constraint_metrics.add(self._current_mode, margin, delta, prior, demonstrations, gather=gather)

    def _reward_loss(
        self, chosen: torch.Tensor, rejected: torch.Tensor, prior: torch.Tensor | None, center: float
    ) -> torch.Tensor:
        """The loss of a batch of scores, shape (B,) each, whose metrics are added.

        Args:
            chosen, rejected: The scores.
            prior: Of each pair, shape (B,).
            center: As `center_rewards_coefficient` of `pcrm.functional.pcrm_loss`.
        """
        delta, origin = delta_of(self.constraint, prior)
        self._add_metrics(chosen.detach() - rejected.detach(), delta, prior)
        smoothing = self.settings.label_smoothing
        return pcrm_loss(
            chosen, rejected, delta, label_smoothing=smoothing, center_rewards_coefficient=center, origin=origin
        )

    def _dpo_losses(
        self,
        logps: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
        prior: torch.Tensor | None,
        beta: float,
        label_smoothing: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The losses of a batch of pairs and both implicit rewards, shape (B,) each; the metrics are added.

        Args:
            logps: Those of `pcrm.functional.pcrm_dpo_loss`, in their order.
            prior: Of each pair, shape (B,).
            beta, label_smoothing: As there.
        """
        delta, origin = delta_of(self.constraint, prior)
        losses, chosen, rejected = pcrm_dpo_loss(
            *logps, delta, beta=beta, label_smoothing=label_smoothing, reduction="none", origin=origin
        )
        self._add_metrics(chosen - rejected, delta, prior)
        return losses, chosen, rejected

    def _with_means(self, logs: dict[str, float], mode: Mode, means: dict[str, float]) -> dict[str, float]:
        """What is logged, with the metrics `pcrm/*`: the same dict, as transformers adds to it what its caller wants back."""
        prefix = "" if mode == "train" else f"{self._constraint_metrics.evaluation}_"
        logs.update({f"{prefix}{name}": mean for name, mean in means.items()})
        return logs

    # The hooks. Those of the trainer are next in line.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # Not in `_save`: each process calls it, and none of them with FSDP's sharded state dicts.
        if self.constrained and self._fitted and self.args.should_save:
            folder: Any = output_dir or self.args.output_dir
            Path(folder).mkdir(parents=True, exist_ok=True)
            fit.save(self.settings, folder, self._prior_name)
        super().save_model(output_dir, _internal_call)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.constrained and self._fitted and checkpoint is not None:
            self._use(fit.resumed(self.settings, checkpoint))

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        if self.constrained:
            self._constraint_metrics.begin_evaluation(metric_key_prefix)
        return super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.constrained:
            mode = self._current_mode
            progress = self.state.global_step / max(self.state.max_steps, 1)
            message = self._binding_check.look(self._constraint_metrics.sums[mode], mode, progress)
            if message is not None and self.is_world_process_zero():
                logger.warning(message)
            logs = self._with_means(logs, mode, self._constraint_metrics.take_means(mode))
        super().log(logs, start_time)
