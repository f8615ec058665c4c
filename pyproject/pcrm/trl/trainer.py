"""The common base of both trainers: everything the constraint needs from TRL and its data.

Each hook is a few lines here. The work is done by `ConstraintHooks`, `PriorColumn` and the rest of `pcrm.training`, by
`PriorCollator` (collator.py), `Rankings` (rankings.py) and the functions of prioritized.py. The loss is swapped in the
trainers themselves: `compute_loss` in reward.py, `_compute_loss` in dpo.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from transformers import TrainingArguments

from .. import prefix_sharing
from .._engine.dtypes import Reduction
from ..methods.prioritized import PrioritizedSampler
from ..training.metrics import Mode
from ..training.prior_column import PriorColumn
from ..training.trainer import ConstraintHooks
from . import histogram
from .collator import INDEX, WEIGHT, PriorCollator, similarities
from .configs import PCRMArguments
from .data_check import check_columns, check_tokenizer, joint_of, warn_of_faults
from .prioritized import RoundsByEpoch, load_sampler, sampler_of, save_sampler, weighted_mean, with_index
from .rankings import Rankings

logger = logging.getLogger(__name__)

# Suggest prefix sharing if at least this fraction of the tokens in this many batches is repeated.
_BATCHES_TO_TELL_OF, _SHARE_TO_TELL_OF = 4, 0.2

PAPER = {
    "title": "Prior Constraints-based Reward Model Training for Aligning Large Language Models",
    "id": "2404.00978",
    "citation": """\
@article{zhou2024prior,
    title        = {{Prior Constraints-based Reward Model Training for Aligning Large Language Models}},
    author       = {Hang Zhou and Chenglong Wang and Yimin Hu and Tong Xiao and Chunliang Zhang and Jingbo Zhu},
    year         = 2024,
    eprint       = {arXiv:2404.00978}
}""",
}


class Added(NamedTuple):
    """What the collator added to TRL's batch.

    Attributes:
        prior: Prior of each pair, shape (B,).
        drawn: Indices of the rows that a sampler drew, shape (B,).
        weight: Weight of each pair, shape (B,).
    """

    prior: torch.Tensor | None
    drawn: torch.Tensor | None
    weight: torch.Tensor | None

    @property
    def reduction(self) -> Reduction:
        """The reduction of the loss before `ConstrainedTrainer._mean`."""
        return "mean" if self.drawn is None and self.weight is None else "none"


class Prepared(NamedTuple):
    """Row counts of a data set; None for iterable data sets.

    Attributes:
        rows: Rows as given.
        pairs: Pairs before TRL prepared them. Rankings are already pairs.
        kept: Pairs after TRL prepared them; TRL drops pairs that are too long.
        ranked: Whether its rows are rankings.
        joint: Where the first row's prompt and response meet, if both are plain text.
    """

    rows: int | None
    pairs: int | None
    kept: int | None
    ranked: bool
    joint: str | None = None


class ConstrainedTrainer(ConstraintHooks):
    """Mixin that precedes TRL's trainer in the bases of ours.

    Attributes:
        constrained: Whether the loss is ours. Trainers that `enable` puts behind TRL's names may use TRL's loss. The
            other attributes exist only if it is ours.
        sampler: The sampler of the pairs, if `pcrm_priority_alpha` asks for one.
        prepared: Row counts of each data set, by TRL's name for it.
    """

    config_class: ClassVar[type[TrainingArguments]]
    sampler: PrioritizedSampler | None = None
    prepared: dict[str, Prepared]

    _prior_column: PriorColumn
    _rankings: Rankings
    # Set by TRL, which logs the mean of each list of metrics.
    _name: str
    _metrics: dict[str, dict[str, list[float]]]

    def _read(self, args: Any, model: Any) -> Any:
        """Return the arguments, creating them if there are none, and prepare for TRL's constructor."""
        if args is None:
            name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
            args = self.config_class(f"{name.split('/')[-1]}-{self._name}")
        if not isinstance(args, self.config_class):
            raise TypeError(f"args must be a {self.config_class.__name__}, got a {type(args).__name__}")
        self._constrain(args)
        return args

    def _constrain(self, args: Any) -> None:
        # Fractions of repeated tokens in the first batches; None once reported, or if not to be reported.
        self._saved_shares: list[float] | None = []
        self.constrained = args.pcrm_enabled
        if not self.constrained:
            return
        self._begin(args.pcrm_settings(), keep_margins=args.pcrm_log_margins)
        self._prior_column = PriorColumn(self.settings, args.pcrm_prior_model, args.pcrm_asked_prior)
        self._rankings = Rankings(args)
        self.prepared = {}

    def _finish(self, args: Any) -> None:
        """Finish the construction after TRL's constructor."""
        came_with_prior = self._prior_column.trained_has_column
        self._fit(
            lambda: similarities(self.settings, self.train_dataset, self.data_collator),
            (args._pcrm_recorded or "column") if came_with_prior else self.settings.prior,
        )
        self.data_collator = PriorCollator(self.data_collator, self.settings)
        self._share_prefixes()
        for sampler in (self.sampler, self._rankings.sampler):
            if sampler is not None:
                self.add_callback(RoundsByEpoch(sampler))
        if self.sampler is None and args.pcrm_priority_alpha:
            raise ValueError(f"pcrm_priority_alpha must be 0 for data sets with images, got {args.pcrm_priority_alpha}")

    def _share_prefixes(self) -> None:
        """Enable prefix sharing on the models if the arguments ask for it and it is not enabled yet."""
        if not getattr(self.args, "pcrm_prefix_sharing", False):
            return
        self._saved_shares = None
        for model in (self.model, getattr(self, "ref_model", None)):
            if model is not None and not prefix_sharing.is_enabled(model):
                prefix_sharing.enable(model)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        following: Any = super()
        prepare = following._prepare_dataset
        if not self.constrained:
            return prepare(dataset, processing_class, args, dataset_name)
        columns = dataset.column_names or list(next(iter(dataset)))
        check_columns(columns, f"the {dataset_name} data set")
        warn_of_faults(dataset, dataset_name)
        rows = _count(dataset)
        dataset, ranked = self._rankings.as_pairs(dataset, dataset_name)
        pairs, joint = _count(dataset), joint_of(dataset)
        check_tokenizer(dataset, dataset_name, processing_class, args)
        dataset = self._prior_column.add(dataset, dataset_name)
        dataset = prepare(dataset, processing_class, args, dataset_name)
        self.prepared[dataset_name] = Prepared(rows, pairs, _count(dataset), ranked, joint)
        return self._make_drawable(self._rankings.finish(dataset, ranked), args)

    def _make_drawable(self, dataset: Any, args: PCRMArguments) -> Any:
        """Return the prepared data set; create the sampler if it is the training data, which come first."""
        if not args.pcrm_priority_alpha or self.sampler is not None:
            return dataset
        self.sampler = sampler_of(dataset, args)
        return with_index(dataset)

    def _tell_of_repeated_tokens(self, inputs: dict[str, Any]) -> None:
        """Log once, after the first batches, how much `pcrm_prefix_sharing` would save."""
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        if self._saved_shares is None or ids is None or mask is None or self._current_mode != "train":
            return
        self._saved_shares.append(prefix_sharing.saved_share(ids, mask))
        if len(self._saved_shares) == _BATCHES_TO_TELL_OF:
            saved, self._saved_shares = sum(self._saved_shares) / _BATCHES_TO_TELL_OF, None
            if saved >= _SHARE_TO_TELL_OF and self.is_world_process_zero():
                # A warning, because nobody would see an info message.
                logger.warning(
                    f"{saved:.0%} of the tokens in the first {_BATCHES_TO_TELL_OF} batches repeat the start of another row, such as "
                    "a prompt. Set pcrm_prefix_sharing=True to compute them only once"
                )

    def _unpack(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], Added]:
        """Split a batch into TRL's own batch and what the collator added."""
        inputs = dict(inputs)
        self._tell_of_repeated_tokens(inputs)
        prior, index, weight = (inputs.pop(name, None) for name in ("prior", INDEX, WEIGHT))
        # Data prepared for a sampler may be evaluated, or used by another trainer.
        drawn = index if self.sampler is not None and self._current_mode == "train" else None
        return inputs, Added(prior, drawn, weight)

    def _mean(self, losses: torch.Tensor, added: Added, slopes: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the weighted mean of a batch's losses.

        Args:
            losses: Loss of each pair, shape (B,), or their mean, depending on `added.reduction`.
            slopes: Returns dL/dm of each pair, shape (B,).
        """
        if added.drawn is not None:
            assert self.sampler is not None
            return weighted_mean(self.sampler, losses, added.drawn, slopes(), self.accelerator.gather)
        return losses if added.weight is None else (added.weight.to(losses) * losses).mean()

    def _with_means(self, logs: dict[str, float], mode: Mode, means: dict[str, float]) -> dict[str, float]:
        # TRL logs these, prefixed with the name of the evaluation.
        self._metrics[mode].update({name: [mean] for name, mean in means.items()})
        return logs

    # The hooks. Each calls TRL's own.

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if self.constrained and "prior" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "prior", INDEX, WEIGHT]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        ours = self.sampler or (self._rankings.sampler if self.constrained else None)
        return super()._get_train_sampler(train_dataset) if ours is None else ours

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.sampler is not None and self.args.should_save:
            save_sampler(self.sampler, output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.sampler is not None and checkpoint is not None:
            load_sampler(self.sampler, checkpoint)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if self.constrained:
            # The last log of a training run may follow an evaluation.
            mode = "train" if "train_runtime" in logs else self._current_mode
            histogram.write(self._constraint_metrics, mode, self.callback_handler.callbacks, self.state.global_step)


def _count(dataset: Any) -> int | None:
    """The number of rows of a data set; None if it is iterable."""
    return getattr(dataset, "num_rows", None)
