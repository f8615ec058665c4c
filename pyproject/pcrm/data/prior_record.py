"""The record of how the column `prior` of a file was computed. `pcrm prior` writes it.

`pcrm fit`, `pcrm report`, `pcrm reward` and `pcrm dpo` read it, and refuse betas that are for another prior.

In Parquet the record is in the metadata of the schema, under PRIOR_KEY. For any other file or folder it is a hidden file
beside it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..settings.rules import COMPUTED_PRIORS

PRIOR_KEY = b"pcrm.prior"


def prior_record_path(data: str | os.PathLike[str]) -> Path:
    """The path of the record for a file or folder of rows.

    The file is hidden, because `load_dataset` reads every visible file of a folder as data.
    """
    path = Path(data)
    return path.parent / f".{path.name}.prior.json"


def parse_prior_record(text: bytes, where: str) -> dict[str, Any]:
    """Return a record as a dict. Messages call it `where`.

    Raises:
        ValueError: The record is not a JSON object with the key `prior`.
    """
    try:
        record = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        record = text
    if not isinstance(record, dict) or not isinstance(record.get("prior"), str):
        raise ValueError(f"{where} must be a JSON object with the key 'prior', got {record!r:.80}")
    return record


def check_recorded(record: dict[str, Any] | None, prior: str, said: str, where: str) -> None:
    """Check that betas are for the prior that a column is recorded to hold.

    Args:
        record: The record of the column, or None without one.
        prior: The prior that the betas are for. "column" and priors without a similarity always pass.
        said: What set the betas, for messages, such as `--preset alpaca/cosine`.
        where: The data, for messages.

    Raises:
        ValueError: The record names another prior.
    """
    if record is not None and prior in COMPUTED_PRIORS and record["prior"] != prior:
        raise ValueError(
            f"{said} must be for the prior {record['prior']}, which is recorded for the column 'prior' of {where}, got "
            f"{prior}. Use betas for {record['prior']}, or recompute the column with `pcrm prior --prior {prior}`"
        )
