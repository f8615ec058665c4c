"""The column `prior` of preference rows: compute it for a batch, and read it."""

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
    """Add a column `prior` to a batch of preference rows. Works on data sets of any size.

        dataset.map(partial(pcrm.priors.annotate, prior="lexical"), batched=True, num_proc=8)
        ray_dataset.map_batches(pcrm.priors.annotate, fn_kwargs={"prior": "cosine", "model": path})

    The function can be pickled. It loads the native library in the process where it first runs, and
    reads a model or a tokenizer once per process. In a forked child of a process that has used the
    native library, Python computes the same numbers; the lexical prior is then about thirty times
    slower. To avoid this, spawn the workers, or do not use pcrm in the parent before the fork.

    Args:
        batch: A mapping of columns (a dict, a batch of `datasets`, or NumPy arrays from Ray), a
            pyarrow Table or RecordBatch, or a pandas DataFrame. Its columns `chosen` and `rejected`,
            and `prompt` if there is one, are in one of TRL's formats; see `pcrm.data.preferences`.
            Columns of the type `Json` of `datasets` are decoded in tables and in batches of
            `datasets`. NumPy and pandas see them as plain text, so use `batch_format="pyarrow"` in Ray.
        prior: "length_ratio", "lexical" or "cosine".
        model: The encoder for the cosine: a checkpoint's folder or hub name, or an `Encoder`. Static
            encoders are the fastest.
        tokenizer: The tokenizer for the length ratio: a checkpoint's folder or hub name, or a
            tokenizer of transformers. Without one, the batch must have the columns `chosen_ids` and
            `rejected_ids`.
        with_prompt: Whether to compare prompt + response, as the authors do, instead of the
            responses alone.
        angular: See `cosine`.
        encoder: Further arguments of `Encoder`, if `model` is a path or a name: `pooling`, `device`,
            `batch_size`, `max_length` and `cache`.

    Returns:
        A batch of the same kind with the new column. The input batch is not changed. The column is
        float32 in arrays and tables, and holds floats in lists.

    Raises:
        TypeError: The batch has no columns.
        ValueError: The prior is unknown; a model or tokenizer is missing, or given for a prior that
            does not use it; a column is missing; or there is already a column `prior`.
        pcrm.data.preferences.RowError: A row is invalid, or the model has no embedding for a
            response. A subclass of ValueError; it names the row (from 0 in this batch), the column
            and the value.
        ImportError: transformers is not installed: pip install 'pcrm[encoders]'.
    """
    is_table, is_frame = hasattr(batch, "append_column"), hasattr(batch, "assign")
    if not is_table and not is_frame and not hasattr(batch, "keys"):
        raise TypeError(f"batch must be a mapping of columns, a table or a data frame, got {type(batch).__name__}")
    names = list(batch.column_names if is_table else batch.columns if is_frame else batch)
    if "prior" in names:
        raise ValueError(
            "the batch must not have a column 'prior', because annotate adds one: use the column as it is, or remove or "
            "rename it to compute another prior"
        )
    ids = prior == "length_ratio" and tokenizer is None
    for name in ("chosen_ids", "rejected_ids") if ids else ("chosen", "rejected"):
        if name not in names:
            hint = " or a tokenizer" if ids else ""
            raise ValueError(
                f"prior={prior!r} requires a column {name!r}{hint}, got the columns {', '.join(map(str, names))}"
            )
        if isinstance(batch[name], str):
            raise ValueError(f"{name} must be a column of texts, got a single text: use batched=True in `map`")

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
                raise ValueError(
                    f"chosen and rejected must have the same length, got {len(chosen)} and {len(rejected)} rows"
                )
            prompts = column("prompt") if "prompt" in names else [None] * len(chosen)
            if len(prompts) != len(chosen):
                raise ValueError(
                    f"chosen and prompt must have the same length, got {len(chosen)} and {len(prompts)} rows"
                )
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
    annotated = copy.copy(batch)  # works for datasets' lazy batches too: untouched columns are not decoded
    annotated["prior"] = (
        result.numpy() if hasattr(first, "dtype") and not isinstance(first, torch.Tensor) else result.tolist()
    )
    return annotated


def prior_tensor(column: Iterable[Any]) -> torch.Tensor:
    """Return a data set's column of priors as a float32 tensor of shape (N,).

    Raises:
        TypeError, ValueError: An element is not a number in [0, 1]; the message names its index.
    """
    # A data set in NumPy or torch format yields their scalars. The `item` of NumPy's masked scalar is 0.
    plain = (x.item() if getattr(x, "ndim", None) == 0 and not hasattr(x, "mask") else x for x in column)
    prior = torch.tensor([_check.number(f"prior[{i}]", value) for i, value in enumerate(plain)], dtype=torch.float32)
    check_similarities(prior, "prior")
    return prior


def _unpacked(column: Any) -> Any:
    """Convert a column of ids, such as a NumPy array of arrays, to what `length_ratio` accepts."""
    return column if isinstance(column, torch.Tensor) else list(column)
