"""Preference files in TRL's formats, read with the line of every error, and split by prompt."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from trl import apply_chat_template, extract_prompt, is_conversational

from ..data.preferences import listed
from ..data.sources import read_rows

Row = dict[str, Any]


def read_preferences(path: str | Path) -> list[Row]:
    """The rows of a `.jsonl`, `.jsonl.gz` or `.parquet` file with `chosen` and `rejected`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another suffix, no rows, or a row that is no preference; the message
            names file and line (or row).
    """
    if not str(path).endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise ValueError(f"{path}: must end in .jsonl, .jsonl.gz or .parquet")
    rows = []
    for place, row in read_rows(path):
        _check_row(place, row)
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: holds no rows")
    return rows


def _check_row(place: str, row: Any) -> None:
    for key in ("chosen", "rejected"):
        if key not in row:
            raise ValueError(f"{place}: has no {key}, its keys are {listed(row)}")
        _check_text(f"{place}: {key}", row[key])
    if type(row["chosen"]) is not type(row["rejected"]):
        raise ValueError(
            f"{place}: chosen is a {type(row['chosen']).__name__}, rejected a {type(row['rejected']).__name__}"
        )
    if row.get("prompt") is not None:
        _check_text(f"{place}: prompt", row["prompt"])


def _check_text(place: str, value: Any) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    ):
        raise ValueError(f"{place} is neither a text nor a list of messages with role and content")


def with_prompt(row: Row) -> Row:
    """The row with a `prompt`: where it has none, what `chosen` and `rejected` begin with."""
    return row if row.get("prompt") is not None else extract_prompt({k: v for k, v in row.items() if k != "prompt"})


def as_text(row: Row, tokenizer: Any) -> Row:
    """The row with `prompt`, `chosen` and `rejected` as texts, by the tokenizer's chat template."""
    if not is_conversational(row):
        return row
    return row | apply_chat_template({k: row[k] for k in ("prompt", "chosen", "rejected")}, tokenizer)


def texts(row: Row) -> list[str]:
    """The texts of a row, whether they are texts or messages."""
    values = [row[k] for k in ("prompt", "chosen", "rejected")]
    return [text for v in values for text in ([v] if isinstance(v, str) else [m["content"] for m in v])]


def split_by_prompt(rows: list[Row], train: int, held_out: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Up to so many rows for training and for evaluation, no prompt in both.

    Pairs of one prompt share responses, so a split by pairs would evaluate on responses
    that were trained on. A quarter of the rows at most is held out.

    Raises:
        ValueError: all rows have the same prompt.
    """
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(json.dumps(row["prompt"]), []).append(row)
    if len(by_prompt) < 2:
        raise ValueError("all rows have the same prompt: held-out prompts need at least two")
    prompts = sorted(by_prompt)
    random.Random(seed).shuffle(prompts)
    wanted = min(held_out, max(1, len(rows) // 4))
    evaluation: list[Row] = []
    while len(prompts) > 1 and len(evaluation) < wanted:
        evaluation += by_prompt[prompts.pop()]
    return [row for p in prompts for row in by_prompt[p]][:train], evaluation
