"""Read files of scores into arrays.

A row is one of

    a pair     chosen_score, rejected_score; prior; delta; chosen and rejected, or chosen_length and rejected_length;
               calibrated_chosen_score and calibrated_rejected_score
    a ranking  scores, ratings: lists for one prompt; responses, or lengths
    a score    score; response, or length

Lengths are read from the row if it has them, else they are the characters of its texts, which are in TRL's formats.
A pair may have scores_by_principle, and principles whose scores say what each of them prefers.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.preferences import RowError, finite, listed, shared, text, texts
from ..data.sources import ENDINGS, Batch, open_source
from ..methods import principles

if TYPE_CHECKING:
    import pyarrow as pa

Floats = NDArray[np.float64]

_KINDS = {"chosen_score": "pair", "rejected_score": "pair", "scores": "ranking", "ratings": "ranking", "score": "score"}
_TEXTS = ("prompt", "chosen", "rejected", "response")
_NUMBERS = ("chosen_score", "rejected_score", "prior", "delta", "chosen_length", "rejected_length", "score", "length")
_LISTS = ("scores", "ratings", "lengths")
_BY_PRINCIPLE = "scores_by_principle"
_CALIBRATED = ("calibrated_chosen_score", "calibrated_rejected_score")


@dataclass
class Scores:
    """A model's scores of pairs, rankings and single responses.

    Attributes:
        chosen, rejected: Scores of the pairs, shape (n,).
        prior: Priors of the pairs, in [0, 1], or None if the rows have none. The same holds for delta and lengths.
        delta: For each pair, the constraint that the model was trained with.
        chosen_length, rejected_length: Lengths of the responses of the pairs.
        scores, ratings: All rankings, concatenated. `offsets` has the start of each.
        lengths: Lengths of the responses of the rankings.
        single, single_length: Rows with a single score.
        units: The unit of lengths.
        by_principle: For each principle, the margins of pairs with only this principle in the prompt: the score of the
            response that it prefers minus the other score.
        calibrated: Margins of the pairs after `pcrm calibrate`.
        prior_records: By file, the record of how `prior` was computed, if there is one.
    """

    name: str
    chosen: Floats
    rejected: Floats
    prior: Floats | None
    delta: Floats | None
    chosen_length: Floats | None
    rejected_length: Floats | None
    scores: Floats
    ratings: Floats
    offsets: NDArray[np.int64]
    lengths: Floats | None
    single: Floats
    single_length: Floats | None
    units: str
    by_principle: dict[str, Floats] = field(default_factory=dict)
    calibrated: Floats | None = None
    prior_records: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def margins(self) -> Floats:
        return self.chosen - self.rejected

    def by_length(self) -> tuple[Floats, Floats, NDArray[np.int64]] | None:
        """All scores with a length, the lengths, and the start of each pair, ranking or single response."""
        scores, lengths, sizes = [], [], []
        if self.chosen_length is not None and self.rejected_length is not None:
            scores.append(np.stack([self.chosen, self.rejected], 1).ravel())
            lengths.append(np.stack([self.chosen_length, self.rejected_length], 1).ravel())
            sizes.append(np.full(len(self.chosen), 2))
        if self.lengths is not None:
            scores.append(self.scores)
            lengths.append(self.lengths)
            sizes.append(np.diff(self.offsets))
        if self.single_length is not None:
            scores.append(self.single)
            lengths.append(self.single_length)
            sizes.append(np.ones(len(self.single), np.int64))
        if not scores:
            return None
        return np.concatenate(scores), np.concatenate(lengths), _offsets(np.concatenate(sizes))


def read(arguments: Iterable[str], split: str = "train") -> list[Scores]:
    """Read the models of a report from `FILE` or `NAME=FILE`. Files with the same name belong to the same model.

    Without NAME, the name is that of the file without its ending, with the folder in front if two would be equal.

    Raises:
        OSError: A file does not exist.
        ValueError: A file or row cannot be read; a row is of no kind or of two; a number is missing or not finite; a prior
            is outside [0, 1]; a delta is not greater than 0; only some rows have a prior, delta or length. The message
            has the place.
    """
    files: dict[str, list[str]] = {}
    for name, path in named(list(arguments)):
        files.setdefault(name, []).append(path)
    return [_read(name, paths, split) for name, paths in files.items()]


def named(arguments: list[str]) -> list[tuple[str, str]]:
    """The name and path of each argument, as in `read`."""
    found = []
    plain = [a for a in arguments if os.path.exists(a) or "=" not in a]
    stems = [_stem(os.path.basename(os.path.normpath(a))) for a in plain]
    for argument in arguments:
        if argument not in plain:
            name, _, path = argument.partition("=")
            found.append((name, path))
            continue
        path = os.path.normpath(argument)
        name = _stem(os.path.basename(path))
        if stems.count(name) > 1:
            name = os.path.join(os.path.basename(os.path.dirname(os.path.abspath(path))), name)
        found.append((name, argument))
    return found


def _stem(name: str) -> str:
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    return name


@dataclass
class _Columns:
    """Pieces of the arrays, and for each optional column the first row with it and the first row without it."""

    pieces: dict[str, list[Any]] = field(default_factory=dict)
    present: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    by_principle: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, values: Any) -> None:
        self.pieces.setdefault(name, []).append(values)

    def optional(self, kind: str, name: str, values: Any | None, place: str) -> None:
        """Add a column that either all rows of a kind must have, or none."""
        (self.present if values is not None else self.absent).setdefault(name, place)
        if values is not None:
            self.add(name, values)
        if name in self.present and name in self.absent:
            raise ValueError(
                f"{self.absent[name]}: must have a {name.replace('_', ' ')} as {self.present[name]} has, got none. Give it in all "
                f"{kind} rows or in none"
            )

    def array(self, name: str) -> Floats:
        return np.concatenate(self.pieces.get(name) or [np.empty(0)]).astype(np.float64, copy=False)

    def maybe(self, name: str) -> Floats | None:
        return self.array(name) if name in self.pieces else None


def _read(name: str, paths: list[str], split: str) -> Scores:
    columns = _Columns()
    records: dict[str, dict[str, Any]] = {}
    for path in paths:
        source = open_source(path, split)
        if record := source.prior:
            records[path] = record
        for batch in source.batches():
            if not _plain(batch, columns):
                _row_by_row(batch, columns)
    if not any(columns.pieces.get(k) for k in ("chosen", "scores", "single")):
        raise ValueError(f"{', '.join(paths)}: must have at least one row, got none")
    if len(set(columns.units.values())) > 1:
        a, b, *_ = {unit: place for place, unit in columns.units.items()}.items()
        raise ValueError(
            f"lengths must have one unit in all files, got {a[0]} in {a[1]} and {b[0]} in {b[1]}. Give lengths in all files "
            "or in none"
        )
    return Scores(
        name=name,
        chosen=columns.array("chosen"),
        rejected=columns.array("rejected"),
        prior=columns.maybe("prior"),
        delta=columns.maybe("delta"),
        chosen_length=columns.maybe("chosen_length"),
        rejected_length=columns.maybe("rejected_length"),
        scores=columns.array("scores"),
        ratings=columns.array("ratings"),
        offsets=_offsets(columns.array("sizes").astype(np.int64)),
        lengths=columns.maybe("lengths"),
        single=columns.array("single"),
        single_length=columns.maybe("single_length"),
        units=next(iter(columns.units.values()), "characters"),
        by_principle={name: np.array(margins) for name, margins in columns.by_principle.items()},
        calibrated=columns.maybe("calibrated_score"),
        prior_records=records if "prior" in columns.pieces else {},
    )


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


# The fast path: a valid batch with rows of one kind is read column by column. Any other batch is read row by row, which
# finds the place of an error.


def _plain(batch: Batch, columns: _Columns) -> bool:
    import pyarrow as pa

    schema = pa.schema(
        [(n, pa.string()) for n in _TEXTS]
        + [(n, pa.float64()) for n in (*_NUMBERS, *_CALIBRATED)]
        + [(n, pa.list_(pa.float64())) for n in _LISTS]
        + [("responses", pa.list_(pa.string()))]
        + [(_BY_PRINCIPLE, pa.list_(pa.struct([("principle", pa.string())])))]
    )
    table = batch.table(schema)
    if table is None or not len(table):
        return False
    full = {n for n in table.column_names if table[n].null_count == 0}
    empty = {n for n in table.column_names if table[n].null_count == len(table)}
    if full | empty != set(table.column_names):
        return False
    if _BY_PRINCIPLE in full:
        return False
    kinds = full & _KINDS.keys()
    if kinds == {"chosen_score", "rejected_score"}:
        return _plain_pairs(table, full, batch.place(0), columns)
    if kinds == {"scores", "ratings"}:
        return _plain_rankings(table, full, batch.place(0), columns)
    if kinds == {"score"}:
        return _plain_single(table, full, batch.place(0), columns)
    return False


def _plain_pairs(table: pa.Table, full: set[str], place: str, columns: _Columns) -> bool:
    found = {n: _numpy(table, n) for n in ("chosen_score", "rejected_score")}
    prior = _numpy(table, "prior") if "prior" in full else None
    delta = _numpy(table, "delta") if "delta" in full else None
    given = full & {"chosen_length", "rejected_length"}
    if len(given) == 2:
        found |= {n: _numpy(table, n) for n in given}
    elif given:
        return False
    elif {"chosen", "rejected"} <= full:
        before = 0.0 if "prompt" in full else _shared(table)
        found |= {f"{n}_length": _text_lengths(table[n]) - before for n in ("chosen", "rejected")}
    calibrated = None
    if after := full & set(_CALIBRATED):
        if len(after) == 1:
            return False
        calibrated = _numpy(table, _CALIBRATED[0]) - _numpy(table, _CALIBRATED[1])
    if not _sound(prior, delta, calibrated, *found.values()):
        return False
    if prior is not None and not ((prior >= 0) & (prior <= 1)).all():
        return False
    if delta is not None and not (delta > 0).all():
        return False
    columns.add("chosen", found["chosen_score"])
    columns.add("rejected", found["rejected_score"])
    columns.optional("pair", "calibrated_score", calibrated, place)
    columns.optional("pair", "prior", prior, place)
    columns.optional("pair", "delta", delta, place)
    for n in ("chosen_length", "rejected_length"):
        columns.optional("pair", n, found.get(n), place)
    if "chosen_length" in found:
        columns.units.setdefault(place.partition(",")[0], _units(bool(given)))
    return True


def _plain_rankings(table: pa.Table, full: set[str], place: str, columns: _Columns) -> bool:
    pc: Any = importlib.import_module("pyarrow.compute")  # makes its functions when it is imported

    sizes = pc.list_value_length(table["scores"])
    others = ["ratings", *({"lengths", "responses"} & full)]
    if not all(pc.list_value_length(table[n]).equals(sizes) for n in others):
        return False
    flat = {n: pc.list_flatten(table[n]) for n in ["scores", *others]}
    if any(a.null_count for a in flat.values()) or pc.min(sizes).as_py() == 0:
        return False
    found = {n: a.to_numpy() for n, a in flat.items() if n != "responses"}
    if "lengths" not in found and "responses" in flat:
        found["lengths"] = _text_lengths(flat["responses"])
    if not _sound(*found.values()):
        return False
    columns.add("scores", found["scores"])
    columns.add("ratings", found["ratings"])
    columns.add("sizes", sizes.to_numpy())
    columns.optional("ranking", "lengths", found.get("lengths"), place)
    if "lengths" in found:
        columns.units.setdefault(place.partition(",")[0], _units("lengths" in full))
    return True


def _plain_single(table: pa.Table, full: set[str], place: str, columns: _Columns) -> bool:
    score = _numpy(table, "score")
    length = None
    if "length" in full:
        length = _numpy(table, "length")
    elif "response" in full:
        length = _text_lengths(table["response"])
    if not _sound(score, length):
        return False
    columns.add("single", score)
    columns.optional("score", "single_length", length, place)
    if length is not None:
        columns.units.setdefault(place.partition(",")[0], _units("length" in full))
    return True


def _numpy(table: pa.Table, name: str) -> Floats:
    return table[name].to_numpy()


def _text_lengths(column: Any) -> Floats:
    pc: Any = importlib.import_module("pyarrow.compute")  # makes its functions when it is imported

    return pc.utf8_length(column).to_numpy().astype(np.float64)


def _shared(table: pa.Table) -> Floats:
    """The number of characters that both texts of each row begin with: their prompt."""
    pc: Any = importlib.import_module("pyarrow.compute")  # makes its functions when it is imported

    a, b = table["chosen"], table["rejected"]
    same = pc.equal(pc.utf8_slice_codeunits(a, 0, 1), pc.utf8_slice_codeunits(b, 0, 1))
    at = np.flatnonzero(same.to_numpy())
    before = np.zeros(len(table))
    before[at] = [shared(x, y) for x, y in zip(a.take(at).to_pylist(), b.take(at).to_pylist(), strict=True)]
    return before


def _sound(*arrays: Floats | None) -> bool:
    return all(a is None or bool(np.isfinite(a).all()) for a in arrays)


def _units(given: bool) -> str:
    return "units of the file" if given else "characters"


# The slow path, row by row.


def _row_by_row(batch: Batch, columns: _Columns) -> None:
    others = "responses", _BY_PRINCIPLE, "principles"
    for i, row in enumerate(batch.rows((*_KINDS, *_TEXTS, *_NUMBERS, *_LISTS, *_CALIBRATED, *others))):
        try:
            if isinstance(row, RowError):
                raise row
            row = {k: v for k, v in row.items() if v is not None}
            _one(row, batch.place(i), columns)
        except RowError as error:
            raise ValueError(f"{batch.place(i)}: {error.message}") from None


def _one(row: dict[str, Any], place: str, columns: _Columns) -> None:
    kinds = {_KINDS[k] for k in row if k in _KINDS}
    if len(kinds) != 1:
        got = f"those of a {' and a '.join(sorted(kinds))}" if kinds else listed(row)
        raise RowError(
            f"must have the keys chosen_score and rejected_score, or scores and ratings, or score, got {got}"
        )
    kind = kinds.pop()
    if kind == "pair":
        for name in ("chosen", "rejected"):
            columns.add(name, [number(row, f"{name}_score")])
        calibrated = [number(row, n) for n in _CALIBRATED] if set(_CALIBRATED) & row.keys() else None
        columns.optional(
            "pair", "calibrated_score", None if calibrated is None else [calibrated[0] - calibrated[1]], place
        )
        prior = number(row, "prior") if "prior" in row else None
        if prior is not None and not 0 <= prior <= 1:
            raise RowError(f"prior must be in [0, 1], got {prior:g}")
        columns.optional("pair", "prior", None if prior is None else [prior], place)
        delta = number(row, "delta") if "delta" in row else None
        if delta is not None and not delta > 0:
            raise RowError(f"delta must be greater than 0, got {delta:g}")
        columns.optional("pair", "delta", None if delta is None else [delta], place)
        for name, margin in _by_principle(row).items():
            columns.by_principle.setdefault(name, []).append(margin)
        lengths: list[float] | None = None
        if given := {"chosen_length", "rejected_length"} & row.keys():
            lengths = [number(row, f"{n}_length") for n in ("chosen", "rejected")]
        elif {"chosen", "rejected"} <= row.keys():
            lengths = [float(len(t)) for t in texts(row.get("prompt"), row["chosen"], row["rejected"])]
        for k, n in enumerate(("chosen_length", "rejected_length")):
            columns.optional("pair", n, None if lengths is None else [lengths[k]], place)
    elif kind == "ranking":
        scores, ratings = (numbers(row, n) for n in ("scores", "ratings"))
        if not scores:
            raise RowError("scores must be a non-empty list, got []")
        lengths = None
        if given := "lengths" in row:
            lengths = numbers(row, "lengths")
        elif "responses" in row:
            if not isinstance(row["responses"], list):
                raise RowError(f"responses must be a list, got {row['responses']!r:.80}")
            lengths = [_text_length(r) for r in row["responses"]]
        for n, values in (("ratings", ratings), ("lengths" if given else "responses", lengths)):
            if values is not None and len(values) != len(scores):
                raise RowError(f"{n} must have {len(scores)} elements like scores, got {len(values)}")
        columns.add("scores", scores)
        columns.add("ratings", ratings)
        columns.add("sizes", [len(scores)])
        columns.optional("ranking", "lengths", lengths, place)
    else:
        columns.add("single", [number(row, "score")])
        lengths = None
        if given := "length" in row:
            lengths = [number(row, "length")]
        elif "response" in row:
            lengths = [_text_length(row["response"])]
        columns.optional("score", "single_length", lengths, place)
    if lengths is not None:
        columns.units.setdefault(place.partition(",")[0], _units(bool(given)))


def _by_principle(row: dict[str, Any]) -> dict[str, float]:
    """The margin by each principle, except principles with score 0 in the row's `principles`."""
    scores = row.get(_BY_PRINCIPLE, [])
    if not isinstance(scores, list):
        raise RowError(f"{_BY_PRINCIPLE} must be a list, got {scores!r:.80}")
    preferred = {p.name: p.score for p in principles.parse(row["principles"])} if scores and "principles" in row else {}
    margins = {}
    for i, entry in enumerate(scores):
        if not isinstance(entry, dict) or not isinstance(entry.get("principle"), str):
            raise RowError(f"{_BY_PRINCIPLE}[{i}] must be an object with the key principle, got {entry!r:.80}")
        chosen, rejected = (
            finite(f"{_BY_PRINCIPLE}[{i}].{name}", entry.get(name)) for name in ("chosen_score", "rejected_score")
        )
        score = preferred.get(entry["principle"])
        if score != 0:
            margins[entry["principle"]] = rejected - chosen if score is not None and score < 0 else chosen - rejected
    return margins


def _text_length(response: Any) -> float:
    return float(len(text(response)))


def number(row: dict[str, Any], name: str) -> float:
    """A finite number of a row. RowError if it is missing or something else."""
    if name not in row:
        raise RowError(f"must have a key {name!r}, got {listed(row)}")
    return finite(name, row[name])


def numbers(row: dict[str, Any], name: str) -> list[float]:
    """A list of finite numbers of a row. RowError if it is missing or something else."""
    if name not in row:
        raise RowError(f"must have a key {name!r}, got {listed(row)}")
    if not isinstance(row[name], list):
        raise RowError(f"{name} must be a list of numbers, got {row[name]!r:.80}")
    return [finite(f"{name}[{i}]", v) for i, v in enumerate(row[name])]
