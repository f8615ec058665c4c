"""The prior of each pair in ms-swift's data."""

# ms-swift is not installed where the type checker runs.
# pyright: reportMissingImports=false

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import concatenate_datasets
from swift.dataset import LazyLLMDataset
from swift.template import TemplateInputs

from ..settings import Config
from ..training.batch_prior import prior_of
from ..training.fit import priors_of, sampled
from ..training.prior_column import PriorColumn

Rows = Sequence[Mapping[str, Any]]


def add_prior(dataset: Any, name: str, prior_column: PriorColumn) -> None:
    """Check the column `prior` of a data set, or add one if the prior is computed from texts.

    Args:
        dataset: The data set of ms-swift's trainer. Except for streaming data it is a `LazyLLMDataset`, which tokenizes
            rows when they are read.
        name: Name of the data set in messages, such as `train`.
        prior_column: Shared by all data sets of a trainer, the training data first.

    Raises:
        ValueError: Streaming data with a prior that is computed from texts; or as in `PriorColumn.add`.
    """
    kind = prior_column.settings.prior
    if kind in ("fixed", "random"):
        return
    if not isinstance(dataset, LazyLLMDataset):
        if kind in ("lexical", "cosine"):
            raise ValueError(
                f"--streaming must be false with the prior {kind!r}, got true: this prior is computed before training"
            )
        return  # checked batch by batch
    rows = dataset.dataset
    if "prior" in rows.column_names or kind not in ("lexical", "cosine"):
        prior_column.add(rows, name)
        return
    texts = rows.map(_texts, remove_columns=rows.column_names)
    dataset.dataset = concatenate_datasets([rows, prior_column.add(texts, name).select_columns(["prior"])], axis=1)


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a row. The prompt consists of the messages that both conversations start with."""
    inputs = TemplateInputs.from_dict(dict(row))
    chosen, rejected = inputs.chosen.messages, inputs.rejected.messages
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    begin = sum(1 for _ in same)
    texts = {"prompt": chosen[:begin], "chosen": chosen[begin:], "rejected": rejected[begin:]}
    return {name: "\n".join(message["content"] for message in messages) for name, messages in texts.items()}


class PriorCollator:
    """Add the key `prior` to the batches of ms-swift's collator, one number per pair, if the constraint needs it.

    Args:
        collator: ms-swift's collator.
        settings: The settings of the constraint.
    """

    def __init__(self, collator: Callable[[Any], Any], settings: Config) -> None:
        self.collator = collator
        self.settings = settings

    def __call__(self, rows: Rows) -> Any:
        if any(row.get("margin") is not None for row in rows):
            raise ValueError(
                "the data set must not have a column 'margin', which would shift the margin that the constraint bounds, got "
                """one: remove it, or rename it with --columns '{"margin": "old_margin"}'"""
            )
        prior = self.prior(rows)
        # ms-swift would pass every column that it does not know to the model.
        batch = self.collator([{name: value for name, value in row.items() if name != "_extra_kwargs"} for row in rows])
        return batch if prior is None else {**batch, "prior": prior}

    def prior(self, rows: Rows) -> torch.Tensor | None:
        """Return the prior of each row: see `pcrm.training.batch_prior.prior_of`."""
        ids = [[list(row[f"{side}_input_ids"]) for row in rows] for side in ("chosen", "rejected")]
        return prior_of(self.settings, [_others(row) for row in rows], lambda _: (ids[0], ids[1]), prefix="")


def _others(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The columns of a tokenized row that ms-swift does not know."""
    return row.get("_extra_kwargs") or {}


def has_prior(dataset: Any) -> bool:
    """Whether the rows of a data set have a column `prior`."""
    if isinstance(dataset, LazyLLMDataset):
        return "prior" in dataset.dataset.column_names
    return "prior" in _others(next(iter(dataset)))


def similarities(collator: PriorCollator, dataset: Any) -> np.ndarray:
    """Return the priors to fit a constraint to: the whole column, or the priors of a sample of the training rows."""
    if not isinstance(dataset, LazyLLMDataset):
        return priors_of(dataset, collator.prior)
    if has_prior(dataset):
        return np.asarray(dataset.dataset["prior"][:], np.float64)
    return priors_of((dataset[i] for i in sampled(len(dataset))), collator.prior)
