"""Checks of preference data before training: `pcrm check`.

`check` reads the rows once. `data.check_preferences` finds the problems of rows. This module measures: lengths, shared
beginnings, the prior and the effect of targets, how a reward model judges the labels, and the overlap of two files. A row
takes about 200 bytes of memory, however long its texts are. For a ranking, its first best and its first worst response
are measured.
"""

from __future__ import annotations

import json
import math
import random
import textwrap
import warnings
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _check
from .._engine.native import chosen_library
from .._engine.texts import lexicals
from ..data.batches import Batch
from ..data.check_preferences import COLUMNS, FORMATS, OF_ROWS, Example, Finding, Level, Preference, Survey, empty_file
from ..data.preferences import RowError, inputs
from ..data.sources import Source
from ..settings import Constraint

if TYPE_CHECKING:
    from .reward_model import RewardModel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SCHEMA = 1  # version of the JSON; increases when a key changes its meaning or is removed
PRIORS = ("lexical", "length_ratio", "column")

_TEXTS = {"chosen", "rejected", "responses"}
_WIDTH = 112  # maximal width of lines of text, if words allow it
_ROW = 6  # numbers kept per row

# The targets of the trial fit.
_ALIKE, _UNLIKE = 1.0, 3.0
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Warn if the fraction of longer chosen responses is farther from one half than this.
_LENGTH_BIAS = 0.05
# A reward model scores at most this many pairs, drawn at random. A fraction of them has an interval of +-.02.
SCORED_PAIRS = 2000
# Prefix sharing ignores common beginnings with fewer tokens. A token of English text has about four characters.
_MIN_SHARED, _CHARACTERS = 16, 4


@dataclass
class DataCheck:
    """The result of `check`.

    Attributes:
        name, split, other: The data that was read.
        rows: The number of rows.
        formats: The number of rows in each format, by the keys of `FORMATS`, the most frequent first.
        findings: Errors first, then warnings, then information.
        not_found: The ids of errors and warnings that were checked and not found. Empty if no row could be read.
    """

    name: str
    split: str
    other: str | None
    rows: int
    formats: dict[str, int]
    findings: list[Finding]
    not_found: list[str] = field(default_factory=list)

    def count(self, level: str) -> int:
        """The number of findings with a level."""
        return sum(finding.level == level for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON. docs/check.md describes each key."""
        return {
            "schema": SCHEMA,
            "data": self.name,
            "split": self.split,
            "other": self.other,
            "rows": self.rows,
            "formats": self.formats,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "findings": [
                {
                    "id": f.id,
                    "level": f.level,
                    "message": f.message,
                    "count": f.count,
                    "total": f.total,
                    "share": f.share,
                    "remedy": f.remedy,
                    "examples": [{"place": e.place, "why": e.why} for e in f.examples],
                    "numbers": f.numbers,
                }
                for f in self.findings
            ],
            "not_found": self.not_found,
        }

    def lines(self) -> list[str]:
        """The result as lines of text, the most severe findings first."""
        levels = [f"{n:,} {level}{'s' * (n != 1)}" for level in ("error", "warning") if (n := self.count(level))]
        formats = "; ".join(f"{FORMATS[name]} ({count:,})" for name, count in self.formats.items())
        rows = f"{self.rows:,} row{'s' * (self.rows != 1)}"
        lines = [f"{self.name}: {rows}, {' and '.join(levels) or 'no errors or warnings'}"]
        lines += [f"format: {formats}"] if formats else []
        for f in self.findings:
            count = f": {f.count:,} of {f.total:,} ({f.share:.2%})" if f.total and not f.numbers else ""
            lines += ["", *_wrapped(f"{f.level:<9}", f.message + count)]
            lines += [f"{'':<9}{line}" for line in f.table]
            lines += _wrapped(f"{'':<9}-> ", f.remedy) if f.remedy else []
            lines += [f"{'':<12}{example}" for example in f.examples]
        if self.not_found:
            names = ", ".join(name.replace("_", " ") for name in self.not_found)
            lines += ["", *_wrapped("not found: ", names)]
        return lines


def _wrapped(first: str, text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False)


def check(
    source: Source,
    *,
    other: Source | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    prior: str | None = None,
    model: RewardModel | None = None,
) -> DataCheck:
    """Check preference data before training on it. The data is read once.

    Args:
        source: Pairs or rankings.
        other: Data that must not share prompts with `source`, such as evaluation data.
        tokenizer: A `transformers` tokenizer, to count tokens. Without it, lengths are in characters.
        max_length: The maximum number of tokens of a prompt with its response in training.
        prior: One of `PRIORS`. By default `column` if the rows have a column `prior`, else `lexical`.
        model: A trained reward model that judges the labels of up to `SCORED_PAIRS` pairs.

    Raises:
        OSError: A file cannot be opened.
        ValueError: `prior` is not one of `PRIORS`; `prior` is `length_ratio` without a tokenizer, or `column` without such a
            column; the rows are conversations, and the tokenizer has no chat template.
    """
    if prior is not None and _check.one_of("prior", prior, PRIORS) == "length_ratio" and tokenizer is None:
        raise ValueError("tokenizer must be given for the prior 'length_ratio', got None")
    survey, measures = Survey("", "row"), _Measures(tokenizer, prior, sampled=0 if model is None else SCORED_PAIRS)
    ended = _read(source, survey, lambda found: measures.add(found, survey))
    if prior == "column" and not survey.with_prior:
        raise ValueError(
            f"{source.name}: must have a column 'prior' for --prior column, got none in any row. Add it with `pcrm prior`"
        )
    found: list[tuple[str, Finding | None]] = [("unreadable_file", _unreadable_file(ended, survey.rows))]
    found += [(finding.__name__, finding(survey)) for finding in OF_ROWS if not (ended and finding is empty_file)]
    if tokenizer is not None:
        found.append(("chat_template_fails", _chat_template_fails(survey)))
    if other is not None:
        found += _in_common(survey, other)
    sizes = measures.sizes()
    measured: list[Finding | None] = []
    if len(sizes.chosen):
        if tokenizer is not None:
            found.append(("equal_as_tokens", equal_as_tokens(survey, sizes, max_length)))
        if max_length is not None:
            found.append(("over_max_length", over_max_length(survey, sizes, max_length)))
        similarities = measures.similarities(survey, sizes)
        measured += [joined_texts(survey), longer_chosen(sizes), lengths(sizes), repeated_tokens(survey, sizes)]
        measured.append(prior_and_targets(measures.kind, similarities))
    if model is not None:
        measured.append(swapped_labels(survey, measures.sample, model))
    order = ("error", "warning", "info")
    formats = sorted(survey.formats, key=lambda name: -survey.formats[name].count)
    return DataCheck(
        source.name,
        source.split,
        None if other is None else other.name,
        survey.rows,
        {name: survey.formats[name].count for name in formats},
        sorted((f for f in [*(f for _, f in found), *measured] if f is not None), key=lambda f: order.index(f.level)),
        [id for id, f in found if f is None] if survey.good else [],
    )


def _read(source: Source, survey: Survey, use: Callable[[list[Preference]], None]) -> str | None:
    """Add all rows of a source to a survey, with a progress bar, and call `use` with the good rows of each batch.

    Returns:
        Why the file ends early, or None if it does not.
    """
    from tqdm import tqdm

    with tqdm(total=source.total, desc=source.name, unit=" rows", disable=None, mininterval=0.5) as bar:
        batches = source.batches()
        while True:
            try:
                batch = next(batches, None)
            except ValueError as error:
                return str(error)
            if batch is None:
                return None
            if (fraction := source.fraction) is not None:
                bar.total = int(batch.end / fraction)
            use(_surveyed(batch, survey))
            bar.update(batch.end - bar.n)


def _surveyed(batch: Batch, survey: Survey) -> list[Preference]:
    """Add all rows of a batch to the survey, and return the good ones."""
    survey.name, survey.unit = batch.name, batch.unit
    found = batch.rows(COLUMNS)
    if len(found) < len(batch) or any(isinstance(row, dict) and not row.keys() & _TEXTS for row in found[:1]):
        found = batch.rows()  # a table without these columns: messages name the columns that it has
    preferences = (survey.add(row, batch.number(i)) for i, row in enumerate(found))
    return [preference for preference in preferences if preference is not None]


@dataclass
class _Sizes:
    """Lengths of the rows, in tokens or characters.

    Attributes:
        unit: "tokens" or "characters".
        row: The index of the row in the survey, shape (rows,) like the next five.
        prompt: Length of the prompt. In tokens: of the common beginning of both responses.
        chosen, rejected: Length of the response with the prompt.
        common: Length of the common beginning of chosen and rejected, prompt included.
        all_common: Length of the common beginning of all responses of the row.
        whole: Length of each response with its prompt, shape (responses,) like the next two.
        of: The row of the response, as an index into the other arrays.
        digest: The digest of the response with its prompt.
    """

    unit: str
    row: Ints
    prompt: Ints
    chosen: Ints
    rejected: Ints
    common: Ints
    all_common: Ints
    whole: Ints
    of: Ints
    digest: NDArray[np.bytes_]


class _Measures:
    """Measurements of the rows.

    Args:
        tokenizer, prior: As in `check`.
        sampled: The number of pairs for the reward model.

    Attributes:
        kind: The prior.
        sample: The pairs for the reward model, each with its place.
    """

    def __init__(self, tokenizer: Any, prior: str | None, sampled: int) -> None:
        self._tokenizer, self.kind = tokenizer, prior
        self._by_row, self._by_response = array("q"), array("q")
        self._digests = bytearray()
        self._lexical = array("f")
        self._sampled, self._random = sampled, random.Random(0)
        self.sample: list[tuple[int, Preference]] = []
        self._rows = 0

    def add(self, found: list[Preference], survey: Survey) -> None:
        """Measure the next good rows, which are already in the survey."""
        if not found:
            return
        if self.kind is None:
            self.kind = "column" if any(not math.isnan(prior) for prior in survey.priors) else "lexical"
        if self.kind == "lexical":
            pairs = [(p.texts[p.best], p.texts[p.worst]) for p in found]
            self._lexical.extend(_lexical([a for a, _ in pairs], [b for _, b in pairs]))
        tokens = None if self._tokenizer is None else _encoded(self._tokenizer, found, self._rows, survey)
        for i, p in enumerate(found):
            if tokens is None:
                before, texts = len(p.before), p.texts
            else:
                before, texts = 0, tokens[i]
            if texts:
                self._measure(p, before, texts)
            self._draw(p, survey)
            self._rows += 1

    def _measure(self, p: Preference, before: int, texts: list[Any]) -> None:
        first, n = texts[0], len(self._by_row) // _ROW
        common = before + _common(texts[p.best], texts[p.worst])
        all_common = common if len(texts) == 2 else before + min(_common(first, text) for text in texts[1:])
        chosen, rejected = (before + len(texts[i]) for i in (p.best, p.worst))
        prompt = before if self._tokenizer is None else common
        self._by_row.extend((self._rows, prompt, chosen, rejected, common, all_common))
        for text, digest in zip(texts, p.digests, strict=True):
            self._by_response.extend((before + len(text), n))
            self._digests += digest

    def _draw(self, p: Preference, survey: Survey) -> None:
        """Reservoir sampling: every pair has the same chance to be in the sample."""
        if len(self.sample) < self._sampled:
            self.sample.append((survey.numbers[self._rows], p))
        elif self._sampled and (at := self._random.randrange(self._rows + 1)) < self._sampled:
            self.sample[at] = survey.numbers[self._rows], p

    def sizes(self) -> _Sizes:
        row, prompt, chosen, rejected, common, all_common = np.array(self._by_row, np.int64).reshape(-1, _ROW).T
        whole, of = np.array(self._by_response, np.int64).reshape(-1, 2).T
        unit = "characters" if self._tokenizer is None else "tokens"
        digests = np.frombuffer(bytes(self._digests), "S16")
        return _Sizes(unit, row, prompt, chosen, rejected, common, all_common, whole, of, digests)

    def similarities(self, survey: Survey, sizes: _Sizes) -> Floats:
        if self.kind == "column":
            s = np.array(survey.priors)
            return s[~np.isnan(s)]
        if self.kind == "lexical":
            return np.array(self._lexical, np.float64)
        own = np.sort([sizes.chosen - sizes.common, sizes.rejected - sizes.common], axis=0)
        return np.where(own[1] == 0, 1.0, own[0] / np.maximum(own[1], 1))


def _common(a: Any, b: Any) -> int:
    """The length of the common beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def _lexical(chosen: list[str], rejected: list[str]) -> array[float]:
    if (native := chosen_library()) is not None:
        return lexicals(native, chosen, rejected, False)
    from ..priors import lexical

    return array("f", lexical(chosen, rejected).tolist())


def _encoded(tokenizer: Any, found: list[Preference], start: int, survey: Survey) -> list[list[list[int]]]:
    """The token ids of each response with its prompt, as in TRL's `RewardTrainer`. Empty for a row that fails."""
    texts: list[str] = []
    kept: list[int] = []
    templated = False
    for i, p in enumerate(found):
        values: list[Any] = inputs(p.prompt, p.responses, end=tokenizer.eos_token or "")
        if not isinstance(values[0], str):
            templated = True
            try:
                values = [
                    _templated(tokenizer, name, value, p) for name, value in zip(p.responses, values, strict=True)
                ]
            except RowError as error:
                survey.fault("chat_template_fails", survey.numbers[start + i], error.message)
                continue
        kept.append(i)
        texts += values
    ids = iter(tokenizer(texts, add_special_tokens=not templated, verbose=False)["input_ids"] if texts else [])
    encoded: list[list[list[int]]] = [[] for _ in found]
    for i in kept:
        encoded[i] = [next(ids) for _ in found[i].responses]
    return encoded


def _templated(tokenizer: Any, name: str, messages: Any, p: Preference) -> str:
    if tokenizer.chat_template is None:
        raise ValueError(
            "--tokenizer must have a chat template because the rows are conversations, got one without. Use the tokenizer "
            "of the model that you train"
        )
    tools, options = p.row.get("tools"), p.row.get("chat_template_kwargs")
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
        return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **(options or {}))
    except Exception as error:  # a template is a program
        raise RowError(f"{name}: {error}") from None


def _unreadable_file(why: str | None, read: int) -> Finding | None:
    if why is None:
        return None
    message = f"the file cannot be read to its end: {why}"
    rest = f". The other findings cover the {read:,} rows before" if read else ""
    return Finding("unreadable_file", "error", message, 0, 0, f"copy or create the file again{rest}")


def _chat_template_fails(s: Survey) -> Finding | None:
    return s.finding(
        "chat_template_fails",
        "error",
        "conversations for which the chat template fails",
        "fix them, or use another tokenizer",
    )


def _in_common(survey: Survey, other: Source) -> list[tuple[str, Finding | None]]:
    theirs = Survey("", "row")
    ended = _read(other, theirs, lambda found: None)
    return [
        ("unreadable_other", unreadable_other(theirs, other.name, ended)),
        ("shared_pairs", shared_pairs(survey, theirs, other.name)),
        ("shared_prompts", shared_prompts(survey, theirs, other.name)),
    ]


def unreadable_other(theirs: Survey, name: str, ended: str | None) -> Finding | None:
    if ended is not None:
        message = f"{name} cannot be read to its end: {ended}"
        return Finding("unreadable_other", "error", message, 0, 0, "copy or create the file again")
    if not theirs.rows:
        return Finding("unreadable_other", "error", f"{name} has no rows", 0, 0, "check the file and --other-split")
    bad = theirs.faults.get("unreadable_rows")
    if bad is None:
        return None
    message, remedy = f"rows of {name} that cannot be read", f"run `pcrm check {name}` for details"
    return Finding("unreadable_other", "error", message, bad.count, theirs.rows, remedy, theirs.examples(bad))


def shared_pairs(s: Survey, theirs: Survey, name: str) -> Finding | None:
    """An error: evaluation on training pairs measures memorization."""
    return _shared(
        s,
        theirs,
        _where(s.pairs, theirs.pairs),
        "shared_pairs",
        "error",
        f"rows that are also in {name}, in either order",
        "remove them from one of the two, and split by prompt. Evaluation on training pairs overestimates accuracy",
    )


def shared_prompts(s: Survey, theirs: Survey, name: str) -> Finding | None:
    """A warning: evaluation on other responses to training prompts tests new pairs, but not new prompts."""
    at = np.where(s.has_prompt, _where(s.prompts, theirs.prompts), -1)
    return _shared(
        s,
        theirs,
        at,
        "shared_prompts",
        "warning",
        f"rows whose prompt is also in {name}",
        "split by prompt. Accuracy is higher on training prompts than on new ones",
    )


def _shared(s: Survey, theirs: Survey, at: Ints, id: str, level: Level, message: str, remedy: str) -> Finding | None:
    both = np.flatnonzero(at >= 0)
    if not len(both):
        return None
    examples = tuple(
        Example(s.place(s.numbers[i]), f"also {theirs.place(theirs.numbers[at[i]])}") for i in both[:3].tolist()
    )
    return Finding(id, level, message, len(both), s.rows, remedy, examples)


def _where(ours: NDArray[np.bytes_], theirs: NDArray[np.bytes_]) -> Ints:
    """For each element of `ours`, the index of the first equal element of `theirs`, or -1."""
    if not len(theirs):
        return np.full(len(ours), -1)
    unique, first = np.unique(theirs, return_index=True)
    at = np.searchsorted(unique, ours).clip(max=len(unique) - 1)
    return np.where(unique[at] == ours, first[at], -1)


def equal_as_tokens(s: Survey, sizes: _Sizes, max_length: int | None) -> Finding | None:
    """An error: the two responses are identical to the model."""
    limit = np.iinfo(np.int64).max if max_length is None else max_length
    cut = np.minimum([sizes.chosen, sizes.rejected], limit)
    equal = (cut[0] == cut[1]) & (sizes.common >= cut[0])
    whole = (sizes.chosen == sizes.rejected) & (sizes.common == sizes.chosen)
    truncated, whole_count = int((equal & ~whole).sum()), int(whole.sum())
    if not truncated + whole_count:
        return None
    told = [f"{whole_count:,} without truncation"] if whole_count else []
    told += [f"{truncated:,} after truncation to {max_length} tokens"] if truncated else []
    return Finding(
        "equal_as_tokens",
        "error",
        f"rows whose two responses have the same tokens ({', '.join(told)})",
        truncated + whole_count,
        s.rows,
        "remove them, or raise --max-length. TRL's reward trainer drops longer pairs. Its DPO trainer truncates them, so "
        "the two responses become equal",
        _of_rows(s, sizes, equal),
    )


def over_max_length(s: Survey, sizes: _Sizes, max_length: int) -> Finding | None:
    long = np.maximum(sizes.chosen, sizes.rejected) > max_length
    if not long.any():
        return None
    return Finding(
        "over_max_length",
        "warning",
        f"rows with more than {max_length} tokens",
        int(long.sum()),
        s.rows,
        "raise max_length, or shorten the texts. TRL's reward trainer drops these rows without a message; its DPO trainer "
        "truncates them",
        _of_rows(s, sizes, long),
    )


def _of_rows(s: Survey, sizes: _Sizes, which: NDArray[np.bool_]) -> tuple[Example, ...]:
    return tuple(Example(s.place(s.numbers[i])) for i in sizes.row[which][:3].tolist())


def joined_texts(s: Survey) -> Finding | None:
    """An example of the text that a model reads, for plain prompts: TRL puts nothing between prompt and response."""
    if s.joint is None:
        return None
    number, before, after = s.joint
    return Finding(
        "joined_texts",
        "info",
        "prompt and response are joined with nothing between them",
        0,
        0,
        "if something belongs there, such as a line end, add it to the end of the prompts",
        (Example(s.place(number), f"{before!r} + {after!r}"),),
        {"prompt_end": before, "response_start": after},
    )


def longer_chosen(sizes: _Sizes) -> Finding | None:
    difference = sizes.chosen - sizes.rejected
    longer, n = int((difference > 0).sum()), int((difference != 0).sum())
    if not n:
        return None
    low, high = _interval(longer, n)
    biased = low > 0.5 + _LENGTH_BIAS or high < 0.5 - _LENGTH_BIAS
    side = "longer" if 2 * longer >= n else "shorter"
    return Finding(
        "longer_chosen",
        "warning" if biased else "info",
        f"the chosen response is longer in {longer / n:.1%} of the pairs with different lengths (95% interval {low:.1%} to {high:.1%})",
        longer,
        n,
        f"models trained on this data learn to prefer the {side} response. `pcrm report` shows accuracy on pairs whose "
        "chosen response is the shorter one; `pcrm calibrate` removes length bias from scores"
        if biased
        else "",
        numbers={"share": longer / n, "interval": [low, high], "unit": sizes.unit},
    )


def _interval(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of the fraction k / n."""
    z = 1.959964
    middle, half = (k + z * z / 2) / (n + z * z), z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
    return max(0.0, middle - half), min(1.0, middle + half)


def lengths(sizes: _Sizes) -> Finding:
    of = {
        "prompt": sizes.prompt,
        "chosen": sizes.chosen - sizes.prompt,
        "rejected": sizes.rejected - sizes.prompt,
        "longest_with_prompt": np.maximum(sizes.chosen, sizes.rejected),
    }
    numbers = {name: _quantiles(x) | {"1": int(x.max())} for name, x in of.items()}
    table = [f"{'':<22}" + "".join(f"{p:>9.0%}" for p in _QUANTILES) + f"{'max':>9}"]
    for name, row in numbers.items():
        table.append(f"{name.replace('_', ' '):<22}" + "".join(f"{v:>9,.0f}" for v in row.values()))
    n = len(sizes.chosen)
    return Finding(
        "lengths",
        "info",
        f"quantiles of lengths in {sizes.unit}",
        n,
        n,
        numbers={"unit": sizes.unit, **numbers},
        table=tuple(table),
    )


def _quantiles(x: Any) -> dict[str, float]:
    return {f"{p:g}": float(q) for p, q in zip(_QUANTILES, np.quantile(x, _QUANTILES), strict=True)}


def repeated_tokens(s: Survey, sizes: _Sizes) -> Finding:
    """Measure a lower bound of what prefix sharing saves.

    Prefix sharing also shares beginnings that only some of the responses to a prompt have.
    """
    shortest = _MIN_SHARED * (1 if sizes.unit == "tokens" else _CHARACTERS)
    total = int(sizes.whole.sum())
    responses = np.bincount(sizes.of, minlength=len(sizes.row))
    common = np.where(sizes.all_common >= shortest, sizes.all_common, 0)
    in_rows = int(((responses - 1) * common).sum())
    # For each prompt, the common beginning of all its rows counts once, and so does the rest of each distinct response.
    group = np.unique(s.prompts[sizes.row], return_inverse=True)[1]
    of_prompt = np.full(group.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(of_prompt, group, common)
    once = np.unique(sizes.digest, return_index=True)[1]
    together = int(of_prompt.sum() + (sizes.whole[once] - of_prompt[group[sizes.of[once]]]).sum())
    shares = in_rows / total if total else 0.0, 1 - together / total if total else 0.0
    about = "" if sizes.unit == "tokens" else "about "  # token boundaries may be anywhere
    fewer, most = (f"{share:.0%}" for share in shares)
    if fewer == most:
        fewer += f" fewer {sizes.unit}"
    else:
        fewer += f" fewer {sizes.unit} in shuffled batches, and up to {most} if a batch has all rows of a prompt, as in `pcrm score`"
    return Finding(
        "repeated_tokens",
        "info",
        f"{about}{shares[0]:.1%} of the {sizes.unit} repeat the beginning of another response in the same row, and {shares[1]:.1%} "
        "the beginning of any response to the same prompt",
        in_rows,
        total,
        f"pcrm_prefix_sharing=True computes these once: {fewer}" if shares[1] >= 0.2 else "",
        numbers={"unit": sizes.unit, "within_rows": shares[0], "within_prompts": shares[1], "prompts": len(of_prompt)},
    )


def prior_and_targets(kind: str | None, s: Floats) -> Finding | None:
    """The similarities, and the targets that a fit assigns to them."""
    if len(s) < 2:
        return None
    numbers: dict[str, Any] = {"prior": kind, "quantiles": _quantiles(s)}
    named = "the column 'prior'" if kind == "column" else f"the prior {kind!r}"
    head = f"{'':<22}" + "".join(f"{p:>9.0%}" for p in _QUANTILES)
    table = [head, f"{'similarity':<22}" + "".join(f"{v:>9.3f}" for v in numbers["quantiles"].values())]
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            constraint = Constraint.fit(s, target_alike=_ALIKE, target_unlike=_UNLIKE)
    except ValueError:  # the targets are valid, so the similarities do not differ
        return Finding(
            "prior",
            "warning",
            f"{named} is the same for nearly all pairs, so it cannot distinguish similar from dissimilar pairs",
            len(s),
            len(s),
            "use another prior, or pcrm_prior='fixed' with one ceiling for all pairs",
            numbers=numbers,
            table=tuple(table),
        )
    target = np.asarray(constraint.target(s))
    near = (_UNLIKE - _ALIKE) / 10
    ends = float(np.mean(target <= _ALIKE + near)), float(np.mean(target >= _UNLIKE - near))
    numbers["targets"] = {
        "alike": _ALIKE,
        "unlike": _UNLIKE,
        "quantiles": _quantiles(target),
        "near_alike": ends[0],
        "near_unlike": ends[1],
    }
    table.append(f"{'target margin':<22}" + "".join(f"{v:>9.2f}" for v in numbers["targets"]["quantiles"].values()))
    table.append(
        f"{ends[0]:.1%} of the pairs get a target of at most {_ALIKE + near:g}, {ends[1]:.1%} one of at least {_UNLIKE - near:g}"
    )
    table += [str(warning.message) for warning in said]
    return Finding(
        "prior",
        "warning" if said else "info",
        f"{named}, and targets fitted from {_ALIKE:g} for the most similar to {_UNLIKE:g} for the least similar pairs",
        len(s),
        len(s),
        "use another prior, or pcrm_prior='fixed' with one ceiling for all pairs" if said else "",
        numbers=numbers,
        table=tuple(table),
    )


def swapped_labels(s: Survey, sample: list[tuple[int, Preference]], model: RewardModel) -> Finding | None:
    """How often a reward model prefers the rejected response. More than half of the time suggests swapped labels."""
    from tqdm import tqdm

    places, encoded = [], []
    for number, p in sample:
        names = list(p.responses)
        values = dict(zip(names, inputs(p.prompt, p.responses, end=model.end), strict=True))
        how = p.row.get("tools"), p.row.get("chat_template_kwargs")
        try:
            encoded.append([model.encode(names[i], values[names[i]], *how) for i in (p.best, p.worst)])
        except RowError:  # too long for the model
            continue
        places.append(number)
    if not encoded:
        return None
    with tqdm(total=len(encoded), desc=model.name, unit=" pairs", disable=None, mininterval=0.5) as bar:
        scores = model.score(
            [ids for pair in encoded for ids in pair], lambda share: bar.update(int(share * bar.total) - bar.n)
        )
    margins = scores[::2].astype(float) - scores[1::2]
    against, n = int((margins < 0).sum()), int((np.isfinite(margins) & (margins != 0)).sum())
    if not n:
        return None
    low, high = _interval(against, n)
    worst = np.argsort(np.nan_to_num(margins), kind="stable")[: min(3, against)].tolist()
    return Finding(
        "swapped_labels",
        "warning" if low > 0.5 else "info",
        f"{model.name} scores the rejected response higher in {against / n:.1%} of {n:,} pairs (95% interval {low:.1%} to {high:.1%})",
        against,
        n,
        "look at the examples: chosen and rejected may be swapped in some or all rows" if low > 0.5 else "",
        tuple(Example(s.place(places[i]), f"rejected scores {-margins[i]:.3g} higher") for i in worst),
        {"share": against / n, "interval": [low, high], "skipped": len(sample) - len(places)},
    )
