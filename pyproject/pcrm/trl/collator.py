"""The prior of each pair in a batch: the collator puts it there, and the trainers take it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ..settings import Config
from ..training import fit
from ..training.batch_prior import prior_of

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
        given = batch.pop("prior", None) is not None
        kind = self.settings.prior
        if given and kind not in ("fixed", "random") and not any("prior" in e for e in examples):
            raise ValueError(
                f"the data collator gives a 'prior' of its own, which pcrm_prior={kind!r} would replace: give the data "
                "set a column 'prior'"
            )
        prior = prior_of(self.settings, examples, lambda kind: _trained_ids(batch, kind))
        if prior is not None:
            batch["prior"] = prior
        if INDEX in examples[0]:
            batch[INDEX] = torch.tensor([e[INDEX] for e in examples])
        if WEIGHT in examples[0]:
            batch[WEIGHT] = torch.tensor([e[WEIGHT] for e in examples], dtype=torch.float32)
        return batch


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


def similarities(settings: Config, dataset: Any, collator: Any) -> np.ndarray:
    """The priors of the training data that a constraint is fitted to.

    A column `prior` is read whole. What is computed from token ids is that of 10,000 rows at most: evenly spaced
    ones, of streaming data the first.

    Args:
        settings: What the arguments say about the constraint, whose prior is not "fixed".
        dataset: The training data, as TRL prepared it.
        collator: The trainer's collator, as TRL made it.
    """
    if "prior" in (dataset.column_names or ()) and hasattr(dataset, "num_rows"):
        return np.asarray(dataset["prior"][:], np.float64)
    collate = PriorCollator(collator, settings)
    return fit.priors_of(_sampled(dataset), lambda rows: collate(rows)["prior"])


def _sampled(dataset: Any) -> Iterator[dict[str, Any]]:
    if not hasattr(dataset, "num_rows"):
        yield from dataset
        return
    step = fit.sampled(dataset.num_rows).step
    for start in range(0, dataset.num_rows, fit.BATCH * step):
        yield from _rows(dataset, start, step)


def _rows(dataset: Any, start: int, step: int) -> Examples:
    """The next rows, read at once: one by one takes several times as long."""
    columns = dataset[range(start, min(start + fit.BATCH * step, dataset.num_rows), step)]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
