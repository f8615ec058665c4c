"""What the responses of a preference row are, in TRL's formats.

plain           prompt, chosen, rejected: texts
conversational  the same as lists of messages, each with role and content
implicit        either of them without a prompt: chosen and rejected begin with it
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any


class RowError(ValueError):
    """A row that is no preference. Its message begins with the column; `row` is its number, where known."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message if row is None else f"row {row}: {message}")
        self.message, self.row = message, row

    def __reduce__(self) -> tuple[Any, ...]:  # comes out of a worker as it went in
        return RowError, (self.message, self.row)


def listed(names: Iterable[str]) -> str:
    """Names that a file has, for a message: escaped where a terminal would obey them, and no more than one reads."""
    names = iter(names)
    shown = [name if name.isprintable() and len(name) <= 80 else f"{name!r:.80}" for name in islice(names, 20)]
    return ", ".join(shown) + (f" and {more} more" if (more := sum(1 for _ in names)) else "")


def texts(prompt: Any, chosen: Any, rejected: Any, *, with_prompt: bool = False) -> tuple[str, str]:
    """The two responses as texts, after the prompt or without it.

    A row with no prompt, or with a plain one to conversational responses, has it in chosen
    and rejected: it is what both begin with, messages or characters, as in TRL's
    `maybe_extract_prompt`. So much is left that neither response loses its last one. The
    texts of several messages are put together with line ends, a plain prompt and a response
    with nothing between.

    Raises:
        RowError: a column is neither a text nor a list of messages, chosen and rejected are
            not of one kind; a message that counts calls a tool or its content is no text; a
            text is no valid Unicode.
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
            raise RowError(f"{name} is no valid Unicode: {error}") from None
    return pair[0], pair[1]


def text(response: Any) -> str:
    """A response without its prompt as a text.

    Raises:
        RowError: as from `texts`.
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
        raise RowError(f"chosen is {_kind(chosen)}, rejected is {_kind(rejected)}")
    if isinstance(prompt, list) and isinstance(chosen, str):
        raise RowError("prompt is a list of messages, chosen and rejected are texts")
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
    """What a reward model reads for each response: the prompt and it as one, as TRL's `RewardTrainer` has them.

    A text follows a plain prompt with nothing between, messages follow a prompt of messages.
    Responses to no prompt, and messages to a plain one, have it in them.

    Args:
        responses: By the names that errors call them.
        end: What a plain response ends with; added where it does not.

    Raises:
        RowError: a value is neither a text nor a list of messages, they are not of one kind;
            messages to a plain prompt that begin with an answer; a text is no valid Unicode.
    """
    prompt, first = _plain(prompt), next(iter(responses))
    values = {name: _plain(value) for name, value in responses.items()}
    for name, value in [("prompt", prompt), *values.items()]:
        if not (name == "prompt" and value is None):
            _check(name, value)
    joined = []
    for name, value in values.items():
        if type(value) is not type(values[first]):
            raise RowError(f"{first} is {_kind(values[first])}, {name} is {_kind(value)}")
        if isinstance(value, str):
            if isinstance(prompt, list):
                raise RowError(f"prompt is a list of messages, {name} is a text")
            text = (prompt or "") + (value if value.endswith(end) else value + end)
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise RowError(f"{name} with its prompt is no valid Unicode: {error}") from None
            joined.append(text)
        else:
            if isinstance(prompt, str) and value[0]["role"] == "assistant":
                raise RowError(f"prompt is a text, {name} begins with an answer and not with the prompt's message")
            joined.append((prompt if isinstance(prompt, list) else []) + value)
    return joined


def finite(name: str, value: Any) -> float:
    """A number of a row, called `name` in messages: an int, a float, or a Decimal, as Parquet has them.

    Raises:
        RowError: The value is not a number, not finite, or beyond the range of float.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise RowError(f"{name} is {value!r:.80}, must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RowError(f"{name} is {value!r:.80}, must be finite")
    return number


def _plain(value: Any) -> Any:
    """A value as JSON has it: arrays as lists, and what data frames put for nothing as None."""
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
        raise RowError(f"{name} is {_kind(value)}, must be a text or a list of messages")
    if not value and name != "prompt":
        raise RowError(f"{name} has no messages")
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowError(f"{name}[{i}] is {message!r:.80}, must be a message with role and content")


def _contents(name: str, value: str | list[dict[str, Any]], start: int) -> list[str]:
    """The texts of a column from an element on."""
    if isinstance(value, str):
        return [value[start:]]
    contents = []
    for i, message in enumerate(value[start:], start):
        if (calls := _plain(message.get("tool_calls"))) is not None and len(calls):
            raise RowError(f"{name}[{i}] calls a tool, which is no text")
        content = _plain(message.get("content"))
        if not isinstance(content, str):
            raise RowError(f"{name}[{i}] has the content {content!r:.80}, must be a text")
        contents.append(content)
    return contents


def shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many elements both begin with, by TRL's `extract_prompt`: one is left of the shorter
    at least, and a space before the first difference belongs to the responses.
    """
    low, high = 0, max(min(len(a), len(b)) - 1, 0)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low - 1 if low and a[low - 1] == " " and a[low] != b[low] else low
