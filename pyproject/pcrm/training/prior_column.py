"""Check the column `prior` of a data set, or compute it from the texts before training."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from accelerate import PartialState

from .. import priors
from .._version import __version__
from ..data.preferences import RowError
from ..priors import prior_tensor
from ..priors.encoders import content_hash
from ..settings import Config


class PriorColumn:
    """Add the column `prior` to a trainer's data sets if the collator cannot compute it.

    All data sets must get their prior in the same way as the first one, the training data.

    Args:
        settings: The settings of the constraint.
        model: Encoder for the prior `cosine`.
        asked: The setting that asks for a computed prior, for messages; with it, a column `prior` is an error.
        prefix: Prefix of the settings' names in messages.
        encoder: Name of the setting of `model` in messages.
    """

    def __init__(
        self,
        settings: Config,
        model: str | None,
        asked: str | None,
        *,
        prefix: str = "pcrm_",
        encoder: str = "pcrm_prior_model",
    ) -> None:
        self.settings = settings
        self.model = model
        self.asked = asked
        self.prefix, self.encoder = prefix, encoder
        self.trained_has_column: bool | None = None  # None before the training data

    def add(self, dataset: Any, name: str) -> Any:
        """Return the data set, with the column if its batches need one.

        Args:
            dataset: A `datasets.Dataset` or `IterableDataset`.
            name: TRL's name for it in messages, such as `train`.

        Raises:
            TypeError, ValueError: The column is missing, is present in only some data sets, or does not contain
                numbers in [0, 1]; or the texts or the encoder are missing.
        """
        kind = self.settings.prior
        if kind in ("fixed", "random"):
            return dataset
        columns = dataset.column_names or list(next(iter(dataset)))
        has_column = "prior" in columns
        self._check_same_as_trained(has_column, name)
        if has_column:
            if self.asked is not None:
                raise ValueError(
                    f"the {name} data set must not have a column 'prior' with {self.asked}, which computes the prior {kind!r}, "
                    f"got one: set {self.prefix}prior='column' to use the column, or remove it"
                )
            if hasattr(dataset, "num_rows"):  # iterable data sets are checked batch by batch
                prior_tensor(dataset["prior"][:])  # all at once: row by row takes a hundred times as long
            return dataset
        if kind == "column":
            raise ValueError(
                f"the {name} data set must have a column 'prior' with {self.prefix}prior='column', got {', '.join(columns)}"
            )
        if kind == "length_ratio":  # the collator computes it from the token ids
            return dataset
        self._check_texts(columns, name)
        return self._computed(dataset, name)

    def _check_same_as_trained(self, has_column: bool, name: str) -> None:
        if self.trained_has_column is None:
            self.trained_has_column = has_column
        # Data sets that were prepared before may have got the column here.
        elif has_column != self.trained_has_column and (self.settings.prior == "length_ratio" or not has_column):
            raise ValueError(
                f"the {name} data set must {'not ' if has_column else ''}have a column 'prior', because the train data set has "
                f"{'none' if has_column else 'one'}, got {'one' if has_column else 'none'}: two different priors would constrain "
                "their pairs"
            )

    def _check_texts(self, columns: list[str], name: str) -> None:
        kind = self.settings.prior
        if kind == "cosine" and self.model is None:
            raise ValueError(
                f"{self.encoder} must be an encoder with {self.prefix}prior='cosine', because the {name} data set has no column "
                "'prior', got none"
            )
        if "chosen" not in columns:
            raise ValueError(
                f"the {name} data set must have texts (a column 'chosen') or a column 'prior' with {self.prefix}prior={kind!r}, got "
                f"{', '.join(columns)}"
            )

    def _computed(self, dataset: Any, name: str) -> Any:
        model = self.model
        content = content_hash(Path(model)) if model is not None and os.path.isdir(model) else None
        annotate = functools.partial(
            _annotate, name=name, made_by=(__version__, content), prior=self.settings.prior, model=model
        )
        described = {"desc": f"Adding the prior to {name} dataset"} if hasattr(dataset, "num_rows") else {}
        # The other processes reuse the main process's results: the data set on disk by its fingerprint, and each embedding
        # by its text.
        with PartialState().main_process_first():
            dataset = dataset.map(annotate, batched=True, with_indices=True, **described)
        priors.forget_models()  # else the encoder stays in memory next to the trained model
        return dataset


def _annotate(batch: Any, indices: list[int], *, name: str, made_by: Any, **how: Any) -> Any:
    """Call `priors.annotate`; errors name the data set and the row.

    `datasets` caches the result by the arguments. `made_by` distinguishes encoders that were in the same folder at
    different times.
    """
    try:
        return priors.annotate(batch, **how)
    except RowError as error:
        if error.row is None:
            raise
        raise ValueError(
            f"the {name} data set, row {indices[error.row]}: {error.message}. To skip such rows, add the prior with "
            "`pcrm prior --on-error skip`"
        ) from None
