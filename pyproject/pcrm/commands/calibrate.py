"""`pcrm calibrate`: scores less what the length of a response alone lets one expect."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data import row_pipeline
from ..data.preferences import RowError, listed, text, texts
from ..data.resumable import Output
from ..data.sources import Batch, Columns, open_source
from ..evaluate import statistics
from ..evaluate.scores import number, numbers
from ..evaluate.statistics import Floats

_DESCRIPTION = """\
Adds to rows of one kind their scores less what a feature of the response, such as its length,
lets one expect of a score (post-hoc reward calibration, arXiv 2409.17407):

  chosen_score, rejected_score    pairs: calibrated_chosen_score and calibrated_rejected_score
  scores                          rankings: calibrated_scores
  score                           single responses: calibrated_score

calibrated = score - alpha b(feature), where b is
  lowess     the smooth curve through all responses of SCORES
  uniform    the mean score of the nearest responses, a share --frac of all
  penalty    the feature itself

Rows keep their order and their other columns. SCORES and OUT end in .jsonl, .jsonl.gz or .parquet
or are folders of `datasets`. OUT is replaced if it is there, once all is done.
"""

# The columns of scores that make a row one of a kind, and where the features' texts and columns are.
_KINDS = {
    ("chosen_score", "rejected_score"): (("chosen", "rejected"), ("chosen_{}", "rejected_{}")),
    ("scores",): (("responses",), ("{}s",)),
    ("score",): (("response",), ("{}",)),
}

# Of a penalty the value of the paper's code, a thousandth of a score for each character.
_ALPHA = {"lowess": 1.0, "uniform": 1.0, "penalty": 0.001}

_Measure = Callable[[list[str]], Sequence[float]]  # the feature of each text

# The curve's time goes with the square of the number of distinct values: at 20,000 it is seconds,
# at this it is half a minute.
_MANY = 50_000


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pcrm calibrate", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scores", metavar="SCORES", help="rows with scores, as `pcrm score` writes them")
    parser.add_argument("--out", required=True, help="where to write them with their calibrated scores")
    parser.add_argument(
        "--feature",
        choices=("characters", "tokens", "column"),
        default="characters",
        help="of a response: how many characters or tokens it has, or columns of its row (default: %(default)s)",
    )
    parser.add_argument("--tokenizer", metavar="PATH", help="for tokens: a checkpoint's folder or hub name")
    parser.add_argument(
        "--column",
        metavar="NAME",
        help="for column: pairs have it in chosen_NAME and rejected_NAME, rankings in NAMEs, single responses in NAME "
        "(default: length)",
    )
    parser.add_argument("--method", choices=tuple(_ALPHA), default="lowess", help="default: %(default)s")
    parser.add_argument(
        "--frac",
        type=float,
        help="the share of the responses that one value of the curve, or one mean, is of, in (0, 1] (default: 2/3)",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        help="the share of b that is removed (default: 1); of a penalty the score that a unit of the feature costs "
        "(default for characters: 0.001)",
    )
    parser.add_argument(
        "--delta",
        type=float,
        help="of lowess: a distance in the feature within which the curve is a straight line; 0 fits at each value "
        "(default: 0)",
    )
    row_pipeline.add_arguments(parser)
    args = parser.parse_args(argv)
    if (args.feature == "tokens") != (args.tokenizer is not None):
        parser.error("--tokenizer is what --feature tokens needs, and nothing else does")
    if args.column is not None and args.feature != "column":
        parser.error("--column is for --feature column alone")
    if args.delta is not None and args.method != "lowess":
        parser.error(f"--delta is for --method lowess alone, not for {args.method}")
    if args.frac is not None and args.method == "penalty":
        parser.error("--frac is for --method lowess and uniform, not for penalty")
    if args.method == "penalty" and args.alpha is None and args.feature != "characters":
        parser.error(f"--method penalty needs --alpha: what one unit of --feature {args.feature} costs")
    if args.frac is not None and not 0 < args.frac <= 1:
        parser.error(f"--frac is {args.frac}, must be in (0, 1]")
    if args.delta is not None and not 0 <= args.delta < np.inf:
        parser.error(f"--delta is {args.delta}, must be at least 0 and finite")
    if args.alpha is not None and not np.isfinite(args.alpha):
        parser.error(f"--alpha is {args.alpha}, must be finite")
    return row_pipeline.run(parser, args, args.scores, "SCORES", _run)


@dataclass
class _Read:
    """What the first pass leaves of a batch for the second: its rows that are good, how many responses
    each has, where the first one's score is, and what is to be said of the other rows.
    """

    kept: list[int]
    sizes: list[int]
    first: int
    skipped: list[dict[str, Any]]


def _run(args: argparse.Namespace) -> Output:
    from tqdm import tqdm

    source = open_source(args.scores, args.split)
    kind = row_pipeline.kind(source, _KINDS, "chosen_score and rejected_score, scores or score")
    column = args.column or "length"
    how = {
        "method": args.method,
        "alpha": _ALPHA[args.method] if args.alpha is None else args.alpha,
        "frac": args.frac or 2 / 3,
        "delta": args.delta or 0.0,
    }
    settings = {"--feature": args.feature, "--column": column, **{f"--{k}": v for k, v in how.items()}}
    measure: _Measure | None = None
    if args.feature == "characters":
        measure = _characters
    elif args.feature == "tokens":
        tokenizer, settings["--tokenizer"] = row_pipeline.tokenizer(args.tokenizer)
        measure = functools.partial(_tokens, tokenizer)
    settings |= row_pipeline.settings_of_input(args, "SCORES", source)

    def bar(what: str) -> Any:
        return tqdm(total=source.total, desc=what, unit=" rows", disable=None, mininterval=0.5)

    def advance(bar: Any, batch: Batch) -> None:
        if (fraction := source.fraction) is not None:
            bar.total = int(batch.end / fraction)
        bar.update(batch.end - batch.start)

    with Output(args.out, settings, skip=args.on_error == "skip") as output:
        read: dict[int, _Read] = {}
        scores, feature = [np.empty(0)], [np.empty(0)]
        count = 0
        with bar("reading") as progress:
            for batch in source.batches():
                part, its_scores, its_feature = _read(batch, kind, column, measure, args.on_error == "skip")
                part.first = count
                count += len(its_scores)
                read[batch.start] = part
                scores.append(its_scores)
                feature.append(its_feature)
                advance(progress, batch)
        x = np.concatenate(feature)
        _warn_of_time(x, how)
        with np.errstate(over="ignore", invalid="ignore"):
            calibrated = statistics.calibrate(np.concatenate(scores), x, **how)
        if not np.isfinite(calibrated).all():
            raise ValueError(
                f"Calibrated scores must be finite, got {calibrated[~np.isfinite(calibrated)][0]}: "
                "the scores, the feature or --alpha are too large"
            )
        with bar("writing") as progress:
            progress.update(output.position)
            for batch in source.batches(output.position):
                part = read.get(batch.start)
                if part is None or len(batch) != len(part.kept) + len(part.skipped):
                    raise ValueError(f"{source.name}: was changed while it was read")
                output.write(batch, _columns(calibrated, kind, part), part.kept, part.skipped)
                advance(progress, batch)
        return row_pipeline.finish(output, args.scores)


def _read(
    batch: Batch, kind: tuple[str, ...], column: str, measure: _Measure | None, skip: bool
) -> tuple[_Read, Floats, Floats]:
    """A batch's rows that are good, with the scores and the feature of all of their responses.

    The feature is what `measure` makes of their texts; where it is None, the column.
    """
    part = _Read([], [], 0, [])
    scores: list[float] = []
    given: list[float] = []
    responses: list[str] = []
    text_names, value_names = _KINDS[kind]
    value_names = tuple(name.format(column) for name in value_names)
    added = [_calibrated(name) for name in kind]
    needed = (*kind, *added, *(value_names if measure is None else ("prompt", *text_names)))
    for i, row in enumerate(batch.rows(needed)):
        try:
            if isinstance(row, RowError):
                raise row
            if again := [name for name in added if name in row]:
                raise ValueError(f"{batch.place(i)}: has a column {again[0]!r} already")
            its_scores = _numbers(row, kind, kind)
            if not its_scores:
                raise RowError("scores are empty")
            if measure is None:
                its_values = _numbers(row, kind, value_names)
                _check_size(value_names[0], its_values, its_scores)
                given += its_values
            else:
                its_responses = _responses(row, text_names)
                _check_size(text_names[0], its_responses, its_scores)
                responses += its_responses
            scores += its_scores
            part.kept.append(i)
            part.sizes.append(len(its_scores))
        except RowError as error:
            if not skip:
                raise row_pipeline.bad_row(batch, i, error) from None
            part.skipped.append({"place": batch.place(i), "error": error.message, "row": batch.original(i)})
    feature = given if measure is None else measure(responses)
    return part, np.array(scores, np.float64), np.array(feature, np.float64)


def _calibrated(name: str) -> str:
    return f"calibrated_{name}"


def _numbers(row: dict[str, Any], kind: tuple[str, ...], names: tuple[str, ...]) -> list[float]:
    """The numbers of a row's responses: a ranking's in the one list, else in a column each."""
    return numbers(row, names[0]) if kind == ("scores",) else [number(row, name) for name in names]


def _responses(row: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    for name in names:
        if name not in row:
            raise RowError(f"has no {name}, its keys are {listed(row)}")
    if len(names) == 2:
        return list(texts(row.get("prompt"), *(row[name] for name in names)))
    value = row[names[0]]
    if names == ("response",):
        return [text(value)]
    if not isinstance(value, list):
        raise RowError(f"responses is {value!r:.80}, must be a list")
    return [text(response) for response in value]


def _check_size(name: str, values: list[Any], scores: list[float]) -> None:
    if len(values) != len(scores):
        raise RowError(f"{name} has {len(values)} elements, scores has {len(scores)}")


def _characters(responses: list[str]) -> list[int]:
    return list(map(len, responses))


def _tokens(tokenizer: Any, responses: list[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(responses, add_special_tokens=False)["input_ids"]] if responses else []


def _warn_of_time(feature: Floats, how: dict[str, Any]) -> None:
    if how["method"] != "lowess" or how["delta"] > 0:
        return
    if (distinct := len(np.unique(feature))) > _MANY:
        print(
            f"pcrm calibrate: the feature has {distinct:,} distinct values, and the curve's time goes with their "
            f"square: --delta {np.ptp(feature) / 100:g}, a hundredth of its range, takes a moment",
            file=sys.stderr,
        )


def _columns(calibrated: Floats, kind: tuple[str, ...], part: _Read) -> Columns:
    its = calibrated[part.first : part.first + sum(part.sizes)]
    if kind == ("scores",):
        return {_calibrated("scores"): np.split(its, np.cumsum(part.sizes)[:-1]) if part.sizes else []}
    table = its.reshape(-1, len(kind))
    return {_calibrated(name): column for name, column in zip(kind, table.T, strict=True)}
