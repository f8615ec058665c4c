"""The replacements for OpenRLHF's data set and trainers. Requires OpenRLHF."""

# OpenRLHF is not installed where the type checker runs.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from openrlhf.datasets import RewardDataset
from openrlhf.models import PairWiseLoss
from openrlhf.trainer.dpo_trainer import DPOTrainer
from openrlhf.trainer.rm_trainer import RewardModelTrainer

from .. import priors
from ..losses import warn_of_smoothing
from ..prefix_sharing import enable
from ..priors import prior_tensor
from ..settings import Config, Constraint
from ..training.fit import sampled
from .fitted import fit
from .losses import PCRMDPOLoss, PCRMPairWiseLoss
from .metrics import LogsConstraint


class PCRMRewardDataset(RewardDataset):
    """OpenRLHF's `RewardDataset` with the prior of each pair in its batches.

    The last element of a batch contains the priors, where OpenRLHF has the margins. For DPO, where OpenRLHF has the lengths
    of the prompts, it contains pairs of length and prior, which `PCRMDPOTrainer` reads.

    Args:
        dataset: A `datasets.Dataset` of preferences.
        prior: "random" draws the numbers of a random constraint. Any other prior is read from the column `prior` if the
            data set has one. Without the column, "length_ratio" is computed from the token ids used in training, with
            OpenRLHF's end-of-text token and truncation; other priors are an error, because `pcrm prior` computes them.
        seed: Seed of "random".
        computed: Whether the length ratio was explicitly requested, so that a column `prior` is an error.
        args, kwargs: As in `RewardDataset`.

    Raises:
        TypeError, ValueError: The column is missing, or a prior is not a number in [0, 1]; the message names the index.
    """

    def __init__(
        self,
        dataset: Any,
        *args: Any,
        prior: str = "length_ratio",
        seed: int = 0,
        computed: bool = False,
        **kwargs: Any,
    ) -> None:
        columns = dataset.column_names
        self.prior, self.seed = prior, seed
        self.column = prior != "random" and "prior" in columns
        if self.column and computed:
            raise ValueError(
                f"the data set must not have a column 'prior' with the prior {prior!r}, which is computed, got one: set "
                "--pcrm.prior column to use the column, or remove it"
            )
        if not self.column and prior not in ("length_ratio", "random"):
            raise ValueError(
                f"the data set must have a column 'prior' with the prior {prior!r}, got {', '.join(columns)}: add it with "
                "`pcrm prior`"
            )
        if self.column:
            prior_tensor(dataset["prior"][:])
        super().__init__(dataset, *args, **kwargs)

    def process_data(self, data: dict[str, Any]) -> dict[str, Any]:
        row = super().process_data(data)
        # RewardDataset keeps four columns of this result. The prior travels in the last one.
        return row | {"extra": {"extra": row["extra"], "prior": float(data["prior"])}} if self.column else row

    def collate_fn(self, item_list: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        *tensors, extras = super().collate_fn(item_list)
        if self.column:
            prior = [extra["prior"] for extra in extras]
            extras = [extra["extra"] for extra in extras]
        else:
            prior = self._computed(item_list)
        return (*tensors, list(zip(extras, prior, strict=True)) if self.is_dpo else prior)

    def _computed(self, item_list: Sequence[tuple[Any, ...]]) -> list[float]:
        # The ids of each item have shape (1, L) and are truncated but not padded yet. For DPO they start with the prompt,
        # which is not trained on; its length is the item's last number.
        chosen, rejected = (
            [item[k][0, item[4] if self.is_dpo else 0 :].tolist() for item in item_list] for k in (0, 2)
        )
        if self.prior == "random":
            return priors.random_uniform(chosen, rejected, self.seed).tolist()
        return priors.length_ratio(chosen, rejected).tolist()

    def similarities(self) -> list[float]:
        """Return the priors to fit a constraint to: the column, or the priors of at most 10,000 evenly spaced pairs."""
        if self.column:
            return [extra["prior"] for extra in self.extras]
        return [s for i in sampled(len(self)) for s in self._computed([self[i]])]


def _share_prefixes(strategy: Any, packing_samples: bool, *models: Any) -> None:
    """Enable prefix sharing on these models."""
    if packing_samples:
        raise ValueError(
            "prefix_sharing must be False with --ds.packing_samples (which ring attention requires), got True: packed samples "
            "need FlashAttention, which accepts no mask"
        )
    for model in models:
        enable(model)
    strategy.print("Prefix sharing is on")


class PCRMRewardModelTrainer(LogsConstraint, RewardModelTrainer):
    """OpenRLHF's `RewardModelTrainer` with the prior-constrained loss and the metrics of `pcrm.trl`.

    The data sets of its loaders must be `PCRMRewardDataset`s, unless the constraint is fixed.

    Args:
        loss_fn: The loss, or its settings. Targets are fitted to the training data.
        prefix_sharing: Compute common beginnings of a batch's rows, such as a prompt, only once: `pcrm.prefix_sharing`.
            The results are the same up to rounding.
        args, kwargs: As in `RewardModelTrainer`.

    Raises:
        ValueError: OpenRLHF's flags ask for another loss or for its own margin, or its flags or its model do not work
            with prefix sharing.
    """

    def __init__(
        self, *args: Any, loss_fn: PCRMPairWiseLoss | Config, prefix_sharing: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.loss_fn, PairWiseLoss):
            raise ValueError(
                f"--model.loss_type must be 'sigmoid', got {type(self.loss_fn).__name__}, which OpenRLHF uses for any other value"
            )
        if self.margin_loss:
            raise ValueError(
                "--model.margin_loss_enable must not be set, because it shifts the margin that the constraint bounds: "
                "remove it; the prior needs no flag here"
            )
        if prefix_sharing:
            _share_prefixes(self.strategy, self.packing_samples, self.model)
        if isinstance(loss_fn, Config):
            loss_fn = PCRMPairWiseLoss(
                fit(loss_fn, self.train_dataloader.dataset, self.strategy),
                label_smoothing=loss_fn.label_smoothing,
                center_rewards_coefficient=loss_fn.center_rewards_coefficient,
            )
        self.loss_fn = loss_fn
        self.margin_loss = not loss_fn.loss.constraint.is_fixed  # passes the last element of a batch to the loss
        self._watch(loss_fn)
        self.strategy.print(loss_fn)


class PCRMDPOTrainer(LogsConstraint, DPOTrainer):
    """OpenRLHF's `DPOTrainer` with the prior-constrained loss and the metrics of `pcrm.trl`.

    beta and label_smoothing are OpenRLHF's own. The data sets of its loaders must be `PCRMRewardDataset`s, unless the
    constraint is fixed.

    Args:
        constraint: The constraint or its settings. Targets are fitted to the training data.
        prefix_sharing: As in `PCRMRewardModelTrainer`, for the policy and the reference.
        args, kwargs: As in `DPOTrainer`.

    Raises:
        ValueError: OpenRLHF's flags ask for IPO, or its flags or models do not work with prefix sharing; later, a batch
            contains no prior.
    """

    def __init__(
        self, *args: Any, constraint: Constraint | Config, prefix_sharing: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(constraint, Config):
            constraint = fit(constraint, self.train_dataloader.dataset, self.strategy)
        stock: Any = self.loss_fn  # has the values of the flags, whose names depend on the version
        warn_of_smoothing(stock.label_smoothing, constraint)
        self.loss_fn = PCRMDPOLoss(constraint, stock.beta, stock.label_smoothing, stock.ipo)
        if prefix_sharing:
            _share_prefixes(self.strategy, self.packing_samples, self.model.model, self.ref_model.model)
        self._watch(self.loss_fn)
        self.strategy.print(self.loss_fn)

    def concatenated_forward(
        self, model: Any, chosen_ids: Any, c_mask: Any, reject_ids: Any, r_mask: Any, prompt_id_lens: Any
    ) -> Any:
        # Called for the policy and for the reference, before the loss, which uses the prior.
        if not self.loss_fn.loss.constraint.is_fixed:
            if not all(isinstance(extra, Sequence) for extra in prompt_id_lens):
                raise ValueError(
                    "batches must contain priors, got none: create them with pcrm.openrlhf.PCRMRewardDataset"
                )
            lengths, prior = zip(*prompt_id_lens, strict=True)
            prompt_id_lens = list(lengths)
            self.loss_fn.prior = torch.tensor(prior, device=chosen_ids.device)
        return super().concatenated_forward(model, chosen_ids, c_mask, reject_ids, r_mask, prompt_id_lens)
