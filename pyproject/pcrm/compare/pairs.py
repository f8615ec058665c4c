"""Preference pairs of the user, read with the place of every error, and split by prompt."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.preferences import RowError, finite, listed, shared, texts
from ..data.sources import open_source

Row = dict[str, Any]

# What training and scoring read of a row.
_COLUMNS = ("prompt", "chosen", "rejected", "tools", "chat_template_kwargs", "prior")
# Most pairs to evaluate on, and to fit a temperature on, when they are taken from DATA.
_MOST_TEST, _MOST_TEMPERATURE = 2000, 1000


@dataclass(frozen=True)
class Split:
    """Pairs in three parts that share no prompt.

    Attributes:
        train: What both models are trained on.
        temperature: What the temperature is fitted on. No model is trained on it.
        test: What the table and the report are about.
        dropped: Training pairs left out because their prompt is in the evaluation data.
    """

    train: list[Row]
    temperature: list[Row]
    test: list[Row]
    dropped: int = 0

    def parts(self) -> dict[str, list[Row]]:
        """The three parts by name."""
        return {"train": self.train, "temperature": self.temperature, "test": self.test}

    def digest(self) -> str:
        """Identify the pairs and how they are split."""
        return hashlib.sha256(json.dumps(self.parts(), sort_keys=True).encode()).hexdigest()


def read_pairs(name: str, split: str = "train") -> list[Row]:
    """Read the preference pairs of a file, a folder or a data set on the hub.

    Args:
        name: See `pcrm.data.sources`.
        split: Split to read, if the data set has splits.

    Raises:
        OSError, ValueError: As from `open_source`. There are no rows, or a row is not a pair: the message names its place.
    """
    rows: list[Row] = []
    for batch in open_source(name, split).batches():
        for i, row in enumerate(batch.rows()):
            try:
                if isinstance(row, RowError):
                    raise row
                rows.append(_pair(row, rows[0] if rows else None))
            except RowError as error:
                raise ValueError(f"{batch.place(i)}: {error.message}") from None
    if not rows:
        raise ValueError(f"{name} must have at least one row, got none")
    return rows


def check_pair(row: Row) -> None:
    """Raise RowError if a row is not a preference pair in one of TRL's formats."""
    for key in ("chosen", "rejected"):
        if row.get(key) is None:
            hint = ". Make pairs of the rankings first: pcrm pairs DATA --out PAIRS" if "responses" in row else ""
            raise RowError(f"a pair must have chosen and rejected, got the keys {listed(row)}{hint}")
    texts(row.get("prompt"), row["chosen"], row["rejected"])


def _pair(row: Row, first: Row | None) -> Row:
    """The columns of a row that count, checked."""
    check_pair(row)
    row = {key: row[key] for key in _COLUMNS if row.get(key) is not None}
    if "prior" in row and not 0 <= finite("prior", row["prior"]) <= 1:
        raise RowError(f"prior must be in [0, 1], got {row['prior']:g}")
    for key in ("prompt", "chosen", "prior"):
        if first is not None and type(row.get(key)) is not type(first.get(key)):
            raise RowError(f"{key} must be {_kind(first.get(key))}, as in the first row, got {_kind(row.get(key))}")
    return row


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    return {"str": "a text", "list": "a list of messages"}.get(type(value).__name__, "a number")


def prompt_of(row: Row) -> str:
    """What tells rows of the same prompt: the prompt, or what chosen and rejected begin with."""
    prompt = row.get("prompt")
    if prompt is None:
        prompt = row["chosen"][: shared(row["chosen"], row["rejected"])]
    return json.dumps(prompt)


def split_pairs(rows: list[Row], test: list[Row] | None, seed: int, most: int | None = None) -> Split:
    """Split pairs by prompt, since pairs of one prompt share responses.

    Without `test`, a fifth of the pairs is held out to evaluate on, at most 2,000. A fifth of the others, at most 1,000,
    is held out to fit the temperature on. Whole prompts are held out, so the parts are a little larger.

    Args:
        rows: The pairs to train on.
        test: The pairs to evaluate on, if the user has some. Rows with a prompt that is in there are left out.
        seed: Of the choice of prompts.
        most: Most pairs to train on.

    Raises:
        ValueError: There are too few prompts.
    """
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(prompt_of(row), []).append(row)
    dropped = 0
    if test is not None:
        for prompt in {prompt_of(row) for row in test}:
            dropped += len(by_prompt.pop(prompt, []))
    needed = 3 if test is None else 2
    if len(by_prompt) < needed:
        other = " that the evaluation data do not have" if test is not None else ""
        raise ValueError(
            f"the pairs must have at least {needed} different prompts{other}, to split them by prompt, got {len(by_prompt)}"
        )
    prompts = sorted(by_prompt)
    random.Random(seed).shuffle(prompts)

    def held_out(wanted: int, leave: int) -> list[Row]:
        part: list[Row] = []
        while len(prompts) > leave and len(part) < wanted:
            part += by_prompt[prompts.pop()]
        return part

    left = sum(map(len, by_prompt.values()))
    if test is None:
        test = held_out(min(_MOST_TEST, max(1, left // 5)), 2)
        left -= len(test)
    temperature = held_out(min(_MOST_TEMPERATURE, max(1, left // 5)), 1)
    train = [row for prompt in prompts for row in by_prompt[prompt]]
    return Split(train[:most], temperature, test, dropped)


def write_pairs(path: Path, rows: list[Row]) -> None:
    """Write rows as JSON lines, unless the file already contains them, because resumed scoring needs an unchanged file."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
