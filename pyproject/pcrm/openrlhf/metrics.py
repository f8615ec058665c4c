"""The metrics `pcrm/*` in the log of OpenRLHF's trainers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from ..losses import delta_of
from ..training.binding import BindingCheck
from ..training.metrics import ConstraintMetrics, Mode
from .fitted import PREFIX
from .losses import PCRMDPOLoss, PCRMPairWiseLoss

logger = logging.getLogger(__name__)

# Stands for OpenRLHF's trainers, which are not installed where the type checker runs.
_Trainer: Any = Any if TYPE_CHECKING else object


class LogsConstraint(_Trainer):
    """Mixin that precedes OpenRLHF's trainer in the bases of ours.

    It logs the metrics of `pcrm.trl` as `train/pcrm/...` and `eval/pcrm/...` to TensorBoard and W&B. Each is a mean over
    the pairs of all processes since the last log.
    """

    def _watch(self, loss_fn: PCRMPairWiseLoss | PCRMDPOLoss) -> None:
        """Observe the margins in the loss, which the trainer calls in training and in evaluation."""
        self._constraint = loss_fn.loss.constraint
        self._constraint_metrics = ConstraintMetrics(log_prior=not self._constraint.is_random)
        self._binding_check = BindingCheck(self._constraint, PREFIX)
        self._mode: Mode = "train"
        self._steps = 0  # total number of training steps, set when training starts
        loss_fn.observer = self._add_pairs

    def _add_pairs(self, margin: torch.Tensor, prior: torch.Tensor | None) -> None:
        delta, _ = delta_of(self._constraint, prior)
        self._constraint_metrics.add(self._mode, margin, delta, prior, gather=self.strategy.all_gather)

    def _take(self, mode: Mode, step: int) -> dict[str, float]:
        message = self._binding_check.look(self._constraint_metrics.sums[mode], mode, step / max(self._steps, 1))
        if message is not None and self.strategy.is_rank_0():
            logger.warning(message)
        return self._constraint_metrics.take_means(mode)

    # Called by OpenRLHF.

    def fit(self, args: Any, consumed_samples: int = 0, num_update_steps_per_epoch: int | None = None) -> None:
        self._steps = self.epochs * (num_update_steps_per_epoch or len(self.train_dataloader))
        super().fit(args, consumed_samples, num_update_steps_per_epoch)

    def save_logs_and_checkpoints(
        self, args: Any, global_step: int, step_bar: Any, logs_dict: dict[str, Any] | None = None, *rest: Any
    ) -> None:
        logs = dict(logs_dict or {})
        # `logging_steps` before 0.10.1.
        if global_step % getattr(args, "logger", args).logging_steps == 0:
            logs |= self._take("train", global_step)
        super().save_logs_and_checkpoints(args, global_step, step_bar, logs, *rest)

    def evaluate(self, eval_dataloader: Any, steps: int = 0) -> None:
        self._mode = "eval"
        try:
            super().evaluate(eval_dataloader, steps)
        finally:
            self._mode = "train"
        logs = {f"eval/{name}": value for name, value in self._take("eval", steps).items()}
        # Both exist only in the first process.
        if self._wandb is not None:
            self._wandb.log(logs | {"eval/global_step": steps})
        elif self._tensorboard is not None:
            for name, value in logs.items():
                self._tensorboard.add_scalar(name, value, steps)
