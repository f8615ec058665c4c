"""ms-swift's trainers with the constrained loss."""

# ms-swift is not installed where the type checker runs.
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any, ClassVar

import torch
from swift.rlhf_trainers import DPOTrainer, RewardTrainer

from ..settings import Task
from ..training.prior_column import PriorColumn
from ..training.trainer import ConstraintHooks
from .arguments import ENCODER, LOSS, from_environment, losses_of, smoothed_by_others
from .data import PriorCollator, add_prior, has_prior, similarities

Tensor = torch.Tensor


class _Constrained(ConstraintHooks):
    """Mixin that precedes ms-swift's trainer in the bases of ours."""

    setting_prefix = ""  # settings are named as in pcrm.toml

    task: ClassVar[Task]
    args: Any  # of a class of ms-swift
    data_collator: Any

    def __init__(self, *args: Any, template: Any, train_dataset: Any, eval_dataset: Any = None, **kwargs: Any) -> None:
        arguments = from_environment(self.task)
        self._begin(arguments.pcrm_settings())
        # Keeps the columns that ms-swift does not know, such as `prior`.
        template.remove_unused_columns = False
        computed = self.settings.prior in ("fixed", "random")
        name = self.settings.prior if computed or not has_prior(train_dataset) else "column"
        column = PriorColumn(self.settings, arguments.pcrm_prior_model, asked=None, prefix="", encoder=ENCODER)
        add_prior(train_dataset, "train", column)
        if eval_dataset is not None:
            add_prior(eval_dataset, "eval", column)
        construct: Any = super().__init__
        construct(*args, template=template, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self._fit(lambda: similarities(self.data_collator, train_dataset), name)

    def _get_data_collator(self, args: Any, template: Any) -> PriorCollator:
        theirs: Any = super()
        return PriorCollator(theirs._get_data_collator(args, template), self.settings)


class ConstrainedRewardTrainer(_Constrained, RewardTrainer):
    """ms-swift's `RewardTrainer` with the prior-constrained loss and the metrics of `pcrm.trl`."""

    task = "reward"

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)  # whatever stays reaches model(**inputs)
        prior = inputs.pop("prior", None)
        scores: list[Tensor] = []

        def scored(**inputs: Any) -> Any:
            outputs = model(**inputs)
            scores.append(outputs.logits)
            return outputs

        # Called for its metrics. Its own loss is not used; there is no second forward pass.
        compute: Any = super().compute_loss
        _, outputs = compute(scored, inputs, return_outputs=True)
        chosen, rejected = scores[0].float().squeeze(-1).chunk(2)
        loss = self._reward_loss(chosen, rejected, prior, self.args.center_rewards_coefficient or 0.0)
        if num_items_in_batch is not None and self.model_accepts_loss_kwargs:
            loss = loss / self.args.gradient_accumulation_steps  # transformers then does not
        return (loss, outputs) if return_outputs else loss


class ConstrainedDPOTrainer(_Constrained, DPOTrainer):
    """ms-swift's `DPOTrainer` with the loss type `pcrm` and the metrics of `pcrm.trl`.

    `beta`, `label_smoothing`, `rpo_alpha`, `ld_alpha` and the other loss types with their weights are ms-swift's own.
    """

    task = "dpo"
    _prior: Tensor | None = None  # of the current batch

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # exo_pair changes the attribute `label_smoothing` during training.
        self._smoothing = 0.0 if smoothed_by_others(losses_of(self.args)) else self.args.label_smoothing

    def get_batch_loss_metrics(self, model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        batch = dict(batch)
        self._prior = batch.pop("prior", None)
        return super().get_batch_loss_metrics(model, batch, *args, **kwargs)

    def dpo_loss(
        self,
        policy_chosen: Tensor,
        policy_rejected: Tensor,
        reference_chosen: Tensor,
        reference_rejected: Tensor,
        loss_type: str = "sigmoid",
        *args: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logps = (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
        if loss_type != LOSS:
            return super().dpo_loss(*logps, loss_type, *args)
        return self._dpo_losses(logps, self._prior, self.beta, self._smoothing)
