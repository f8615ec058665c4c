"""The prior of each pair in LLaMA-Factory's data: what its loader, its processor and its collator are replaced with."""

# LLaMA-Factory is in an environment of its own, not in that of the type checker.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import concatenate_datasets
from llamafactory.data import converter
from llamafactory.data.processor import PairwiseDatasetProcessor

from ..settings import Config
from ..training.batch_prior import prior_of
from ..training.fit import priors_of, sampled
from ..training.prior_column import PriorColumn


def column_of(settings: Config, model: str | None) -> str:
    """The column of tokenized data with the prior.

    `tokenized_path` keeps them for other runs: the priors that were computed have a column for each way of doing it.
    """
    return {"lexical": "prior: lexical", "cosine": f"prior: cosine of {model}"}.get(settings.prior, "prior")


def columns_of(dataset: Any) -> list[str]:
    """The columns of a data set; those of its first row where it is iterable and does not know."""
    return dataset.column_names or list(next(iter(dataset)))


def check_tokenized(dataset: Any, settings: Config, column: str, asked: str | None) -> None:
    """Refuse tokenized data that were made for another prior, which `tokenized_path` may bring.

    Args:
        dataset: The tokenized data.
        settings: What the arguments say about the constraint.
        column: The column with their prior.
        asked: As in `PriorColumn`.

    Raises:
        ValueError: The data lack the column that the prior needs, or have one beside a prior that is computed.
    """
    has_column = column in columns_of(dataset)
    if settings.prior in ("lexical", "cosine", "column") and not has_column:
        raise ValueError(
            f"the tokenized data set has no column {column!r}, which pcrm_prior={settings.prior!r} needs: remove the folder "
            "tokenized_path, so that the data are tokenized with their prior"
        )
    if settings.prior == "length_ratio" and has_column and asked is not None:
        raise ValueError(
            f"the tokenized data set has a column 'prior', and {asked} asks for the prior 'length_ratio': set "
            "pcrm_prior='column' to use the column, or remove the folder tokenized_path to compute that prior"
        )


class PriorLoader:
    """LLaMA-Factory's `align_dataset`, whose result has the column with the prior if its batches need one.

    Args:
        settings: What the arguments say about the constraint.
        model: The encoder of the prior `cosine`.
        asked: As in `PriorColumn`.
    """

    def __init__(self, settings: Config, model: str | None, asked: str | None) -> None:
        self.settings = settings
        self.column = column_of(settings, model)
        self.prior_column = PriorColumn(settings, model, asked)

    def __call__(self, dataset: Any, dataset_attr: Any, *args: Any) -> Any:
        aligned = converter.align_dataset(dataset, dataset_attr, *args)
        kind = self.settings.prior
        if kind in ("fixed", "random"):
            return aligned
        if kind in ("lexical", "cosine") and "prior" not in columns_of(dataset):
            dataset = aligned.map(_texts, remove_columns=columns_of(aligned))
        found = self.prior_column.add(dataset, dataset_attr.dataset_name)
        if "prior" not in columns_of(found):
            return aligned  # the length ratio of the token ids, which come later
        found = found.select_columns(["prior"])
        if self.column != "prior":
            found = found.rename_column("prior", self.column)
        # As long as the data set that came in: LLaMA-Factory drops bad rows later, and priors with them.
        return concatenate_datasets([aligned, found], axis=1)


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    """Both responses of a row that LLaMA-Factory aligned. It drops a row without two later, whose prior is no matter."""
    responses = row["_response"] if len(row["_response"]) > 1 else [{"content": "none"}] * 2
    # Without a prompt, what both begin with would be taken for it.
    return {"prompt": "", "chosen": responses[0]["content"], "rejected": responses[1]["content"]}


class PriorProcessor(PairwiseDatasetProcessor):
    """LLaMA-Factory's processor that keeps the column with the prior.

    Attributes:
        column: Its name.
    """

    column = "prior"

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if self.column not in examples:
            return super().preprocess_dataset(examples)
        kept: dict[str, list[Any]] = {}
        for i, prior in enumerate(examples[self.column]):
            # Row by row, as it drops those without two responses.
            row = super().preprocess_dataset({name: values[i : i + 1] for name, values in examples.items()})
            for name, values in row.items():
                kept.setdefault(name, []).extend(values)
            if row:
                kept.setdefault(self.column, []).append(prior)
        return kept


class PriorCollator:
    """Another collator's batch with the key `prior`, one number for each pair, if the constraint needs them.

    Args:
        collator: LLaMA-Factory's.
        settings: What the arguments say about the constraint.
        column: The column with the prior.
    """

    def __init__(self, collator: Callable[[Any], Any], settings: Config, column: str) -> None:
        self.collator = collator
        self.settings = settings
        self.column = column

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        prior = self.prior(rows)
        batch = self.collator(rows)
        return batch if prior is None else {**batch, "prior": prior}

    def prior(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """The prior of each row, as `pcrm.training.batch_prior.prior_of` gives it."""
        column = [{"prior": row[self.column]} if self.column in row else {} for row in rows]
        ids = [[row[f"{side}_input_ids"] for row in rows] for side in ("chosen", "rejected")]
        return prior_of(self.settings, column, lambda _: (ids[0], ids[1]))

    def similarities(self, dataset: Any) -> np.ndarray:
        """The priors of the training data that a constraint is fitted to: the column whole, or those of a sample of rows."""
        if hasattr(dataset, "num_rows") and self.column in dataset.column_names:
            return np.asarray(dataset[self.column][:], np.float64)
        rows = dataset.select(sampled(dataset.num_rows)) if hasattr(dataset, "num_rows") else dataset
        return priors_of(rows, self.prior)
