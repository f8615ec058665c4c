"""JSON from files that anybody may have written."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from .preferences import RowError

_SPACE = re.compile(r"[ \t\n\r]*")
_LINE_END = re.compile(r"[ \t]*[\n\r][ \t\n\r]*")
_DECODER = json.JSONDecoder()
_PART = 1 << 20  # bytes of an array read at once, at least

# JSON and Arrow have no limit. Python's depends on how deep the stack is already. Rows of messages with tool calls
# have a depth of about 10.
_DEPTH = 64


def json_row(line: bytes) -> dict[str, Any] | RowError:
    """Return the object in a line of a JSON Lines file, or what is wrong with the line."""
    try:
        row = json_value(line)
    except RowError as error:
        return error
    if not isinstance(row, dict) or not row:
        return RowError(f"must be a JSON object with keys, got {row!r:.80}")
    return row


def json_value(text: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        RowError: The text is not JSON, or nested more than `_DEPTH` deep.
    """
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise RowError(f"must be JSON: {error}") from None
    if text.count(b"[") + text.count(b"{") > _DEPTH and _is_deep(value):
        raise RowError(f"must be nested at most {_DEPTH} deep")
    return value


def json_parts(text: str) -> list[str]:
    """Return the elements of a list, or alternating keys and values of an object, exactly as a JSON text writes them.

    Args:
        text: The list or object. It must be valid JSON.
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


def is_array(file: BinaryIO) -> bool:
    """Whether the first character of a JSON file is the bracket of an array."""
    while part := file.read(_PART):
        if text := part.removeprefix(codecs.BOM_UTF8).lstrip(b" \t\n\r"):
            return text.startswith(b"[")
    return False


def array_elements(file: BinaryIO, longest: int) -> Iterator[bytes]:
    """Read a JSON array in parts. Yield each element as one line of JSON, with its digits and escapes as they are.

    Args:
        longest: Bytes of an element, at most.

    Raises:
        ValueError: The file is not a JSON array, or has a longer element.
    """
    reader = _Parts(file)
    reader.skip("[")
    if reader.next_character() != "]":
        while True:
            yield reader.element(longest)
            if reader.next_character() != ",":
                break
            reader.skip(",")
    reader.skip("]")
    if reader.next_character():
        raise ValueError("must have nothing after the JSON array, got more text")


class _Parts:
    """A JSON text that is read from a file as far as it is needed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._text, self._at, self._ended = "", 0, False
        self._bad_byte: int | None = None  # what follows the text, if it is not UTF-8

    def next_character(self) -> str:
        """The next character after white space, "" at the end."""
        while (at := _after_space(self._text, self._at)) == len(self._text) and not self._ended:
            self._at = at
            self._read_more()
        self._at = at
        return self._text[at : at + 1]

    def skip(self, character: str) -> None:
        """Go past a character."""
        if (found := self.next_character()) != character:
            wanted = "',' or ']'" if character == "]" else repr(character)
            raise ValueError(f"must have {wanted} next, as in a JSON array, got {found or 'the end of the file'!r}")
        self._at += 1

    def element(self, longest: int) -> bytes:
        """Go past a value, and return it on one line."""
        self.next_character()
        while True:
            try:
                _, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise ValueError(f"must be JSON: {error}") from None
            except ValueError as error:
                if self._ended:
                    message = error.msg if isinstance(error, json.JSONDecodeError) else error
                    raise ValueError(f"must be JSON: {message}") from None
            else:
                if end < len(self._text) or self._ended:  # else a number may have more digits
                    break
            if len(self._text) - self._at > longest:
                raise ValueError(f"must be a JSON value of at most {longest} bytes")
            self._read_more()
        # In JSON, line ends are between values, never in a text.
        line = _LINE_END.sub(" ", self._text[self._at : end]).encode()
        self._at = end
        if len(line) > longest:
            raise ValueError(f"must be a JSON value of at most {longest} bytes")
        return line

    def _read_more(self) -> None:
        if self._bad_byte is not None:
            raise ValueError(f"must be UTF-8, got the byte 0x{self._bad_byte:02x}")
        rest = self._text[self._at :]
        part = self._file.read(max(_PART, len(rest)))
        self._ended = not part
        try:
            more = self._decode(part, self._ended)
        except UnicodeDecodeError as error:  # an element before the byte may be good
            more = error.object[: error.start].decode("utf-8" if self._text else "utf-8-sig")
            self._bad_byte, self._ended = error.object[error.start], False
        self._text, self._at = rest + more, 0


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
