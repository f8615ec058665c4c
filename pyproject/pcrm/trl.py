"""TRL's reward trainer with the prior-constrained loss.

    from pcrm.trl import PCRMRewardConfig, PCRMRewardTrainer     # instead of RewardConfig, RewardTrainer

Everything else of a script stays as it is.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from trl import RewardConfig, RewardTrainer
from trl.data_utils import get_dataset_column_names

from . import priors, tracing
from .constraint import Constraint, check_similarities, presets
from .functional import pcrm_loss

PRIORS = ("length_ratio", "fixed", "column")


@dataclass
class PCRMArguments:
    """The constraint of a trainer.

    Parameters:
        > Parameters that control the prior

        pcrm_prior (`str`, *optional*, defaults to `"length_ratio"`):
            What the similarity of two responses is: `"length_ratio"` of their token ids, in the
            collator; `"fixed"` for a delta that is the same for all; `"column"` for the data
            set's column `prior`, numbers in [0, 1]. With `"length_ratio"`, a data set that has a
            `prior` column uses that.

        > Parameters that control the constraint delta(s) = beta1 / (s + beta2) + beta3

        pcrm_preset (`str`, *optional*):
            A published setting, such as `"alpaca/length_ratio"`, which is the default.
        pcrm_beta1, pcrm_beta2, pcrm_beta3 (`float`, *optional*):
            The betas; each that is given overrides the preset's.
        pcrm_floor, pcrm_cap (`float`, *optional*):
            Least and greatest delta.
        pcrm_delta (`float`, *optional*):
            The delta of the fixed prior; `inf` trains the stock loss.
    """

    pcrm_prior: str = field(
        default="length_ratio",
        metadata={
            "help": "Similarity of two responses: 'length_ratio' of their token ids, 'fixed' for one delta, "
            "'column' for the data set's column 'prior'.",
            "choices": PRIORS,
        },
    )
    pcrm_preset: str | None = field(
        default=None, metadata={"help": "A published setting, 'alpaca/length_ratio' by default."}
    )
    pcrm_beta1: float | None = field(default=None, metadata={"help": "beta1 of delta = beta1 / (s + beta2) + beta3."})
    pcrm_beta2: float | None = field(default=None, metadata={"help": "beta2 of delta = beta1 / (s + beta2) + beta3."})
    pcrm_beta3: float | None = field(default=None, metadata={"help": "beta3 of delta = beta1 / (s + beta2) + beta3."})
    pcrm_floor: float | None = field(default=None, metadata={"help": "Least delta."})
    pcrm_cap: float | None = field(default=None, metadata={"help": "Greatest delta."})
    pcrm_delta: float | None = field(default=None, metadata={"help": "The delta of pcrm_prior='fixed'."})

    def pcrm_constraint(self) -> Constraint:
        """The constraint that the fields describe.

        Raises:
            ValueError: a field is unknown, out of range or contradicts another one.
        """
        if self.pcrm_prior not in PRIORS:
            raise ValueError(f"pcrm_prior is {self.pcrm_prior!r}, must be one of {', '.join(PRIORS)}")
        curve = {
            name: value
            for name in ("beta1", "beta2", "beta3", "floor", "cap")
            if (value := getattr(self, f"pcrm_{name}")) is not None
        }
        fixed = self.pcrm_prior == "fixed"
        preset = self.pcrm_preset
        if preset is not None:
            constraint = Constraint.preset(preset)
            of = presets()[preset]["prior"]
            if of != self.pcrm_prior and (fixed or self.pcrm_prior == "length_ratio" or of in ("fixed", "random")):
                raise ValueError(
                    f"pcrm_preset is {preset!r}, which is for the prior {of!r}, and pcrm_prior is {self.pcrm_prior!r}"
                )
        if not fixed:
            if self.pcrm_delta is not None:
                raise ValueError(
                    f"pcrm_delta is {self.pcrm_delta}, which pcrm_prior={self.pcrm_prior!r} does not use: set pcrm_prior='fixed'"
                )
            constraint = Constraint.preset(preset or "alpaca/length_ratio")
            return dataclasses.replace(constraint, **curve)
        if curve:
            raise ValueError(f"pcrm_{next(iter(curve))} is set, which pcrm_prior='fixed' does not use: set pcrm_delta")
        if self.pcrm_delta is not None:
            if preset is not None:
                raise ValueError(f"pcrm_delta is {self.pcrm_delta} and pcrm_preset is {preset!r}: set one of them")
            return Constraint.fixed(self.pcrm_delta)
        if preset is None:
            raise ValueError("pcrm_delta is missing: pcrm_prior='fixed' needs it or a preset such as 'alpaca/fixed'")
        return Constraint.preset(preset)


@dataclass
class PCRMRewardConfig(PCRMArguments, RewardConfig):
    """`trl.RewardConfig` with the constraint's fields, which are refused at construction
    where they make no constraint.
    """

    __doc__ = f"{__doc__}\n{PCRMArguments.__doc__}"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pcrm_constraint()


class _PriorCollator:
    """Another collator's batch plus `prior`, one similarity a pair."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        if "prior" in examples[0]:
            batch["prior"] = _prior_tensor([e["prior"] for e in examples])
        else:
            # TRL's collator gets the ids unpadded.
            batch["prior"] = priors.length_ratio(*([e[k] for e in examples] for k in ("chosen_ids", "rejected_ids")))
        return batch


def _prior_tensor(column: list[Any]) -> torch.Tensor:
    for i, value in enumerate(column):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"prior[{i}] is {value!r}, must be a number in [0, 1]")
    prior = torch.tensor(column, dtype=torch.float32)
    check_similarities(prior, "prior")
    return prior


class PCRMRewardTrainer(RewardTrainer):
    """`trl.RewardTrainer` with the prior-constrained loss.

    The loss is that of `pcrm.PCRMLoss`, the batch mean, with `center_rewards_coefficient`
    as TRL has it. All of TRL's metrics stay, and two join them: `pcrm/delta`, the mean
    constraint, and `pcrm/violation`, the share of pairs whose margin is over theirs.

    A data set's `margin` column works as in TRL where delta is infinite, and is refused
    otherwise: the constraint bounds the margin that it would move.
    """

    _tag_names = ["trl", "reward-trainer", "pcrm"]  # noqa: RUF012  (TRL's own form)
    _name = "PCRM"
    _paper = {  # noqa: RUF012
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

    def __init__(self, model: Any, args: RewardConfig | None = None, **kwargs: Any) -> None:
        if args is None:
            args = PCRMRewardConfig()
        if not isinstance(args, PCRMRewardConfig):
            raise TypeError(f"args is a {type(args).__name__}, must be a PCRMRewardConfig")
        self.constraint = args.pcrm_constraint()
        self._center = args.center_rewards_coefficient or 0.0
        super().__init__(model, args, **kwargs)
        self.data_collator = _PriorCollator(self.data_collator)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        columns = get_dataset_column_names(dataset)
        if args.pcrm_prior == "column" and columns and "prior" not in columns:
            raise ValueError(
                f"the {dataset_name} data set has no column 'prior', which pcrm_prior='column' needs: it has {', '.join(columns)}"
            )
        if "prior" in columns and hasattr(dataset, "num_rows"):  # an iterable one is looked at batch by batch
            _prior_tensor(list(dataset["prior"]))
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "prior" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "prior"]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        prior = inputs.pop("prior")  # whatever stays reaches model(**inputs)
        margin = inputs.get("margin")
        delta = self.constraint.delta(prior)
        tracing.note(prior, self.constraint, delta)
        # TRL's own pass for its metrics; its loss is not used and costs no second forward.
        _, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        rewards: torch.Tensor = outputs.logits.squeeze(-1)  # pyright: ignore[reportAttributeAccessIssue]
        if rewards.dtype != torch.float64:
            rewards = rewards.float()  # the difference of two bfloat16 scores has few digits left
        chosen, rejected = rewards.chunk(2)
        # Half of the column each way moves their difference by all of it, and their sum,
        # which is centered, not at all.
        shift = 0.0 if margin is None else self._unconstrained(margin) / 2
        loss = pcrm_loss(
            chosen - shift,
            rejected + shift,
            delta,
            center_rewards_coefficient=self._center,
        )
        mode = "train" if model.training else "eval"
        with torch.no_grad():
            over = (chosen - rejected > delta).float().mean()
            for name, value in (("pcrm/delta", delta.mean()), ("pcrm/violation", over)):
                gathered: Any = self.accelerator.gather_for_metrics(value)
                self._metrics[mode][name].append(gathered.mean().item())
        return (loss, outputs) if return_outputs else loss

    def _unconstrained(self, margin: torch.Tensor) -> torch.Tensor:
        if self.constraint.delta(1.0) < math.inf:
            raise ValueError(
                "the data set has a column 'margin', which moves the margin that the constraint bounds: "
                "remove it, or train with pcrm_prior='fixed' and pcrm_delta=inf"
            )
        return margin
