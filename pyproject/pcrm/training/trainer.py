"""The hooks of `transformers.Trainer` that the constraint needs, shared by all frameworks."""

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
    """Mixin for trainers with the constrained loss; it precedes the framework's trainer in the bases.

    Such a trainer calls `_begin` with the settings, `_fit` once the training data are known, and `_add_metrics` with each
    batch. Its log then contains the metrics `pcrm/*`. Each checkpoint contains `pcrm.toml`, which is read when training
    resumes. A warning appears once if the constraint does not bind.

    Attributes:
        constrained: Whether the loss is ours. The other attributes exist only if it is.
        settings: The settings of the constraint.
        constraint: The constraint. `_fit` fits targets to the training data.
    """

    setting_prefix: ClassVar[str] = "pcrm_"  # prefix of the settings' names in messages
    keeps_fit: ClassVar[bool] = True  # whether a fitted constraint is logged and written
    constrained: bool = True
    settings: Config
    constraint: Constraint

    _prior_name: str  # as in pcrm.toml
    _fitted: bool = False  # whether the constraint was fitted here and is saved with the model
    _constraint_metrics: ConstraintMetrics
    _binding_check: BindingCheck
    # Set by transformers. The model exists when a hook runs, and gather returns the type of its argument.
    model: Any
    accelerator: Any

    def _begin(self, settings: Config, *, keep_margins: bool = False) -> None:
        """Set the settings, before any batch.

        Args:
            settings: The settings of the constraint.
            keep_margins: As in `ConstraintMetrics`.
        """
        self._use(settings)
        self._constraint_metrics = ConstraintMetrics(log_prior=settings.prior != "random", keep_margins=keep_margins)

    def _fit(self, similarities: Callable[[], Any], prior: str) -> None:
        """Fit a constraint to targets, if the settings contain targets, before any batch.

        Args:
            similarities: Returns the priors of the training data, shape (N,): see `pcrm.training.fit`.
            prior: The prior's name in `pcrm.toml`.
        """
        self._prior_name = prior
        self._fitted = isinstance(self.settings.constraint, Targets)
        if self._fitted:
            folder = self.args.output_dir if self.keeps_fit else None
            self._use(fit.fit(self.settings, similarities(), prior, folder, prefix=self.setting_prefix))
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
        # The last batch of an evaluation repeats pairs until all processes have the same number. Only accelerate knows
        # which. Training does train on its repeated pairs.
        gather = self.accelerator.gather if self._current_mode == "train" else self.accelerator.gather_for_metrics
        self._constraint_metrics.add(self._current_mode, margin, delta, prior, demonstrations, gather=gather)

    def _reward_loss(
        self, chosen: torch.Tensor, rejected: torch.Tensor, prior: torch.Tensor | None, center: float
    ) -> torch.Tensor:
        """Return the loss of a batch of scores, and add its metrics.

        Args:
            chosen, rejected: Scores, shape (B,).
            prior: Prior of each pair, shape (B,).
            center: `center_rewards_coefficient` of `pcrm.functional.pcrm_loss`.
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
        """Return the losses of a batch of pairs and both implicit rewards, shape (B,) each, and add the metrics.

        Args:
            logps: The log probabilities that `pcrm.functional.pcrm_dpo_loss` expects, in the same order.
            prior: Prior of each pair, shape (B,).
            beta, label_smoothing: As in `pcrm.functional.pcrm_dpo_loss`.
        """
        delta, origin = delta_of(self.constraint, prior)
        losses, chosen, rejected = pcrm_dpo_loss(
            *logps, delta, beta=beta, label_smoothing=label_smoothing, reduction="none", origin=origin
        )
        self._add_metrics(chosen - rejected, delta, prior)
        return losses, chosen, rejected

    def _with_means(self, logs: dict[str, float], mode: Mode, means: dict[str, float]) -> dict[str, float]:
        """Add the metrics `pcrm/*` to the logs: the same dict, because transformers returns it to its caller."""
        prefix = "" if mode == "train" else f"{self._constraint_metrics.evaluation}_"
        logs.update({f"{prefix}{name}": mean for name, mean in means.items()})
        return logs

    # The hooks. Each calls that of the next trainer in the bases.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # Not in `_save`: every process calls that, and none does with FSDP's sharded state dicts.
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
