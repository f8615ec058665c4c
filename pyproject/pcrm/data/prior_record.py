"""The record of how the column `prior` of a file was computed, which `pcrm prior` writes.

`pcrm fit`, `pcrm report`, `pcrm reward` and `pcrm dpo` read it, and refuse betas of another prior.

Parquet has it in the metadata of its schema, under PRIOR_KEY. Beside any other file or folder it is a
hidden file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..settings.rules import COMPUTED_PRIORS

PRIOR_KEY = b"pcrm.prior"


def prior_record_path(data: str | os.PathLike[str]) -> Path:
    """The file beside a file or folder of rows that says how their column `prior` was computed.

    It is hidden, as `load_dataset` reads every other file of a folder as data.
    """
    path = Path(data)
    return path.parent / f".{path.name}.prior.json"


def parse_prior_record(text: bytes, where: str) -> dict[str, Any]:
    """Return a record as a dict. `where` is what messages call it.

    Raises:
        ValueError: The record is not a JSON object with a key `prior`.
    """
    try:
        record = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        record = text
    if not isinstance(record, dict) or not isinstance(record.get("prior"), str):
        raise ValueError(f"{where} must be a JSON object with a key 'prior', got {record!r:.80}")
    return record


def check_recorded(record: dict[str, Any] | None, prior: str, said: str, where: str) -> None:
    """Refuse the betas of a prior for a column that is recorded as another one.

    Args:
        record: The record of the column, None where there is none.
        prior: The prior that the betas are for; "column" and those that take no similarity are fine.
        said: What messages call the betas, such as `--preset alpaca/cosine`.
        where: The data, for messages.

    Raises:
        ValueError: the record names another prior.
    """
    if record is not None and prior in COMPUTED_PRIORS and record["prior"] != prior:
        raise ValueError(
            f"{said} is for the prior {prior}, and the column 'prior' of {where} is recorded as {record['prior']}: take betas "
            f"of that prior, or make the column with `pcrm prior --prior {prior}`"
        )
