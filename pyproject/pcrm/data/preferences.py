"""The responses of a preference row, in TRL's formats.

plain           prompt, chosen, rejected: texts
conversational  the same as lists of messages, each with role and content
implicit        either format without a prompt: chosen and rejected begin with it
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any


class RowError(ValueError):
    """A row that is not a valid preference. The message begins with the column; `row` is its number, if known."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message if row is None else f"row {row}: {message}")
        self.message, self.row = message, row

    def __reduce__(self) -> tuple[Any, ...]:  # pickles exactly, for worker processes
        return RowError, (self.message, self.row)


def listed(names: Iterable[str]) -> str:
    """Names from a file, for a message: control characters escaped, and at most 20 of them."""
    names = iter(names)
    shown = [name if name.isprintable() and len(name) <= 80 else f"{name!r:.80}" for name in islice(names, 20)]
    return ", ".join(shown) + (f" and {more} more" if (more := sum(1 for _ in names)) else "")


def texts(prompt: Any, chosen: Any, rejected: Any, *, with_prompt: bool = False) -> tuple[str, str]:
    """The two responses as texts, with or without the prompt in front.

    In a row without a prompt, or with a plain prompt and conversational responses, the prompt is the common beginning of
    chosen and rejected (messages or characters), as in TRL's `maybe_extract_prompt`. Each response keeps at least one
    element. Texts of several messages are joined with line ends. A plain prompt and a response are joined with nothing
    between them.

    Raises:
        RowError: A column is neither a text nor a list of messages; chosen and rejected are of different kinds; a message
            calls a tool or its content is not a text; a text is not valid Unicode.
    """
    if type(prompt) is type(chosen) is type(rejected) is str:  # most rows of most data sets
        pair = [prompt + chosen, prompt + rejected] if with_prompt else [chosen, rejected]
    else:
        pair = _pair(_plain(prompt), _plain(chosen), _plain(rejected), with_prompt)
    for name, text in zip(("chosen", "rejected"), pair, strict=True):
        try:
            if not text.isascii():
                text.encode()
        except UnicodeEncodeError as error:
            raise RowError(f"{name} must be valid Unicode: {error}") from None
    return pair[0], pair[1]


def text(response: Any) -> str:
    """A response as a text, without its prompt.

    Raises:
        RowError: As from `texts`.
    """
    nothing = "" if isinstance(response, str) else []
    try:
        return texts(nothing, response, response)[0]
    except RowError as error:
        raise RowError(error.message.replace("chosen", "response", 1)) from None


def _pair(prompt: Any, chosen: Any, rejected: Any, with_prompt: bool) -> list[str]:
    for name, value in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        if not (name == "prompt" and value is None):
            _check(name, value)
    if type(chosen) is not type(rejected):
        raise RowError(f"rejected must be {_kind(chosen)} as chosen is, got {_kind(rejected)}")
    if isinstance(prompt, list) and isinstance(chosen, str):
        raise RowError("chosen must be a list of messages as prompt is, got a text")
    start = 0  # where the responses begin in chosen and rejected
    if type(prompt) is not type(chosen):
        prompt = None
        if not with_prompt:
            start = shared(chosen, rejected)
    before = _contents("prompt", prompt or [], 0) if with_prompt else []
    return [
        ("" if isinstance(value, str) else "\n").join(before + _contents(name, value, start))
        for name, value in (("chosen", chosen), ("rejected", rejected))
    ]


def inputs(prompt: Any, responses: Mapping[str, Any], *, end: str = "") -> list[str | list[dict[str, Any]]]:
    """The input of a reward model for each response: prompt and response joined, as in TRL's `RewardTrainer`.

    A plain prompt and its response are joined with nothing between them. Messages follow the messages of the prompt.
    Without a prompt, or with a plain prompt and conversational responses, the responses contain the prompt.

    Args:
        responses: The responses by name. Errors use the names.
        end: Appended to a plain response that does not end with it.

    Raises:
        RowError: A value is neither a text nor a list of messages; the values are of different kinds; the prompt is plain,
            and messages begin with an answer; a text is not valid Unicode.
    """
    prompt, first = _plain(prompt), next(iter(responses))
    values = {name: _plain(value) for name, value in responses.items()}
    for name, value in [("prompt", prompt), *values.items()]:
        if not (name == "prompt" and value is None):
            _check(name, value)
    joined = []
    for name, value in values.items():
        if type(value) is not type(values[first]):
            raise RowError(f"{name} must be {_kind(values[first])} as {first} is, got {_kind(value)}")
        if isinstance(value, str):
            if isinstance(prompt, list):
                raise RowError(f"{name} must be a list of messages as prompt is, got a text")
            text = (prompt or "") + (value if value.endswith(end) else value + end)
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise RowError(f"{name} with its prompt must be valid Unicode: {error}") from None
            joined.append(text)
        else:
            if isinstance(prompt, str) and value[0]["role"] == "assistant":
                raise RowError(
                    f"{name} must begin with the messages of the prompt where prompt is a text, got an assistant's message first"
                )
            joined.append((prompt if isinstance(prompt, list) else []) + value)
    return joined


def finite(name: str, value: Any) -> float:
    """A number of a row as a float: an int, a float, or a Decimal, which Parquet has. Messages call it `name`.

    Raises:
        RowError: The value is not a number, not finite, or outside the range of float.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise RowError(f"{name} must be a number, got {value!r:.80}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RowError(f"{name} must be finite, got {value!r:.80}")
    return number


def _plain(value: Any) -> Any:
    """A value as in JSON: arrays become lists, and NaN, with which data frames mark a missing value, becomes None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return None if isinstance(value, float) and value != value else value


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "a text"
    return "a list of messages" if isinstance(value, list) else f"{value!r:.80}"


def _check(name: str, value: Any) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list):
        raise RowError(f"{name} must be a text or a list of messages, got {_kind(value)}")
    if not value and name != "prompt":
        raise RowError(f"{name} must have at least one message, got an empty list")
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowError(f"{name}[{i}] must be a message with role and content, got {message!r:.80}")


def _contents(name: str, value: str | list[dict[str, Any]], start: int) -> list[str]:
    """The texts of a column, from element `start` on."""
    if isinstance(value, str):
        return [value[start:]]
    contents = []
    for i, message in enumerate(value[start:], start):
        if (calls := _plain(message.get("tool_calls"))) is not None and len(calls):
            raise RowError(f"{name}[{i}] must be a message with a text, got a tool call")
        content = _plain(message.get("content"))
        if not isinstance(content, str):
            raise RowError(f"{name}[{i}].content must be a text, got {content!r:.80}")
        contents.append(content)
    return contents


def shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The length of the common beginning, as in TRL's `extract_prompt`.

    At least one element of the shorter value is left, and a space before the first difference belongs to the responses.
    """
    low, high = 0, max(min(len(a), len(b)) - 1, 0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low - 1 if low and a[low - 1] == " " and a[low] != b[low] else low
