"""The collator that adds the prior of each pair to a batch."""

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

# Column with a row's index in the training data, if a sampler needs it.
INDEX = "pcrm_index"
# Column with the weight of a pair's loss, if each prompt counts once.
WEIGHT = "pcrm_weight"


class PriorCollator:
    """Add the key `prior` to another collator's batches, one number per pair.

    The numbers come from the data set's column `prior` or from the token ids, depending on `settings.prior`. If the data
    set has the columns `INDEX` or `WEIGHT`, so do the batches.
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
                f"data_collator must not return a key 'prior', which pcrm_prior={kind!r} would replace, got one: add a column "
                "'prior' to the data set instead"
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
    """The token ids of both responses as the loss sees them: truncated, and without padding."""
    # DPO's batches mark the completions. A reward model scores the prompt together with the response.
    mask = batch.get("completion_mask", batch.get("attention_mask"))
    if mask is None or "input_ids" not in batch:
        raise ValueError(
            f"data_collator must return 'input_ids' and 'attention_mask' with pcrm_prior={kind!r}, got {', '.join(batch)}: "
            "add a column 'prior' to the data set, or set pcrm_prior='fixed'"
        )
    rows = [ids[real].tolist() for ids, real in zip(batch["input_ids"], mask.bool(), strict=True)]
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def similarities(settings: Config, dataset: Any, collator: Any) -> np.ndarray:
    """Return the priors to which a constraint is fitted.

    A column `prior` is read completely. Priors computed from token ids are those of at most 10,000 rows: evenly spaced
    rows, or the first rows of streaming data.

    Args:
        settings: The settings of the constraint. Their prior must not be "fixed".
        dataset: The training data, as prepared by TRL.
        collator: The trainer's collator, as created by TRL.
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
    """The next rows, read at once, which is several times faster than one by one."""
    columns = dataset[range(start, min(start + fit.BATCH * step, dataset.num_rows), step)]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
