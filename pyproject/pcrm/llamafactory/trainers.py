"""LLaMA-Factory's trainers with the constrained loss."""

# LLaMA-Factory is not installed where the type checker runs.
# pyright: reportMissingImports=false

from __future__ import annotations

import warnings
from typing import Any

import torch
from llamafactory.train.dpo.trainer import CustomDPOTrainer
from llamafactory.train.rm.trainer import PairwiseTrainer

from .. import prefix_sharing
from ..settings import Targets
from ..training.trainer import ConstraintHooks
from .arguments import ConstrainedArguments
from .data import PriorCollator, check_tokenized, column_of, columns_of

Tensor = torch.Tensor


class _Constrained(ConstraintHooks):
    """Mixin that precedes LLaMA-Factory's trainer in the bases of ours.

    The prior comes from the data, and the settings come from the fine-tuning arguments.
    """

    def _constrain(self, arguments: ConstrainedArguments) -> None:
        """Finish the construction after LLaMA-Factory's constructor."""
        self._begin(arguments.pcrm_settings())
        dataset: Any = self.train_dataset
        column = column_of(self.settings, arguments.pcrm_prior_model)
        for tokenized in (dataset, *_each(self.eval_dataset)):
            if tokenized is not None:
                check_tokenized(tokenized, self.settings, column, arguments.pcrm_asked_prior)
        if isinstance(self.settings.constraint, Targets) and dataset is None:
            raise ValueError(
                "pcrm_config must be the pcrm.toml of the training run where do_train is false, because targets are fitted to "
                "training data, got none"
            )
        collator = PriorCollator(self.data_collator, self.settings, column)
        came_with_prior = dataset is not None and "prior" in columns_of(dataset)
        # LLaMA-Factory's DPO trainer disables all warnings.
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            self._fit(lambda: collator.similarities(dataset), "column" if came_with_prior else self.settings.prior)
        self.data_collator = PriorCollator(self.data_collator, self.settings, column)
        if arguments.pcrm_prefix_sharing:
            for model in (self.model, getattr(self, "ref_model", None)):
                inner = getattr(model, "pretrained_model", model)  # below a reward model's value head
                if inner is not None and not prefix_sharing.is_enabled(inner):
                    prefix_sharing.enable(inner)


def _each(datasets: Any) -> list[Any]:
    """The evaluation data sets: one, or several by name."""
    return list(datasets.values()) if isinstance(datasets, dict) else [datasets]


class ConstrainedRewardTrainer(_Constrained, PairwiseTrainer):
    """LLaMA-Factory's `PairwiseTrainer` with the prior-constrained loss and the metrics of `pcrm.trl`."""

    def __init__(self, finetuning_args: ConstrainedArguments, *args: Any, **kwargs: Any) -> None:
        super().__init__(finetuning_args, *args, **kwargs)
        self._constrain(finetuning_args)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        inputs = dict(inputs)  # whatever stays reaches model(**inputs)
        prior = inputs.pop("prior", None)
        # Its own loss is not used; there is no second forward pass.
        _, (_, *scores) = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        # The scores of a single pair are scalars.
        chosen, rejected = (x.reshape(-1).float() for x in scores)
        loss = self._reward_loss(chosen, rejected, prior, self.settings.center_rewards_coefficient)
        return (loss, (loss, *scores)) if return_outputs else loss


class ConstrainedDPOTrainer(_Constrained, CustomDPOTrainer):
    """LLaMA-Factory's `CustomDPOTrainer` with the prior-constrained loss and the metrics of `pcrm.trl`.

    `pref_beta`, `dpo_label_smoothing`, `pref_ftx` and `ld_alpha` are LLaMA-Factory's own.
    """

    _prior: Tensor | None = None  # of the current batch

    def __init__(self, model: Any, ref_model: Any, finetuning_args: ConstrainedArguments, *args: Any, **kwargs: Any):
        super().__init__(model, ref_model, finetuning_args, *args, **kwargs)
        self._constrain(finetuning_args)

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
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logps = (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
        return self._dpo_losses(logps, self._prior, self.beta, self.label_smoothing)
