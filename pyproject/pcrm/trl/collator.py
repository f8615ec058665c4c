"""The prior of each pair in a batch: the collator puts it there, and the trainers take it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import priors
from ..priors import prior_tensor
from ..settings import Config, Constraint

Batch = dict[str, Any]
Examples = list[dict[str, Any]]

# The column with a row's place in the training data, where a sampler asks for it.
INDEX = "pcrm_index"
# The column with what a pair's loss is multiplied with, where prompts are to count once.
WEIGHT = "pcrm_weight"


class PriorCollator:
    """Another collator's batch with the key `prior`, one number for each pair.

    The numbers are those of the data set's column `prior`, or are computed from the token ids:
    `settings.prior` says which. A batch of a data set with the columns `INDEX` or `WEIGHT` has them too.
    """

    def __init__(self, collator: Callable[[Examples], Batch], settings: Config) -> None:
        self.collator = collator
        self.settings = settings

    def __call__(self, examples: Examples) -> Batch:
        batch = self.collator(examples)
        kind = self.settings.prior
        if kind == "fixed":
            batch.pop("prior", None)
        elif kind == "random":
            assert isinstance(self.settings.constraint, Constraint)  # targets have no prior that is random
            batch["prior"] = priors.random_uniform(*_trained_ids(batch, kind), seed=self.settings.constraint.seed)
        elif any("prior" in e for e in examples):
            batch["prior"] = prior_tensor(_column(examples))
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
        if WEIGHT in examples[0]:
            batch[WEIGHT] = torch.tensor([e[WEIGHT] for e in examples], dtype=torch.float32)
        return batch


def _column(examples: Examples) -> list[Any]:
    """The priors of the rows of a data set that has a column of them."""
    for i, example in enumerate(examples):  # rows of an iterable data set may have keys of their own
        if "prior" not in example:
            raise ValueError(f"row {i} of a batch has no 'prior', others of it have: give one to each row or to none")
    return [e["prior"] for e in examples]


def _trained_ids(batch: Batch, kind: str) -> tuple[list[list[int]], list[list[int]]]:
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
