"""Divide scores by one temperature: "On Calibration of Modern Neural Networks", arXiv 1706.04599.

    calibrated = score / T

T > 0 minimizes the mean of -log sigmoid(m / T) over the margins m of held-out pairs, which maximizes their likelihood. A
ranking has a pair for every two responses with different ratings.

Rows of one kind get calibrated scores:

    chosen_score, rejected_score    pairs: calibrated_chosen_score and calibrated_rejected_score
    scores                          rankings: calibrated_scores; rankings with ratings have pairs, too
    score                           single responses: calibrated_score, without pairs

`statistics.pairs` and `statistics.calibrated` compute the numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ..data.preferences import RowError
from ..data.resumable import ResumableOutput
from ..data.row_pipeline import ParsedRows, RowPipeline, kind_of_rows
from ..data.sources import open_source
from ..data.writers import Columns
from . import statistics
from .scores import number, numbers
from .statistics import Floats

_PAIRS = ("chosen_score", "rejected_score")
_RATED = ("scores", "ratings")
_KINDS = (_PAIRS, ("scores",), ("score",))
_Kind = tuple[str, ...]

# The rows of the table, by the key of `statistics.calibrated`.
_SHOWN = {"nll_calibrated": "NLL", "brier_calibrated": "Brier score", "ece_calibrated": "ECE"}


class _Row(NamedTuple):
    """The scores of a row's responses, and for a ranking possibly their ratings."""

    scores: list[float]
    ratings: list[float] | None


class Fit(NamedTuple):
    """A temperature and the pairs it was fitted on.

    Attributes:
        temperature: T.
        low, high: The 95% interval, by resampling pairs. None for rankings, whose pairs are not independent. An infinite
            end is None.
        margins: The margins of the pairs.
        name: The file.
    """

    temperature: float
    low: float | None
    high: float | None
    margins: Floats
    name: str


class Divided(NamedTuple):
    """The result of `add_divided_scores`.

    Attributes:
        output: The finished output.
        margins: The margins of its pairs. Empty if the rows do not say which response is better.
        name: The file that was read.
    """

    output: ResumableOutput
    margins: Floats
    name: str


def fit_temperature(data: str | os.PathLike[str], *, split: str = "train") -> Fit:
    """Fit the temperature to held-out pairs, or to rankings with ratings.

    Args:
        data: Rows with scores, as written by `score_rows`, see `data.sources`.
        split: The split to read, if the data set has splits.

    Raises:
        OSError, ValueError: As from `open_source`; a row is bad; there are no pairs; no temperature maximizes the
            likelihood, because all margins are at least 0 or their mean is not greater than 0.
    """
    source = open_source(data, split)
    kind = kind_of_rows(source, (_PAIRS, _RATED), "chosen_score and rejected_score, or scores and ratings")
    rows = []
    for batch in source.batches():
        for i, row in enumerate(batch.rows(kind)):
            try:
                if isinstance(row, RowError):
                    raise row
                rows.append(_parsed(row, kind))
            except RowError as error:
                raise ValueError(f"{batch.place(i)}: {error.message}") from None
    margins = _margins(rows, kind)
    if not len(margins):
        raise ValueError(f"{source.name}: must have two responses to a prompt with different ratings, got none")
    estimate = statistics.pairs(margins).get("temperature")
    if estimate is None:
        raise ValueError(
            f"{source.name}: the mean margin must be greater than 0 to fit a temperature, got {margins.mean():.4g} over "
            f"{len(margins):,} pairs. The likelihood would grow as the temperature goes to infinity. Check that the scores "
            "belong to these responses, and that chosen and rejected are not swapped"
        )
    temperature, low, high = estimate
    if temperature == 0:
        raise ValueError(
            f"{source.name}: margins must have both signs to fit a temperature, got {len(margins):,} pairs without a negative "
            "margin. The likelihood would grow as the temperature goes to 0. Fit on more pairs, and on pairs that the model "
            "was not trained on"
        )
    return Fit(temperature, *((low, high) if kind == _PAIRS else (None, None)), margins, source.name)


def add_divided_scores(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    temperature: float,
    *,
    split: str = "train",
    skip: bool = False,
) -> Divided:
    """Write rows with their scores divided by a temperature. After a kill, the same call resumes.

    Args:
        data: Rows with scores, as written by `score_rows`, see `data.sources`.
        out: The output, see `data.resumable`.
        temperature: Greater than 0 and finite.
        split: The split to read, if the data set has splits.
        skip: Leave bad rows out instead of stopping at the first one.

    Raises:
        BadRowError: A row is bad, and `skip` is False.
        OSError, ValueError: As from `open_source` and `ResumableOutput`.
    """
    source = open_source(data, split)
    kind = kind_of_rows(source, _KINDS, "chosen_score and rejected_score, scores or score")
    pipeline = RowPipeline(
        source,
        out,
        parse=lambda row: _checked(_parsed(row, kind), temperature),
        reads=(*kind, "ratings"),
        adds=[f"calibrated_{name}" for name in kind],
        settings={"--method": "temperature", "the temperature": temperature},
        input_name="SCORES",
        skip=skip,
    )
    with pipeline:
        # All rows, even if a resumed run has written some of them.
        read = [row for batch in pipeline.batches(0, "reading") for row in pipeline.parsed(batch).values.values()]
        margins = _margins(read, kind)
        for batch in pipeline.batches(pipeline.output.position, "writing"):
            rows = pipeline.parsed(batch)
            pipeline.output.write(batch, _columns(rows, kind, temperature), rows.kept, rows.skipped)
        return Divided(pipeline.finish(), margins, source.name)


def comparison(fit: Fit, divided: Divided | None = None) -> list[str]:
    """Lines with the temperature, and with NLL, Brier score and ECE before and after.

    Args:
        fit: The temperature.
        divided: Pairs other than those it was fitted on.
    """
    interval = ""
    if (fit.low, fit.high) != (None, None):
        interval = f" [{fit.low:.4g}, {'∞' if fit.high is None else f'{fit.high:.4g}'}]"
    lines = [f"temperature {fit.temperature:.6g}{interval}", "", f"{'':13}{'before':>9}{'after':>9}"]
    blocks = [(f"{fit.name}, {len(fit.margins):,} pairs, fitted on", fit.margins)]
    if divided is not None and len(divided.margins):
        blocks.append((f"{divided.name}, {len(divided.margins):,} pairs", divided.margins))
    for title, m in blocks:
        before, after = (statistics.calibrated(m, m / t) for t in (1.0, fit.temperature))
        lines += [title, *(f"  {label:11}{before[k][0]:9.4f}{after[k][0]:9.4f}" for k, label in _SHOWN.items())]
    return lines


def _parsed(row: dict[str, Any], kind: _Kind) -> _Row:
    if kind[0] != "scores":
        return _Row([number(row, name) for name in kind], None)
    scores = numbers(row, "scores")
    if not scores:
        raise RowError("scores must be a non-empty list, got []")
    ratings = numbers(row, "ratings") if kind == _RATED or row.get("ratings") is not None else None
    if ratings is not None and len(ratings) != len(scores):
        raise RowError(f"ratings must have {len(scores)} elements like scores, got {len(ratings)}")
    return _Row(scores, ratings)


def _checked(row: _Row, temperature: float) -> _Row:
    for score in row.scores:
        if not np.isfinite(score / temperature):
            raise RowError(f"a score divided by the temperature must be finite, got {score:g} / {temperature:g}")
    return row


def _margins(rows: Iterable[_Row], kind: _Kind) -> Floats:
    """The score of the better response minus the other, for each pair or every two responses with different ratings."""
    if kind == _PAIRS:
        table = np.array([row.scores for row in rows]).reshape(-1, 2)
        return table[:, 0] - table[:, 1]
    pieces = [np.empty(0)]
    for row in rows:
        if row.ratings is not None:
            scores, ratings = np.array(row.scores), np.array(row.ratings)
            better, worse = np.nonzero(ratings[:, None] > ratings)
            pieces.append(scores[better] - scores[worse])
    return np.concatenate(pieces)


def _columns(rows: ParsedRows[_Row], kind: _Kind, temperature: float) -> Columns:
    if kind == ("scores",):
        return {"calibrated_scores": [np.array(row.scores) / temperature for row in rows.values.values()]}
    table = np.array([row.scores for row in rows.values.values()]).reshape(-1, len(kind)) / temperature
    return {f"calibrated_{name}": column for name, column in zip(kind, table.T, strict=True)}
