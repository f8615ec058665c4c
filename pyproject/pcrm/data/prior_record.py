"""The record of how the column `prior` of a file was computed, which `pcrm prior` writes and `pcrm fit` reads.

Parquet has it in the metadata of its schema, under PRIOR_KEY. Beside any other file or folder it is a
hidden file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

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
