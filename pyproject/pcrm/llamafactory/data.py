"""The prior of each pair in LLaMA-Factory's data: replacements for its loader, processor and collator."""

# LLaMA-Factory is not installed where the type checker runs.
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
    """Return the name of the prior's column in tokenized data.

    `tokenized_path` keeps tokenized data for other runs, so each way of computing a prior has its own column.
    """
    return {"lexical": "prior: lexical", "cosine": f"prior: cosine of {model}"}.get(settings.prior, "prior")


def columns_of(dataset: Any) -> list[str]:
    """The columns of a data set; those of its first row if it is iterable and does not know them."""
    return dataset.column_names or list(next(iter(dataset)))


def check_tokenized(dataset: Any, settings: Config, column: str, asked: str | None) -> None:
    """Check that tokenized data, which may come from `tokenized_path`, were made for the requested prior.

    Args:
        dataset: The tokenized data.
        settings: The settings of the constraint.
        column: Name of the prior's column.
        asked: As in `PriorColumn`.

    Raises:
        ValueError: The data lack the column that the prior needs, or have one although the prior is computed.
    """
    has_column = column in columns_of(dataset)
    if settings.prior in ("lexical", "cosine", "column") and not has_column:
        raise ValueError(
            f"the tokenized data set must have a column {column!r} with pcrm_prior={settings.prior!r}, got none: remove the folder "
            "tokenized_path to tokenize the data again with their prior"
        )
    if settings.prior == "length_ratio" and has_column and asked is not None:
        raise ValueError(
            f"the tokenized data set must not have a column 'prior' with {asked}, which computes the prior 'length_ratio', got "
            "one: set pcrm_prior='column' to use the column, or remove the folder tokenized_path to compute that prior"
        )


class PriorLoader:
    """Replacement for LLaMA-Factory's `align_dataset` that adds the prior's column if the batches need one.

    Args:
        settings: The settings of the constraint.
        model: Encoder for the prior `cosine`.
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
            return aligned  # the length ratio is computed later, from the token ids
        found = found.select_columns(["prior"])
        if self.column != "prior":
            found = found.rename_column("prior", self.column)
        # Of the same length as the input: LLaMA-Factory drops bad rows later, together with their priors.
        return concatenate_datasets([aligned, found], axis=1)


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    """Both responses of an aligned row. LLaMA-Factory later drops rows that lack one, so their prior does not matter."""
    responses = row["_response"] if len(row["_response"]) > 1 else [{"content": "none"}] * 2
    # Without the key `prompt`, the common beginning of both would be taken for the prompt.
    return {"prompt": "", "chosen": responses[0]["content"], "rejected": responses[1]["content"]}


class PriorProcessor(PairwiseDatasetProcessor):
    """LLaMA-Factory's processor, extended to keep the prior's column.

    Attributes:
        column: Name of the column.
    """

    column = "prior"

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if self.column not in examples:
            return super().preprocess_dataset(examples)
        kept: dict[str, list[Any]] = {}
        for i, prior in enumerate(examples[self.column]):
            # Row by row, because it drops rows without two responses.
            row = super().preprocess_dataset({name: values[i : i + 1] for name, values in examples.items()})
            for name, values in row.items():
                kept.setdefault(name, []).extend(values)
            if row:
                kept.setdefault(self.column, []).append(prior)
        return kept


class PriorCollator:
    """Add the key `prior` to another collator's batches, one number per pair, if the constraint needs it.

    Args:
        collator: LLaMA-Factory's collator.
        settings: The settings of the constraint.
        column: Name of the prior's column.
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
        """Return the prior of each row: see `pcrm.training.batch_prior.prior_of`."""
        column = [{"prior": row[self.column]} if self.column in row else {} for row in rows]
        ids = [[row[f"{side}_input_ids"] for row in rows] for side in ("chosen", "rejected")]
        return prior_of(self.settings, column, lambda _: (ids[0], ids[1]))

    def similarities(self, dataset: Any) -> np.ndarray:
        """Return the priors to fit a constraint to: the whole column, or the priors of a sample of the training rows."""
        if hasattr(dataset, "num_rows") and self.column in dataset.column_names:
            return np.asarray(dataset[self.column][:], np.float64)
        rows = dataset.select(sampled(dataset.num_rows)) if hasattr(dataset, "num_rows") else dataset
        return priors_of(rows, self.prior)
