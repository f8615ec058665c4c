"""JSON texts from files that anybody may have written."""

from __future__ import annotations

import json
import re
from typing import Any

from .preferences import RowError

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()

# JSON and Arrow know no limit, and Python's is where the stack happens to be. Rows of messages
# with tool calls have 10.
_DEPTH = 64


def json_row(line: bytes) -> dict[str, Any] | RowError:
    """Return the object in a line of a JSON Lines file, or what is wrong with the line."""
    try:
        row = json_value(line)
    except RowError as error:
        return error
    if not isinstance(row, dict) or not row:
        return RowError(f"is {row!r:.80}, must be an object with keys")
    return row


def json_value(text: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        RowError: The text is not JSON, or nested more than `_DEPTH` deep.
    """
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise RowError(f"is not JSON: {error}") from None
    if text.count(b"[") + text.count(b"{") > _DEPTH and _is_deep(value):
        raise RowError(f"has lists and objects in each other more than {_DEPTH} deep")
    return value


def json_parts(text: str) -> list[str]:
    """Return the elements of a list, or the keys and values of an object in turn, as they are written in a JSON text.

    Args:
        text: The list or object. It must be valid.
    """
    parts = []
    at = _after_space(text, 1)
    while text[at] not in "]}":
        _, end = _DECODER.raw_decode(text, at)
        parts.append(text[at:end])
        at = _after_space(text, end)
        if text[at] in ",:":
            at = _after_space(text, at + 1)
    return parts


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEPTH):
        level = [v for v in level if isinstance(v, (dict, list))]
        level = [x for v in level for x in (v.values() if isinstance(v, dict) else v)]
    return any(isinstance(v, (dict, list)) for v in level)
