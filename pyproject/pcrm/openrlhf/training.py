"""What of OpenRLHF is swapped: its data set and its trainers, which this module needs."""

# OpenRLHF is in an environment of its own, not in that of the type checker.
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
    """OpenRLHF's `RewardDataset` whose batches carry the prior of each pair.

    In a batch's last place, where OpenRLHF has the margins, are the priors; for DPO, where it
    has the lengths of the prompts, are pairs of length and prior, which `PCRMDPOTrainer` reads.

    Args:
        dataset: A `datasets.Dataset` of preferences.
        prior: "random" for the numbers of a random constraint; anything else is the column
            `prior` where the data set has one. Without one, "length_ratio" is that of the token
            ids that train, with OpenRLHF's end of text and truncation, and other priors are
            refused: `pcrm prior` computes them.
        seed: Of "random".
        computed: Whether the length ratio was asked for, so that a column `prior` is refused.
        args, kwargs: As in `RewardDataset`.

    Raises:
        TypeError, ValueError: the column is missing, or a prior is no number in [0, 1], named by
            its index.
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
                f"the data set has a column 'prior', and the prior {prior!r} was asked for: set --pcrm.prior column to use "
                "the column, or remove it to compute that prior"
            )
        if not self.column and prior not in ("length_ratio", "random"):
            raise ValueError(
                f"the data set has no column 'prior', which the prior {prior!r} needs: it has {', '.join(columns)}"
            )
        if self.column:
            prior_tensor(dataset["prior"][:])
        super().__init__(dataset, *args, **kwargs)

    def process_data(self, data: dict[str, Any]) -> dict[str, Any]:
        row = super().process_data(data)
        # RewardDataset keeps four columns of what this returns; the prior travels in the last.
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
        # The ids of each item have shape (1, L), are truncated and not padded yet. For DPO they
        # begin with the prompt, which does not train; its length is the item's last number.
        chosen, rejected = (
            [item[k][0, item[4] if self.is_dpo else 0 :].tolist() for item in item_list] for k in (0, 2)
        )
        if self.prior == "random":
            return priors.random_uniform(chosen, rejected, self.seed).tolist()
        return priors.length_ratio(chosen, rejected).tolist()

    def similarities(self) -> list[float]:
        """The priors to fit a constraint to: the column, or those of 10,000 evenly spaced pairs at most."""
        if self.column:
            return [extra["prior"] for extra in self.extras]
        return [s for i in sampled(len(self)) for s in self._computed([self[i]])]


def _share_prefixes(strategy: Any, packing_samples: bool, *models: Any) -> None:
    """Let the rows of each batch that begin alike go through these models once for what they begin with."""
    if packing_samples:
        raise ValueError(
            "prefix_sharing must be False with --ds.packing_samples, which ring attention needs, got True: packed samples "
            "are told apart by FlashAttention, which takes no mask"
        )
    for model in models:
        enable(model)
    strategy.print("Prefix sharing is on")


class PCRMRewardModelTrainer(LogsConstraint, RewardModelTrainer):
    """OpenRLHF's `RewardModelTrainer` with the prior-constrained loss and the metrics of `pcrm.trl`.

    The data sets of its loaders are `PCRMRewardDataset`s, unless the constraint is fixed.

    Args:
        loss_fn: The loss, or the settings of one. Targets among them are fitted to the training data.
        prefix_sharing: Compute the tokens that rows of a batch begin with in common, such as a prompt,
            once: `pcrm.prefix_sharing`. The results are the same to rounding.
        args, kwargs: As in `RewardModelTrainer`.

    Raises:
        ValueError: OpenRLHF's flags ask for another loss or for its own margin; prefixes cannot be
            shared with its flags or by its model.
    """

    def __init__(
        self, *args: Any, loss_fn: PCRMPairWiseLoss | Config, prefix_sharing: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.loss_fn, PairWiseLoss):
            raise ValueError("the loss type must be 'sigmoid': of anything else OpenRLHF makes LogExp without a word")
        if self.margin_loss:
            raise ValueError(
                "--model.margin_loss_enable moves the margin that the constraint bounds: leave it away, "
                "the prior needs no flag here"
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
        self.margin_loss = not loss_fn.loss.constraint.is_fixed  # hands the last of a batch to the loss
        self._watch(loss_fn)
        self.strategy.print(loss_fn)


class PCRMDPOTrainer(LogsConstraint, DPOTrainer):
    """OpenRLHF's `DPOTrainer` with the prior-constrained loss and the metrics of `pcrm.trl`.

    Its beta and label smoothing are OpenRLHF's own. The data sets of its loaders are
    `PCRMRewardDataset`s, unless the constraint is fixed.

    Args:
        constraint: What turns a prior into a ceiling, or settings. Targets among them are fitted to the training data.
        prefix_sharing: As in `PCRMRewardModelTrainer`, for the policy and the reference.
        args, kwargs: As in `DPOTrainer`.

    Raises:
        ValueError: OpenRLHF's flags ask for IPO; prefixes cannot be shared with its flags or by its
            models; later, the batches carry no prior.
    """

    def __init__(
        self, *args: Any, constraint: Constraint | Config, prefix_sharing: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(constraint, Config):
            constraint = fit(constraint, self.train_dataloader.dataset, self.strategy)
        stock: Any = self.loss_fn  # knows what the flags said, whatever they are called in this version
        warn_of_smoothing(stock.label_smoothing, constraint)
        self.loss_fn = PCRMDPOLoss(constraint, stock.beta, stock.label_smoothing, stock.ipo)
        if prefix_sharing:
            _share_prefixes(self.strategy, self.packing_samples, self.model.model, self.ref_model.model)
        self._watch(self.loss_fn)
        self.strategy.print(self.loss_fn)

    def concatenated_forward(
        self, model: Any, chosen_ids: Any, c_mask: Any, reject_ids: Any, r_mask: Any, prompt_id_lens: Any
    ) -> Any:
        # Called for the policy and for the reference; then comes the loss, which takes the prior.
        if not self.loss_fn.loss.constraint.is_fixed:
            if not all(isinstance(extra, Sequence) for extra in prompt_id_lens):
                raise ValueError("the batches carry no prior: make them with pcrm.openrlhf.PCRMRewardDataset")
            lengths, prior = zip(*prompt_id_lens, strict=True)
            prompt_id_lens = list(lengths)
            self.loss_fn.prior = torch.tensor(prior, device=chosen_ids.device)
        return super().concatenated_forward(model, chosen_ids, c_mask, reject_ids, r_mask, prompt_id_lens)
