"""The column `prior` of preference rows: made for a batch, and read."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from .. import _check
from .._engine.deltas import check_similarities
from ..data import preferences
from ._by_name import check_prior, of_texts
from ._length_ratio import length_ratio

if TYPE_CHECKING:
    from .encoders import Encoder

_TEXTS = ("prompt", "chosen", "rejected")


def annotate(
    batch: Any,
    *,
    prior: str = "lexical",
    model: str | os.PathLike[str] | Encoder | None = None,
    tokenizer: Any = None,
    with_prompt: bool = False,
    angular: bool = True,
    **encoder: Any,
) -> Any:
    """A batch of preference rows with a column `prior`, for data sets of any size.

        dataset.map(partial(pcrm.priors.annotate, prior="lexical"), batched=True, num_proc=8)
        ray_dataset.map_batches(pcrm.priors.annotate, fn_kwargs={"prior": "cosine", "model": path})

    It can be pickled, loads the native library where it first runs, and reads a model or a
    tokenizer once per process. In a forked child of a process that has used the native
    library the same numbers are computed by Python, the lexical ones some thirty times
    slower: spawn workers, or let the parent leave it alone.

    Args:
        batch: A mapping of columns (a dict, a batch of `datasets`, NumPy arrays as Ray gives
            them), a pyarrow Table or RecordBatch, or a pandas DataFrame. Its columns `chosen` and `rejected`,
            and `prompt` if it has one, are in one of TRL's formats, see `pcrm.data.preferences`. Columns
            of the type `Json` of `datasets` are decoded in tables and in batches of `datasets`;
            NumPy and pandas have only their texts, so let Ray give tables (`batch_format="pyarrow"`).
        prior: "length_ratio", "lexical" or "cosine".
        model: What embeds for the cosine: a checkpoint's folder or hub name, or an `Encoder`. Static
            encoders are the fast ones.
        tokenizer: What splits texts for the length ratio: a checkpoint's folder or hub name,
            or a tokenizer of transformers. Without one the batch has the columns `chosen_ids`
            and `rejected_ids`.
        with_prompt: Whether to compare prompt + response, as the authors do, and not the
            responses alone.
        angular: See `cosine`.
        encoder: `pooling`, `device`, `batch_size`, `max_length` and `cache` of an `Encoder`, where
            `model` is none.

    Returns:
        The batch, of the same kind, with the column; the batch that came in is not changed.
        float32 in arrays and tables, floats in lists.

    Raises:
        ValueError: an unknown prior; a model or tokenizer that is missing or has nothing to do;
            a column that is missing, or `prior`, which is there already.
        pcrm.data.preferences.RowError: a ValueError that names the row, from 0 in this batch, the column
            and the value; also of a response that the model has no embedding for.
        ImportError: there is no transformers: pip install 'pcrm[encoders]'.
    """
    is_table, is_frame = hasattr(batch, "append_column"), hasattr(batch, "assign")
    names = list(batch.column_names if is_table else batch.columns if is_frame else batch)
    if "prior" in names:
        raise ValueError("the batch has a column 'prior' already: remove or rename it")
    ids = prior == "length_ratio" and tokenizer is None
    for name in ("chosen_ids", "rejected_ids") if ids else ("chosen", "rejected"):
        if name not in names:
            hint = ", or a tokenizer" if ids else ""
            raise ValueError(
                f"prior={prior!r} needs a column {name!r}{hint}: the columns are {', '.join(map(str, names))}"
            )
        if isinstance(batch[name], str):
            raise ValueError(f"{name} is one text, must be a column of them: map a data set with batched=True")

    def column(name: str) -> Any:
        return batch[name].tolist() if is_frame else batch[name]

    if ids:
        check_prior(prior, model, tokenizer, encoder)
        sides = ("chosen_ids", "rejected_ids")
        result = length_ratio(*(batch[side] if is_table else _unpacked(column(side)) for side in sides))
    else:
        if is_table:
            from ..data.arrow_rows import rows_of

            found = rows_of(batch.select([name for name in _TEXTS if name in names]))
        else:
            chosen, rejected = column("chosen"), column("rejected")
            if len(chosen) != len(rejected):
                raise ValueError(f"rejected has {len(rejected)} rows, chosen has {len(chosen)}")
            prompts = column("prompt") if "prompt" in names else [None] * len(chosen)
            if len(prompts) != len(chosen):
                raise ValueError(f"prompt has {len(prompts)} rows, chosen has {len(chosen)}")
            found = (dict(zip(_TEXTS, row, strict=True)) for row in zip(prompts, chosen, rejected, strict=True))
        pairs = []
        for i, row in enumerate(found):
            try:
                if isinstance(row, preferences.RowError):
                    raise row
                pairs.append(
                    preferences.texts(row.get("prompt"), row["chosen"], row["rejected"], with_prompt=with_prompt)
                )
            except preferences.RowError as error:
                raise preferences.RowError(error.message, i) from None
        result = of_texts(
            [a for a, _ in pairs],
            [b for _, b in pairs],
            prior=prior,
            model=model,
            tokenizer=tokenizer,
            angular=angular,
            **encoder,
        )
    if is_table:
        import pyarrow

        return batch.append_column("prior", pyarrow.array(result.numpy()))
    if is_frame:
        return batch.assign(prior=result.numpy())
    first = batch[names[0]]
    annotated = copy.copy(batch)  # of datasets' lazy batches too: what is not touched is not decoded
    annotated["prior"] = (
        result.numpy() if hasattr(first, "dtype") and not isinstance(first, torch.Tensor) else result.tolist()
    )
    return annotated


def prior_tensor(column: Iterable[Any]) -> torch.Tensor:
    """A data set's column of priors as float32.

    Raises:
        TypeError, ValueError: an element is not a number in [0, 1], named by its index.
    """
    # A data set in the format of NumPy or torch gives scalars of theirs. NumPy's masked one has the item 0.
    plain = (x.item() if getattr(x, "ndim", None) == 0 and not hasattr(x, "mask") else x for x in column)
    prior = torch.tensor([_check.number(f"prior[{i}]", value) for i, value in enumerate(plain)], dtype=torch.float32)
    check_similarities(prior, "prior")
    return prior


def _unpacked(column: Any) -> Any:
    """A column of ids: NumPy's arrays as what `length_ratio` takes."""
    return column if isinstance(column, torch.Tensor) else list(column)
