"""Add a column `prior` to a file of any size. `pcrm prior` calls this."""

from __future__ import annotations

import os
from typing import Any

from .._pretrained import load_tokenizer
from ..data.preferences import RowError, listed, texts
from ..data.resumable import ResumableOutput
from ..data.row_pipeline import ParsedRows, RowPipeline
from ..data.sources import Source, open_source
from ..data.tokenizers import vocabulary_hash
from ..data.writers import Columns
from . import of_texts_and_errors


def annotate_file(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    prior: str = "lexical",
    split: str = "train",
    model: str | None = None,
    tokenizer: str | None = None,
    with_prompt: bool = False,
    angular: bool = True,
    pooling: str | None = None,
    device: str | None = None,
    batch_size: int = 64,
    cache: bool = True,
    skip: bool = False,
) -> ResumableOutput:
    """Write preferences with a column `prior`, and record how it was computed.

    After an interruption, the same call resumes the work.

    Args:
        data: Preferences: a file, a folder or a data set on the hub; see `data.sources`.
        out: The output; see `data.resumable`.
        prior: "length_ratio", "lexical" or "cosine".
        split: The split to read, if the data set has splits.
        model: The encoder for "cosine": a checkpoint's folder or hub name.
        tokenizer: The tokenizer for "length_ratio": a checkpoint's folder or hub name.
        with_prompt, angular: See `annotate`.
        pooling, device, batch_size, cache: See `Encoder`.
        skip: Leave out bad rows instead of stopping at the first.

    Raises:
        BadRowError: A row is bad, and bad rows are not skipped.
        OSError, ValueError: As in `open_source`, `Encoder` and `ResumableOutput`. Also if the rows already have a
            column `prior`.
    """
    source = open_source(data, split)
    _check_no_prior(source)
    for column in ("chosen", "rejected"):
        if source.columns is not None and column not in source.columns:
            raise ValueError(f"{source.name}: must have a column {column!r}, got the columns {listed(source.columns)}")
    how: dict[str, Any] = {"prior": prior}  # the arguments of of_texts
    settings: dict[str, Any] = {"--prior": prior, "--with-prompt": with_prompt}
    record: dict[str, Any] = {"prior": prior, "with_prompt": with_prompt}
    if prior == "cosine":
        from .encoders import Encoder

        assert model is not None
        encoder = Encoder(model, pooling=pooling, device=device, batch_size=batch_size, cache=cache)
        how |= {"model": encoder, "angular": angular}
        record |= {"model": model, "raw": not angular}
        # The last bits of an embedding depend on the other texts in its batch, and on the device.
        settings |= {"--model": encoder.identity, "--raw": not angular}
        settings |= {"--batch-size": batch_size, "--device": encoder.device}
    elif prior == "length_ratio":
        assert tokenizer is not None
        how["tokenizer"] = load_tokenizer(tokenizer)
        settings["--tokenizer"] = vocabulary_hash(how["tokenizer"])
        record["tokenizer"] = tokenizer

    def parse(row: dict[str, Any]) -> tuple[str, str]:
        for name in ("chosen", "rejected"):
            if name not in row:
                raise RowError(f"must have a key {name!r}, got {listed(row)}")
        return texts(row.get("prompt"), row["chosen"], row["rejected"], with_prompt=with_prompt)

    def compute(rows: ParsedRows[tuple[str, str]]) -> Columns:
        chosen, rejected = ([pair[side] for pair in rows.values.values()] for side in (0, 1))
        numbers, errors = of_texts_and_errors(chosen, rejected, **how)
        at = rows.kept
        for k, error in errors.items():
            rows.refuse(at[k], error)
        return {"prior": numbers.numpy()[[k for k in range(len(at)) if k not in errors]]}

    pipeline = RowPipeline(
        source,
        out,
        parse=parse,
        reads=("prompt", "chosen", "rejected"),
        adds=("prior",),
        settings=settings,
        input_name="IN",
        skip=skip,
        prior=record,
    )
    return pipeline.run(compute)


def _check_no_prior(source: Source) -> None:
    """Check, before an encoder is loaded, that the rows have no column `prior`. For JSON Lines, check the first rows.

    Raises:
        ValueError: They have one.
    """
    place = source.name if "prior" in (source.columns or ()) else None
    if source.columns is None:
        batch = next(source.batches(rows=1), None)
        rows = [] if batch is None else batch.rows()
        found = (i for i, row in enumerate(rows) if not isinstance(row, RowError) and "prior" in row)
        place = next((batch.place(i) for i in found if batch is not None), None)
    if place is not None:
        raise ValueError(
            f"{place}: must not have a column 'prior', because this command adds one. `pcrm fit` and the trainers can use the "
            "column as it is. To compute another prior, remove or rename it (`pcrm fit --column NAME` reads a renamed one)"
        )
