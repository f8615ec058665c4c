"""Remove length bias from scores: post-hoc reward calibration, arXiv 2409.17407.

    calibrated = score - alpha b(feature)

The feature of a response is its length, or any number of its row. b(feature) is the score predicted from the feature:

    lowess     a smooth curve through all responses
    uniform    the mean score of the nearest responses, a fraction `frac` of all
    penalty    the feature itself

Rows of one kind get calibrated scores:

    chosen_score, rejected_score    pairs: calibrated_chosen_score and calibrated_rejected_score
    scores                          rankings: calibrated_scores
    score                           single responses: calibrated_score

`statistics.calibrate` computes the numbers.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import _check
from ..data.preferences import RowError, listed, text, texts
from ..data.resumable import ResumableOutput
from ..data.row_pipeline import ParsedRows, RowPipeline, kind_of_rows
from ..data.sources import open_source
from ..data.tokenizers import vocabulary_hash
from ..data.writers import Columns
from . import statistics
from .scores import number, numbers
from .statistics import Floats

# For each kind, by its score columns: the columns of the texts, and the columns of a feature named {}.
_KINDS = {
    ("chosen_score", "rejected_score"): (("chosen", "rejected"), ("chosen_{}", "rejected_{}")),
    ("scores",): (("responses",), ("{}s",)),
    ("score",): (("response",), ("{}",)),
}
_Kind = tuple[str, ...]

# The default of alpha. For a penalty it is the value of the paper's code, 0.001 per character.
ALPHA = {"lowess": 1.0, "uniform": 1.0, "penalty": 0.001}

# The time of the curve grows with the square of the number of distinct values: seconds for 20,000, half a minute for this.
_MANY = 50_000

_Measure = Callable[[list[str]], Sequence[float]]  # the feature of each text


class _Row(NamedTuple):
    """The scores of a row's responses, and their features, or the texts to measure the features of."""

    scores: list[float]
    measured: list[Any]


@dataclass
class _BatchRead:
    """The results of the first pass over a batch: its good rows, the number of responses of each, the index of the first
    score, and the reports on the other rows.
    """

    kept: list[int]
    sizes: list[int]
    first: int
    skipped: list[dict[str, Any]]


def add_calibrated_scores(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str = "train",
    tokenizer: Any = None,
    column: str | None = None,
    method: str = "lowess",
    alpha: float | None = None,
    frac: float = 2 / 3,
    delta: float = 0.0,
    skip: bool = False,
    warn: Callable[[str], object] = warnings.warn,
) -> ResumableOutput:
    """Write rows with their calibrated scores. After a kill, the same call resumes.

    The feature is the number of characters of a response, unless `tokenizer` or `column` is given.

    Args:
        data: Rows with scores, as written by `score_rows`, see `data.sources`.
        out: The output, see `data.resumable`.
        split: The split to read, if the data set has splits.
        tokenizer: A `transformers` tokenizer. The feature is then the number of tokens.
        column: The name of a feature in the rows. Pairs have it in chosen_NAME and rejected_NAME, rankings in NAMEs, single
            responses in NAME.
        method: "lowess", "uniform" or "penalty", see the module.
        alpha: The fraction of b to subtract. By default `ALPHA`.
        frac: The fraction of responses in each smoothing window, in (0, 1].
        delta: For lowess, a distance in the feature within which the curve is interpolated linearly. 0 fits at each value.
        skip: Leave bad rows out instead of stopping at the first one.
        warn: Called with a message if the curve will take long.

    Raises:
        BadRowError: A row is bad, and `skip` is False.
        OSError, ValueError: As from `open_source` and `ResumableOutput`; a calibrated score is not finite; the file
            changed while it was read.
    """
    source = open_source(data, split)
    _check.one_of("method", method, ALPHA)
    kind = kind_of_rows(source, _KINDS, "chosen_score and rejected_score, scores or score")
    how: dict[str, Any] = {
        "method": method,
        "alpha": ALPHA[method] if alpha is None else alpha,
        "frac": frac,
        "delta": delta,
    }
    feature = "tokens" if tokenizer is not None else "characters" if column is None else "column"
    settings = {"--feature": feature, "--column": column or "length", **{f"--{k}": v for k, v in how.items()}}
    measure: _Measure | None = None
    if tokenizer is not None:
        measure = functools.partial(_tokens, tokenizer)
        settings["--tokenizer"] = vocabulary_hash(tokenizer)
    elif column is None:
        measure = _characters
    text_columns, feature_columns = _KINDS[kind]
    feature_columns = tuple(name.format(column) for name in feature_columns)
    pipeline = RowPipeline(
        source,
        out,
        parse=lambda row: _parsed(row, kind, text_columns, None if measure else feature_columns),
        reads=(*kind, *(("prompt", *text_columns) if measure else feature_columns)),
        adds=[_calibrated(name) for name in kind],
        settings=settings,
        input_name="SCORES",
        skip=skip,
    )
    with pipeline:
        read, scores, x = _read(pipeline, measure)
        if method == "lowess" and delta <= 0 and (distinct := len(np.unique(x))) > _MANY:
            warn(
                f"the feature has {distinct:,} distinct values, and the time to fit the curve grows with their square. To speed "
                f"it up, add --delta {np.ptp(x) / 100:g} (1% of the range of the feature)"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            calibrated = statistics.calibrate(scores, x, **how)
        if not np.isfinite(calibrated).all():
            raise ValueError(
                f"calibrated scores must be finite, got {calibrated[~np.isfinite(calibrated)][0]}. "
                "The scores, the feature or --alpha are too large"
            )
        for batch in pipeline.batches(pipeline.output.position, "writing"):
            part = read.get(batch.start)
            if part is None or len(batch) != len(part.kept) + len(part.skipped):
                raise ValueError(f"{source.name}: the file changed while it was read. Run the command again")
            pipeline.output.write(batch, _columns(calibrated, kind, part), part.kept, part.skipped)
        return pipeline.finish()


def _read(pipeline: RowPipeline[_Row], measure: _Measure | None) -> tuple[dict[int, _BatchRead], Floats, Floats]:
    """The results of the first pass by batch position, and the scores and features of all responses."""
    read: dict[int, _BatchRead] = {}
    scores, features = [np.empty(0)], [np.empty(0)]
    count = 0
    for batch in pipeline.batches(0, "reading"):
        rows: ParsedRows[_Row] = pipeline.parsed(batch)
        sizes = [len(row.scores) for row in rows.values.values()]
        measured = [value for row in rows.values.values() for value in row.measured]
        scores.append(np.array([score for row in rows.values.values() for score in row.scores], np.float64))
        features.append(np.array(measure(measured) if measure else measured, np.float64))
        read[batch.start] = _BatchRead(rows.kept, sizes, count, rows.skipped)
        count += sum(sizes)
    return read, np.concatenate(scores), np.concatenate(features)


def _parsed(row: dict[str, Any], kind: _Kind, text_columns: _Kind, feature_columns: _Kind | None) -> _Row:
    scores = _numbers(row, kind, kind)
    if not scores:
        raise RowError("scores must be a non-empty list, got []")
    measured = _responses(row, text_columns) if feature_columns is None else _numbers(row, kind, feature_columns)
    if len(measured) != len(scores):
        name = (feature_columns or text_columns)[0]
        raise RowError(f"{name} must have {len(scores)} elements like scores, got {len(measured)}")
    return _Row(scores, measured)


def _calibrated(name: str) -> str:
    return f"calibrated_{name}"


def _numbers(row: dict[str, Any], kind: _Kind, names: _Kind) -> list[float]:
    """The numbers of a row's responses: one list for a ranking, else one column per response."""
    return numbers(row, names[0]) if kind == ("scores",) else [number(row, name) for name in names]


def _responses(row: dict[str, Any], names: _Kind) -> list[str]:
    for name in names:
        if name not in row:
            raise RowError(f"must have a key {name!r}, got {listed(row)}")
    if len(names) == 2:
        return list(texts(row.get("prompt"), *(row[name] for name in names)))
    value = row[names[0]]
    if names == ("response",):
        return [text(value)]
    if not isinstance(value, list):
        raise RowError(f"responses must be a list, got {value!r:.80}")
    return [text(response) for response in value]


def _characters(responses: list[str]) -> list[int]:
    return list(map(len, responses))


def _tokens(tokenizer: Any, responses: list[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(responses, add_special_tokens=False)["input_ids"]] if responses else []


def _columns(calibrated: Floats, kind: _Kind, part: _BatchRead) -> Columns:
    its = calibrated[part.first : part.first + sum(part.sizes)]
    if kind == ("scores",):
        return {_calibrated("scores"): np.split(its, np.cumsum(part.sizes)[:-1]) if part.sizes else []}
    table = its.reshape(-1, len(kind))
    return {_calibrated(name): column for name, column in zip(kind, table.T, strict=True)}
