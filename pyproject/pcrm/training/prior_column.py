"""The column `prior` of a data set: checked, or computed from the texts before training."""

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
    """Adds the column `prior` to the data sets of a trainer, where the collator cannot compute it.

    All data sets must get their prior in the same way as the first one, the training data.

    Args:
        settings: What the arguments say about the constraint.
        model: The encoder of the prior `cosine`.
        asked: What asks for a prior that is computed, for messages; a column `prior` beside it is refused.
    """

    def __init__(self, settings: Config, model: str | None, asked: str | None) -> None:
        self.settings = settings
        self.model = model
        self.asked = asked
        self.trained_has_column: bool | None = None  # None until the training data came

    def add(self, dataset: Any, name: str) -> Any:
        """Return the data set with the column, if its batches need one.

        Args:
            dataset: A `datasets.Dataset` or `IterableDataset`.
            name: What TRL calls it in messages, such as `train`.

        Raises:
            TypeError, ValueError: the column is missing, unlike that of the training data, or not of
                numbers in [0, 1]; the texts or the encoder are missing.
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
                    f"the {name} data set has a column 'prior', and {self.asked} asks for the prior {kind!r}: set "
                    "pcrm_prior='column' to use the column, or remove it to compute that prior"
                )
            if hasattr(dataset, "num_rows"):  # an iterable one is looked at batch by batch
                prior_tensor(dataset["prior"][:])  # at once: row by row takes a hundred times as long
            return dataset
        if kind == "column":
            raise ValueError(
                f"the {name} data set has no column 'prior', which pcrm_prior='column' needs: it has {', '.join(columns)}"
            )
        if kind == "length_ratio":  # the collator's, of the token ids
            return dataset
        self._check_texts(columns, name)
        return self._computed(dataset, name)

    def _check_same_as_trained(self, has_column: bool, name: str) -> None:
        if self.trained_has_column is None:
            self.trained_has_column = has_column
        # Data that were prepared before may have the column from here.
        elif has_column != self.trained_has_column and (self.settings.prior == "length_ratio" or not has_column):
            raise ValueError(
                f"the {name} data set has {'a' if has_column else 'no'} column 'prior', the train data set has "
                f"{'none' if has_column else 'one'}: their pairs would be constrained by two priors"
            )

    def _check_texts(self, columns: list[str], name: str) -> None:
        kind = self.settings.prior
        if kind == "cosine" and self.model is None:
            raise ValueError(
                f"the {name} data set has no column 'prior', so pcrm_prior='cosine' needs an encoder: set pcrm_prior_model"
            )
        if "chosen" not in columns:
            raise ValueError(
                f"the {name} data set has no texts, which pcrm_prior={kind!r} needs where there is no column 'prior': "
                f"it has {', '.join(columns)}"
            )

    def _computed(self, dataset: Any, name: str) -> Any:
        model = self.model
        content = content_hash(Path(model)) if model is not None and os.path.isdir(model) else None
        annotate = functools.partial(
            _annotate, name=name, made_by=(__version__, content), prior=self.settings.prior, model=model
        )
        described = {"desc": f"Adding the prior to {name} dataset"} if hasattr(dataset, "num_rows") else {}
        # The others find what the main process left: the data set by its fingerprint, where it
        # lies on disk, and every embedding by its text.
        with PartialState().main_process_first():
            dataset = dataset.map(annotate, batched=True, with_indices=True, **described)
        priors.forget_models()  # the encoder would stay beside the model that trains
        return dataset


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
