"""What the two trainers share: the prior of each pair on its way to the loss, and the metrics."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from .. import priors
from .._version import __version__
from ..data.preferences import RowError
from ..methods.prioritized import PrioritizedSampler
from ..priors import prior_tensor
from ..priors.encoders import content_hash
from ..settings import Config
from .configs import PCRMArguments

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


INDEX = "pcrm_index"  # the column with a row's place in the training data, where a sampler asks for it
_SAMPLER_STATE = "pcrm_sampler.safetensors"


class PriorCollator:
    """Another collator's batch plus `prior`, one number a pair, as the settings say."""

    def __init__(self, collator: Any, settings: Config) -> None:
        self.collator = collator
        self.settings = settings

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        kind = self.settings.prior
        if kind == "fixed":
            batch.pop("prior", None)
        elif kind == "random":
            batch["prior"] = priors.random_uniform(*_trained_ids(batch, kind), seed=self.settings.constraint.seed)
        elif any("prior" in e for e in examples):
            batch["prior"] = prior_tensor(_priors(examples))
        elif "prior" in batch:
            raise ValueError(
                f"the data collator gives a 'prior' of its own, which pcrm_prior={kind!r} would replace: give the data "
                "set a column 'prior'"
            )
        elif kind == "length_ratio":
            batch["prior"] = priors.length_ratio(*_trained_ids(batch, kind))
        else:
            raise ValueError(f"the data set has no column 'prior', which pcrm_prior={kind!r} needs here")
        if INDEX in examples[0]:
            batch[INDEX] = torch.tensor([e[INDEX] for e in examples])
        return batch


def _priors(examples: list[dict[str, Any]]) -> list[Any]:
    for i, example in enumerate(examples):  # rows of an iterable data set may have keys of their own
        if "prior" not in example:
            raise ValueError(f"row {i} of a batch has no 'prior', others of it have: give one to each row or to none")
    return [e["prior"] for e in examples]


def _trained_ids(batch: dict[str, Any], kind: str) -> tuple[list[list[int]], list[list[int]]]:
    """The token ids of both responses that the loss sees: truncated, and without padding."""
    # DPO's batches mark the completions. A reward model scores prompt and response as one.
    mask = batch.get("completion_mask", batch.get("attention_mask"))
    if mask is None or "input_ids" not in batch:
        raise ValueError(
            f"pcrm_prior={kind!r} needs 'input_ids' and 'attention_mask' in each batch, and the data collator makes "
            f"{', '.join(batch)}: give the data set a column 'prior', or set pcrm_prior='fixed'"
        )
    rows = [ids[real].tolist() for ids, real in zip(batch["input_ids"], mask.bool(), strict=True)]
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def _annotate(batch: Any, indices: list[int], *, name: str, made_by: Any, **how: Any) -> Any:
    """`priors.annotate`, whose errors name the data set and its row.

    `datasets` keeps its result under the arguments: `made_by` tells an encoder from another one
    that was in the same folder before.
    """
    try:
        return priors.annotate(batch, **how)
    except RowError as error:
        if error.row is None:
            raise
        raise ValueError(
            f"the {name} data set, row {indices[error.row]}: {error.message}. "
            "`pcrm prior --on-error skip` leaves such rows out and adds the prior"
        ) from None


class _Rounds(TrainerCallback):
    """An epoch is a round of the sampler: loaders do not tell it to a sampler that they share out."""

    def __init__(self, sampler: PrioritizedSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sampler.set_round(int(state.epoch or 0))  # in the middle of one where a run is resumed


class Constrained:
    """A mixin before a trainer of TRL."""

    config_class: type[PCRMArguments]
    _name: str
    settings: Config
    sampler: PrioritizedSampler | None = None
    constrained: bool  # whether the loss is ours: not in every trainer that `enable` put behind TRL's name
    # Sum and count of each metric since the last log, of training and of evaluation.
    _sums: dict[str, dict[str, tuple[float, int]]]
    # The margins since the last log, where the arguments ask for their histogram.
    _margins: dict[str, list[torch.Tensor]] | None = None
    _evaluated = "eval"  # which evaluation set runs: eval_NAME where there are several

    def _read(self, args: Any, model: Any) -> Any:
        """The arguments, made where there are none, and what they say about the constraint."""
        if args is None:
            name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
            args = self.config_class(f"{name.split('/')[-1]}-{self._name}")  # pyright: ignore[reportArgumentType]
        if not isinstance(args, self.config_class):
            raise TypeError(f"args is a {type(args).__name__}, must be a {self.config_class.__name__}")
        self.constrained = args.pcrm_enabled
        if self.constrained:
            self.settings = args.pcrm_settings()
            self.constraint = self.settings.constraint
            self._sums = {"train": {}, "eval": {}}
            if args.pcrm_log_margins:
                self._margins = {"train": [], "eval": []}
        return args

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if self.constrained:
            dataset = self._with_prior(dataset, args, dataset_name)
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)  # pyright: ignore[reportAttributeAccessIssue]
        # The training data come first.
        if self.constrained and args.pcrm_priority_alpha and self.sampler is None:
            if not hasattr(dataset, "num_rows"):
                raise ValueError("pcrm_priority_alpha needs a data set whose rows can be drawn, not an iterable one")
            self.sampler = PrioritizedSampler(
                dataset.num_rows,
                alpha=args.pcrm_priority_alpha,
                epsilon=args.pcrm_priority_epsilon,
                seed=args.seed if args.data_seed is None else args.data_seed,
                num_samples=args.pcrm_priority_samples,
            )
            if INDEX in dataset.column_names:  # of another trainer, which may have had other rows
                dataset = dataset.remove_columns(INDEX)
            dataset = dataset.add_column(INDEX, range(dataset.num_rows))
        return dataset

    def _start(self) -> None:
        """What is left to do of the construction, after TRL's."""
        trainer: Any = self
        trainer.data_collator = PriorCollator(trainer.data_collator, self.settings)
        if self.sampler is not None:
            trainer.add_callback(_Rounds(self.sampler))
        elif trainer.args.pcrm_priority_alpha:
            raise ValueError("pcrm_priority_alpha is not there for data sets with images")

    def _get_train_sampler(self, *arguments: Any) -> Any:
        if self.sampler is not None:
            return self.sampler
        return super()._get_train_sampler(*arguments)  # pyright: ignore[reportAttributeAccessIssue]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # pyright: ignore[reportAttributeAccessIssue]
        trainer: Any = self
        if self.sampler is not None and trainer.args.should_save:
            state = self.sampler.state_dict()
            state["round"] = torch.tensor(state["round"])
            save_file(state, Path(output_dir) / _SAMPLER_STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # pyright: ignore[reportAttributeAccessIssue]
        if self.sampler is not None and checkpoint is not None:
            file = Path(checkpoint) / _SAMPLER_STATE
            if not file.is_file():
                raise ValueError(
                    f"{checkpoint} must hold {_SAMPLER_STATE} to be resumed with pcrm_priority_alpha, got a checkpoint "
                    "that was saved without it: resume with pcrm_priority_alpha=0, or start a new run from its weights"
                )
            state: dict[str, Any] = load_file(file)
            try:
                self.sampler.load_state_dict(state | {"round": int(state["round"])})
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None

    def _drawn(self, inputs: dict[str, Any]) -> torch.Tensor | None:
        """Which pairs a batch of the sampler's has, taken out of it."""
        index = inputs.pop(INDEX, None)
        trainer: Any = self
        # Data that were prepared to be drawn from may be evaluated, or trained on by another trainer.
        return index if self.sampler is not None and trainer.model.training else None

    def _weighted(self, losses: torch.Tensor, index: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
        """The mean of the drawn pairs' losses with their weights; the sampler hears of the slopes dL/dm."""
        trainer: Any = self
        assert self.sampler is not None
        rows, slopes = trainer.accelerator.gather((index, slopes.abs()))
        for i in (~slopes.isfinite()).nonzero()[:1, 0].tolist():
            raise ValueError(
                f"row {rows[i].item()} of the prepared training data (trainer.train_dataset) must have finite scores to "
                f"get a priority, got {slopes[i].item():g} as the slope of its loss: lower the learning rate, or train "
                "in float32 or bfloat16"
            )
        self.sampler.update(rows, slopes)
        return (self.sampler.weights(index).to(losses) * losses).mean()

    def _with_prior(self, dataset: Any, args: Any, name: str) -> Any:
        """The data set with a column `prior`, where that is neither there nor the collator's to make."""
        kind = self.settings.prior
        if kind in ("fixed", "random"):
            return dataset
        columns = dataset.column_names or list(next(iter(dataset)))
        has = "prior" in columns
        if not hasattr(self, "_has_column"):  # the training data come first
            self._has_column = has
        # Data that were prepared before may have the column from here.
        elif has != self._has_column and (kind == "length_ratio" or not has):
            raise ValueError(
                f"the {name} data set has {'a' if has else 'no'} column 'prior', the train data set has {'none' if has else 'one'}: "
                "their pairs would be constrained by two priors"
            )
        if has:
            if hasattr(dataset, "num_rows"):  # an iterable one is looked at batch by batch
                prior_tensor(dataset["prior"][:])  # at once: row by row takes a hundred times as long
            return dataset
        if kind == "column":
            raise ValueError(
                f"the {name} data set has no column 'prior', which pcrm_prior='column' needs: it has {', '.join(columns)}"
            )
        if kind == "length_ratio":
            return dataset
        if kind == "cosine" and args.pcrm_prior_model is None:
            raise ValueError(
                f"the {name} data set has no column 'prior', so pcrm_prior='cosine' needs an encoder: set pcrm_prior_model"
            )
        if "chosen" not in columns:
            raise ValueError(
                f"the {name} data set has no texts, which pcrm_prior={kind!r} needs where there is no column 'prior': "
                f"it has {', '.join(columns)}"
            )
        model = args.pcrm_prior_model
        content = content_hash(Path(model)) if model is not None and os.path.isdir(model) else None
        annotate = functools.partial(_annotate, name=name, made_by=(__version__, content), prior=kind, model=model)
        described = {"desc": f"Adding the prior to {name} dataset"} if hasattr(dataset, "num_rows") else {}
        # The others find what the main process left: the data set by its fingerprint, where it
        # lies on disk, and every embedding by its text.
        with PartialState().main_process_first():
            dataset = dataset.map(annotate, batched=True, with_indices=True, **described)
        priors.forget_models()  # the encoder would stay beside the model that trains
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # pyright: ignore[reportAttributeAccessIssue]
        if self.constrained and "prior" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "prior", INDEX]

    def _log_constraint(
        self,
        margin: torch.Tensor,
        delta: torch.Tensor | float,
        prior: torch.Tensor | None,
        nll: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        """Add the pairs of a batch, of all processes, to the metrics of the next log.

        `nll` holds the sum over each pair's tokens, and how many there are.
        """
        trainer: Any = self
        mode = "train" if trainer.model.training else "eval"
        # The last batch of an evaluation repeats pairs until all processes have equally many. Only
        # accelerate can tell them. Training does train on its repeats.
        gather = trainer.accelerator.gather if mode == "train" else trainer.accelerator.gather_for_metrics
        with torch.no_grad():
            columns = [margin, torch.as_tensor(delta, dtype=margin.dtype, device=margin.device).expand_as(margin)]
            columns += () if prior is None else (prior.to(margin),)
            columns += () if nll is None else (x.to(margin) for x in nll)
            margin, ceiling, *rest = gather(torch.stack(columns, 1)).cpu().double().unbind(1)
        # An infinite delta has no target to be off from.
        bounded = ceiling < math.inf
        values = {
            "pcrm/delta": ceiling[bounded],
            "pcrm/target": ceiling[bounded] / 2,
            "pcrm/residual": (margin - ceiling / 2)[bounded],
            "pcrm/violation": torch.where(margin.isnan(), margin, (margin > ceiling).to(margin)),
        }
        if prior is not None and self.settings.prior != "random":
            values["pcrm/prior"] = rest[0]
        counted = {name: (x.sum().item(), len(x)) for name, x in values.items()}
        if nll is not None:
            counted["pcrm/nll"] = (rest[-2].sum().item(), int(rest[-1].sum()))
        sums = self._sums[mode]
        for name, (total, count) in counted.items():
            before, so_far = sums.get(name, (0.0, 0))
            sums[name] = (before + total, so_far + count)
        if self._margins is not None:
            self._margins[mode].append(margin)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        self._evaluated = metric_key_prefix
        if self.constrained:  # drop what a `predict` left, which logs nothing
            self._sums["eval"].clear()
        if self._margins is not None:
            self._margins["eval"].clear()
        return super().evaluation_loop(  # pyright: ignore[reportAttributeAccessIssue]
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )

    def log(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
        trainer: Any = self
        if self.constrained:
            # TRL logs the mean of each list: ours has one element, the mean over the pairs.
            mode = "train" if trainer.model.training else "eval"
            means = {name: [total / count] for name, (total, count) in self._sums[mode].items() if count}
            trainer._metrics[mode].update(means)
            self._sums[mode].clear()
        super().log(logs, *rest, **named)  # pyright: ignore[reportAttributeAccessIssue]
        if self._margins is not None:
            # The last log of a training run may come after an evaluation.
            training = "train_runtime" in logs or self.model.training  # pyright: ignore[reportAttributeAccessIssue]
            self._write_margins("train" if training else "eval")

    def _write_margins(self, mode: str) -> None:
        """The histogram of the pairs of all processes, by the main one. What is not finite is left out."""
        trainer: Any = self
        assert self._margins is not None
        seen = self._margins[mode]
        if not seen:
            return
        margins = torch.cat(seen)
        seen.clear()
        margins = margins[margins.isfinite()]
        for callback in trainer.callback_handler.callbacks:
            # Only the main process has a writer.
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None and len(margins):
                evaluated = self._evaluated.replace("_", "/", 1)
                tag = "pcrm/margins" if mode == "train" else f"{evaluated}/pcrm/margins"
                callback.tb_writer.add_histogram(tag, margins, trainer.state.global_step)
                callback.tb_writer.flush()
