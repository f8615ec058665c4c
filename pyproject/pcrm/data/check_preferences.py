"""Problems of preference data, found in one pass that keeps no texts.

A `Survey` takes rows one by one. It counts problems of single rows, with their first places, and keeps 16-byte digests for
problems that only show across rows. Each function below it makes one finding. Trainers run `check_dataset`.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import takewhile
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .arrow_rows import rows_of
from .preferences import RowError, finite, inputs, listed, shared
from .rankings import ranking_column

Level = Literal["error", "warning", "info"]
Digests = NDArray[np.bytes_]

COLUMNS = ("prompt", "chosen", "rejected", "responses", "ratings", "ranks", "prior", "tools", "chat_template_kwargs")
# The formats of rows, by their names in `pcrm check --json`.
FORMATS = {
    "pairs": "pairs of texts with a prompt",
    "pairs_without_prompt": "pairs of texts that begin with their prompt",
    "conversations": "pairs of conversations with a prompt",
    "conversations_without_prompt": "pairs of conversations that begin with their prompt",
    "conversations_with_text_prompt": "pairs of conversations with a text as prompt",
    "rankings": "rankings of texts with a prompt",
    "rankings_without_prompt": "rankings of texts that begin with their prompt",
    "ranked_conversations": "rankings of conversations with a prompt",
    "ranked_conversations_without_prompt": "rankings of conversations that begin with their prompt",
    "ranked_conversations_with_text_prompt": "rankings of conversations with a text as prompt",
}
_PLACES = 3
_NO_SPACES = "\u2e80"  # scripts from here on put no spaces between words
_JOINT = 16  # characters shown on either side
_PROMPT = 32  # a common beginning of two responses counts as their prompt from this many characters on
_DATASET_ROWS = 4096  # rows of a data set in memory at once


@dataclass(frozen=True)
class Example:
    """A row with a finding: its place, and a detail about this row."""

    place: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.why}" if self.why else self.place


@dataclass(frozen=True)
class Finding:
    """Something to know before training.

    Attributes:
        id: The name in `pcrm check --json`.
        level: "error" is a problem of the data, "warning" may be one, "info" is not.
        message: What was found.
        count, total: How many rows are affected, out of how many.
        remedy: What to do.
        examples: The first affected rows.
        numbers: The measurements.
        table: The measurements as lines of text.
    """

    id: str
    level: Level
    message: str
    count: int
    total: int
    remedy: str = ""
    examples: tuple[Example, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    table: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        return self.count / self.total if self.total else 0.0


class _Fault(RowError):
    """A row that can be read but not used, with the id of its finding, and its format if known."""

    def __init__(self, id: str, message: str, format: str | None = None) -> None:
        super().__init__(message)
        self.id, self.format = id, format


@dataclass(slots=True)
class Preference:
    """A parsed row.

    Attributes:
        format: A key of `FORMATS`.
        prompt: The row's prompt, or None.
        responses: The row's responses, by their names in messages.
        before: The prompt as a text. For responses that contain their prompt, their common beginning.
        texts: The responses as texts, without the prompt.
        ratings: The rating of each response. For a pair, 1 and 0.
        best, worst: The indices of chosen and rejected. For a ranking, the first best and the first worst response.
        prompt_digest, digests: Digests of the prompt, and of each response with its prompt.
        row: The row.
    """

    format: str
    prompt: Any
    responses: dict[str, Any]
    before: str
    texts: list[str]
    ratings: list[float]
    best: int
    worst: int
    prompt_digest: bytes
    digests: list[bytes]
    row: dict[str, Any]


def parse(row: dict[str, Any]) -> Preference:
    """Parse a row.

    Raises:
        RowError: The row is not a preference, or it is a ranking without a comparison.
    """
    prompt = row.get("prompt")
    if not isinstance(prompt, (str, list)):
        prompt = None
    if "chosen" in row and "rejected" in row and row.get("responses") is None:
        return _preference(row, prompt, {name: row[name] for name in ("chosen", "rejected")}, [1.0, 0.0])
    if row.get("responses") is None or (row.get("ratings") is None and row.get("ranks") is None):
        raise RowError(
            "must have the keys chosen and rejected, or responses with ratings or ranks, got "
            + listed(name for name, value in row.items() if value is not None)
        )
    responses = row["responses"]
    if not isinstance(responses, list):
        raise RowError(f"responses must be a list of texts or lists of messages, got {responses!r:.80}")
    if len(responses) < 2:
        raise _Fault("few_responses", f"responses must have at least 2 elements, got {len(responses)}")
    ratings = _ratings(row, len(responses))
    preference = _preference(row, prompt, {f"responses[{i}]": r for i, r in enumerate(responses)}, ratings)
    if len(set(ratings)) == 1:
        raise _Fault("only_ties", "", preference.format)
    return preference


def _ratings(row: dict[str, Any], n: int) -> list[float]:
    """The ratings of n responses, higher is better. Ranks, where 1 is best, are negated."""
    name = ranking_column(row)
    values = row[name]
    if not isinstance(values, list) or len(values) != n:
        got = f"{len(values)} numbers" if isinstance(values, list) else f"{values!r:.80}"
        raise _Fault("unequal_lists", f"{name} must be a list of {n} numbers, one for each response, got {got}")
    try:
        numbers = [finite(f"{name}[{i}]", value) for i, value in enumerate(values)]
    except RowError as error:
        raise _Fault("bad_ratings", error.message) from None
    return numbers if name == "ratings" else [-number for number in numbers]


def _preference(row: dict[str, Any], prompt: Any, responses: dict[str, Any], ratings: list[float]) -> Preference:
    inputs(prompt, responses)  # raises for rows that a reward model cannot read
    values = list(responses.values())
    is_text = isinstance(values[0], str)
    before, start = prompt, 0
    if prompt is None or type(prompt) is not type(values[0]):
        start = min(shared(values[0], value) for value in values[1:])
        before = values[0][:start]
    own = [value[start:] for value in values] if start else values
    names = list(responses)
    prompt_digest = _digest(before)
    kind = "rankings" if "chosen" not in responses else "pairs"
    if not is_text:
        kind = "ranked_conversations" if kind == "rankings" else "conversations"
    return Preference(
        format=kind
        + ("_without_prompt" if prompt is None else "" if type(prompt) is type(values[0]) else "_with_text_prompt"),
        prompt=prompt,
        responses=responses,
        before=before if is_text else _said("prompt", before),
        texts=own if is_text else [_said(name, messages) for name, messages in zip(names, own, strict=True)],
        ratings=ratings,
        best=ratings.index(max(ratings)),
        worst=ratings.index(min(ratings)),
        prompt_digest=prompt_digest,
        digests=[_digest(value, prompt_digest) for value in own],
        row=row,
    )


def _said(name: str, messages: list[dict[str, Any]]) -> str:
    """The texts of messages. Anything else, such as a tool call, counts as its JSON."""
    parts = []
    for message in messages:
        content = message.get("content")
        parts.append(
            content if isinstance(content, str) else "" if content is None else json.dumps(content, default=str)
        )
        if calls := message.get("tool_calls"):
            parts.append(json.dumps(calls, default=str))
    text = "\n".join(parts)
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{name} must be valid Unicode: {error}") from None
    return text


def _digest(value: Any, before: bytes = b"") -> bytes:
    if isinstance(value, str):
        data = value.encode()
    else:  # a table has null for a key that a line of JSON lacks
        messages = [{k: v for k, v in message.items() if v is not None} for message in value]
        data = b"\0" + json.dumps(messages, sort_keys=True, default=str).encode()
    return blake2b(before + data, digest_size=16).digest()


def _runs_on(prompt: str, response: str) -> bool:
    """Whether a response continues the last word of its prompt without a space, in scripts with spaces.

    A prompt that ends with a bracket or a line end may be a template, which needs no space.
    """
    last, first = prompt[-1], response[:1]
    return first.isalnum() and (last.isalnum() or last in ".,:;?!") and max(last, first) < _NO_SPACES


def _leading(messages: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    """The messages before the first answer."""
    return [(m["role"], m.get("content")) for m in takewhile(lambda m: m["role"] != "assistant", messages)]


class Tally:
    """The number of affected rows, and the first of them."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[tuple[int, str]] = []

    def add(self, number: int, why: str = "") -> None:
        self.count += 1
        if len(self.first) < _PLACES:
            self.first.append((number, why))


class Survey:
    """The information that a pass over rows keeps.

    Args:
        name: The start of each place, such as the name of the file, or "".
        unit: The unit of places: "line" or "row".

    Attributes:
        rows: The number of rows.
        good: The number of rows that are valid preferences.
        formats, faults: The rows of each format, and of each finding by id.
        with_prior, without_prior: The number of pairs with a column `prior`, and the pairs without it.
        numbers: The places of the good rows.
        priors: Their column `prior`, NaN without one.
        joint: The place of the first plain prompt with its response, and the texts on either side of where they are joined.
    """

    def __init__(self, name: str, unit: str) -> None:
        self.name, self.unit = name, unit
        self.rows = 0
        self.formats: dict[str, Tally] = {}
        self.faults: dict[str, Tally] = {}
        self.numbers, self.priors = array("q"), array("d")
        self.with_prior, self.without_prior = 0, Tally()
        self.joint: tuple[int, str, str] | None = None
        self._pairs, self._prompts = bytearray(), bytearray()
        self._flipped, self._has_prompt = bytearray(), bytearray()

    @property
    def good(self) -> int:
        return len(self.numbers)

    def add(self, row: dict[str, Any] | RowError, number: int) -> Preference | None:
        """Add the next row, and return it parsed, or None if it cannot be used."""
        self.rows += 1
        try:
            if isinstance(row, RowError):
                raise row
            preference = parse(row)
        except _Fault as error:
            if error.format is not None:
                self._count_format(error.format, number)
            self.fault(error.id, number, error.message)
            return None
        except RowError as error:
            self.fault("unreadable_rows", number, error.message)
            return None
        self._count_format(preference.format, number)
        for id, why in _faults_of(preference):
            self.fault(id, number, why)
        if self.joint is None and preference.prompt and preference.format in ("pairs", "rankings"):
            response = preference.texts[preference.best]
            self.joint = number, preference.prompt[-2 * _JOINT :], response[: 2 * _JOINT]
        digests = preference.digests
        self.numbers.append(number)
        self.priors.append(self._prior(preference, number))
        self._prompts += preference.prompt_digest
        self._pairs += blake2b(b"".join(sorted(digests)), digest_size=16).digest()
        least = _PROMPT if preference.format in ("pairs_without_prompt", "rankings_without_prompt") else 1
        self._has_prompt.append(len(preference.before) >= least)
        self._flipped.append("chosen" in preference.responses and digests[0] > digests[1])
        return preference

    def _count_format(self, format: str, number: int) -> None:
        self.formats.setdefault(format, Tally()).add(number)

    def _prior(self, preference: Preference, number: int) -> float:
        if "chosen" not in preference.responses:  # a ranking has one prior for each of its pairs
            return math.nan
        if "prior" not in preference.row:
            self.without_prior.add(number, "must have a prior, got none")
            return math.nan
        self.with_prior += 1
        try:
            prior = finite("prior", preference.row["prior"])
            if not 0 <= prior <= 1:
                raise RowError(f"prior must be in [0, 1], got {prior:g}")
        except RowError as error:
            self.fault("bad_priors", number, error.message)
            return math.nan
        return prior

    def fault(self, id: str, number: int, why: str = "") -> None:
        """Add a row to a finding."""
        self.faults.setdefault(id, Tally()).add(number, why)

    @property
    def prompts(self) -> Digests:
        """A digest of each good row's prompt."""
        return np.frombuffer(bytes(self._prompts), "S16")

    @property
    def pairs(self) -> Digests:
        """A digest of each good row that does not depend on the order of its responses."""
        return np.frombuffer(bytes(self._pairs), "S16")

    @property
    def flipped(self) -> NDArray[np.bool_]:
        """Which of the two orders each pair has."""
        return np.frombuffer(bytes(self._flipped), np.bool_)

    @property
    def has_prompt(self) -> NDArray[np.bool_]:
        """Which rows have a prompt that identifies them."""
        return np.frombuffer(bytes(self._has_prompt), np.bool_)

    def place(self, number: int) -> str:
        return f"{self.name}, {self.unit} {number}" if self.name else f"{self.unit} {number}"

    def examples(self, tally: Tally) -> tuple[Example, ...]:
        return tuple(Example(self.place(number), why) for number, why in tally.first)

    def finding(self, id: str, level: Level, message: str, remedy: str) -> Finding | None:
        """The finding with this id, or None if no row was added to it."""
        if (tally := self.faults.get(id)) is None:
            return None
        return Finding(id, level, message, tally.count, self.rows, remedy, self.examples(tally))


def _faults_of(p: Preference) -> Iterable[tuple[str, str]]:
    """The problems of a parsed row: ids of findings, each with a detail."""
    values, names = list(p.responses.values()), list(p.responses)
    blank = [name for name, text in zip(names, p.texts, strict=True) if not text or text.isspace()]
    if blank:
        yield "empty_responses", ", ".join(blank)
    if len(set(p.digests)) < len(p.digests):
        rated = list(zip(p.digests, p.ratings, strict=True))
        same = [name for name, (d, r) in zip(names, rated, strict=True) if any(d == e and r != q for e, q in rated)]
        if same:
            yield "identical_responses", "" if "chosen" in p.responses else ", ".join(same)
    if isinstance(values[0], list):
        leading = [_leading(value) for value in values]
        if any(other != leading[0] for other in leading[1:]):
            yield "different_prompts", ""
        elif p.prompt is None and not p.before:
            yield "missing_prompts", ""
        if p.format.endswith("_with_text_prompt"):
            yield "text_prompts", ""
    elif p.prompt is None and not p.before:
        yield "missing_prompts", ""
    elif p.prompt:
        joined = [f"{p.prompt[-_JOINT:]}{text[:_JOINT]}" for text in values if _runs_on(p.prompt, text)]
        if joined:
            yield "joined_words", f"{joined[0]!r}"
    if p.prompt and type(p.prompt) is type(values[0]):
        begins = [value[: len(p.prompt)] == p.prompt for value in values]
        if all(begins):
            yield "repeated_prompts", ""


def empty_file(s: Survey) -> Finding | None:
    if s.rows:
        return None
    return Finding("empty_file", "error", "the file has no rows", 0, 0, "check the file and --split")


def unreadable_rows(s: Survey) -> Finding | None:
    return s.finding(
        "unreadable_rows",
        "error",
        "rows that cannot be read",
        ("write each row as a JSON object on its own line, or remove it" if s.unit == "line" else "fix or remove them")
        + ". Trainers stop at such rows. `pcrm prior` and `pcrm score` skip them with --on-error skip",
    )


def mixed_formats(s: Survey) -> Finding | None:
    if len(s.formats) < 2:
        return None
    most, *others = sorted(s.formats, key=lambda name: -s.formats[name].count)
    examples = tuple(
        Example(place.place, FORMATS[name]) for name in others for place in s.examples(s.formats[name])[:1]
    )
    return Finding(
        "mixed_formats",
        "error",
        f"rows in a different format from the majority ({FORMATS[most]})",
        sum(s.formats[name].count for name in others),
        s.rows,
        "write all rows in one format, or one file per format. Trainers assume that all rows have the format of the first",
        examples[:_PLACES],
    )


def empty_responses(s: Survey) -> Finding | None:
    return s.finding(
        "empty_responses",
        "error",
        "rows with an empty response",
        "remove them, or find out where the texts got lost",
    )


def identical_responses(s: Survey) -> Finding | None:
    """An error: the margin of such a pair is always 0 without a gradient, and accuracy counts the pair as wrong."""
    return s.finding(
        "identical_responses",
        "error",
        "rows with identical responses",
        "remove them. Their margin is 0 without a gradient, they lower accuracy, and a fit counts them as the most similar pairs",
    )


def different_prompts(s: Survey) -> Finding | None:
    return s.finding(
        "different_prompts",
        "error",
        "rows whose conversations answer different prompts",
        "give both conversations of a pair the same messages before the first answer",
    )


def text_prompts(s: Survey) -> Finding | None:
    """An error: TRL's trainers concatenate prompt and response, which fails for a text and a list."""
    return s.finding(
        "text_prompts",
        "error",
        "conversations that begin with their prompt and also have a text as prompt",
        "remove the column 'prompt'. TRL's trainers fail with it",
    )


def repeated_prompts(s: Survey) -> Finding | None:
    return s.finding(
        "repeated_prompts",
        "warning",
        "rows whose responses repeat their prompt",
        "remove the column 'prompt', or remove the prompt from the responses. Otherwise the model reads it twice",
    )


def joined_words(s: Survey) -> Finding | None:
    return s.finding(
        "joined_words",
        "warning",
        "rows whose response follows the prompt without a space",
        "end the prompts with a space or a line end. Trainers put nothing between a prompt and its response",
    )


def missing_prompts(s: Survey) -> Finding | None:
    return s.finding(
        "missing_prompts",
        "warning",
        "rows without a prompt, whose responses have no common beginning",
        "check whether the column 'prompt' got lost. Without it the model does not see what the responses answer",
    )


def few_responses(s: Survey) -> Finding | None:
    return s.finding(
        "few_responses", "error", "rankings with fewer than two responses", "remove them. They have nothing to compare"
    )


def unequal_lists(s: Survey) -> Finding | None:
    return s.finding("unequal_lists", "error", "rankings without one rating per response", "fix or remove them")


def bad_ratings(s: Survey) -> Finding | None:
    return s.finding("bad_ratings", "error", "rankings with ratings that are not finite numbers", "fix or remove them")


def only_ties(s: Survey) -> Finding | None:
    return s.finding("only_ties", "warning", "rankings whose ratings are all equal", "remove them. They give no pairs")


def bad_priors(s: Survey) -> Finding | None:
    bad, missing = s.faults.get("bad_priors", Tally()), s.without_prior
    if not s.with_prior:  # no column `prior`
        missing = Tally()
    if not bad.count + missing.count:
        return None
    tally = Tally()
    tally.count, tally.first = bad.count + missing.count, sorted(bad.first + missing.first)[:_PLACES]
    return Finding(
        "bad_priors",
        "error",
        "rows whose column 'prior' is not a number in [0, 1]",
        tally.count,
        s.rows,
        "recompute the column with `pcrm prior`, or rename it. Trainers use it as the prior",
        s.examples(tally),
    )


def both_orders(s: Survey) -> Finding | None:
    _, first, group = np.unique(s.pairs, return_index=True, return_inverse=True)
    flipped = s.flipped
    against = np.flatnonzero(flipped != flipped[first][group])  # not in the order of the first of the group
    if not len(against):
        return None
    contradictory = np.isin(group, group[against])
    return Finding(
        "both_orders",
        "error",
        "pairs that also occur in the opposite order",
        int(contradictory.sum()),
        s.rows,
        "keep the order that most annotators chose, because the labels contradict each other. Keep both only if you want "
        "the disagreement of annotators in the data",
        _beside(s, against, first[group]),
    )


def duplicates(s: Survey) -> Finding | None:
    _, group = np.unique(s.pairs, return_inverse=True)
    _, first, group = np.unique(2 * group + s.flipped, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[group] != np.arange(s.good))
    if not len(again):
        return None
    return Finding(
        "duplicates",
        "warning",
        "rows that occur more than once",
        len(again),
        s.rows,
        "remove the repeats, unless they are votes of several annotators. Training counts each as a separate pair",
        _beside(s, again, first[group]),
    )


def _beside(s: Survey, rows: NDArray[np.int64], firsts: NDArray[np.int64]) -> tuple[Example, ...]:
    """The first of the rows, each with the row that it matches."""
    return tuple(
        Example(s.place(s.numbers[i]), f"same pair as {s.unit} {s.numbers[firsts[i]]}") for i in rows[:_PLACES].tolist()
    )


_Check = Callable[[Survey], Finding | None]
# The findings of a pass over the rows. Trainers report only the last four: other problems stop them or need the model.
IN_TRAINING: tuple[_Check, ...] = (empty_responses, identical_responses, both_orders, duplicates)
OF_ROWS: tuple[_Check, ...] = (
    empty_file,
    unreadable_rows,
    mixed_formats,
    different_prompts,
    text_prompts,
    repeated_prompts,
    joined_words,
    missing_prompts,
    few_responses,
    unequal_lists,
    bad_ratings,
    only_ties,
    bad_priors,
    *IN_TRAINING,
)


def check_dataset(dataset: Any) -> list[Finding]:
    """Check the texts of a `datasets.Dataset` for empty and identical responses, pairs in both orders and duplicates.

    Returns:
        The findings. Empty for a data set without texts, or with token ids in addition to texts.
    """
    columns = [name for name in dataset.column_names if name in COLUMNS]
    has_texts = {"chosen", "rejected"} <= set(columns) or "responses" in columns
    if not has_texts or "chosen_ids" in dataset.column_names:
        return []
    survey, data = Survey("", "row"), dataset.select_columns(columns).with_format("arrow")
    for start in range(0, len(data), _DATASET_ROWS):
        for i, row in enumerate(rows_of(data[start : start + _DATASET_ROWS]), start):
            survey.add(row, i)
    return [finding for check in IN_TRAINING if (finding := check(survey)) is not None]
