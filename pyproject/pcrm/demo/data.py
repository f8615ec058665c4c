"""Read preference files in TRL's formats, with the line of every error, and split them by prompt."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from trl import apply_chat_template, extract_prompt, is_conversational

from ..compare.pairs import check_pair
from ..data.preferences import RowError
from ..data.sources import read_rows

Row = dict[str, Any]


def read_preferences(path: str | Path) -> list[Row]:
    """Read the preference pairs of a file, with all of their columns.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, has no rows, or has a row that is not a pair. The message names file and line
            (or row).
    """
    rows = []
    for place, row in read_rows(path):
        try:
            check_pair(row)
        except RowError as error:
            raise ValueError(f"{place}: {error.message}") from None
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} must have at least one row, got none")
    return rows


def with_prompt(row: Row) -> Row:
    """Return the row with a `prompt`. A row without one gets what `chosen` and `rejected` begin with."""
    return row if row.get("prompt") is not None else extract_prompt({k: v for k, v in row.items() if k != "prompt"})


def as_text(row: Row, tokenizer: Any) -> Row:
    """Return the row with `prompt`, `chosen` and `rejected` as texts, made by the tokenizer's chat template."""
    if not is_conversational(row):
        return row
    return row | apply_chat_template({k: row[k] for k in ("prompt", "chosen", "rejected")}, tokenizer)


def texts(row: Row) -> list[str]:
    """Return the texts of a row, which holds texts or messages."""
    values = [row[k] for k in ("prompt", "chosen", "rejected")]
    return [text for v in values for text in ([v] if isinstance(v, str) else [m["content"] for m in v])]


def split_by_prompt(rows: list[Row], train: int, held_out: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows into at most `train` for training and about `held_out` for evaluation, with no prompt in both.

    Pairs of one prompt share responses, so a split by pairs would evaluate on responses that were trained on. At most a
    quarter of the rows is held out.

    Raises:
        ValueError: All rows have the same prompt.
    """
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(json.dumps(row["prompt"]), []).append(row)
    if len(by_prompt) < 2:
        raise ValueError("the pairs must have at least 2 different prompts, to hold some out, got 1")
    prompts = sorted(by_prompt)
    random.Random(seed).shuffle(prompts)
    wanted = min(held_out, max(1, len(rows) // 4))
    evaluation: list[Row] = []
    while len(prompts) > 1 and len(evaluation) < wanted:
        evaluation += by_prompt[prompts.pop()]
    return [row for p in prompts for row in by_prompt[p]][:train], evaluation
