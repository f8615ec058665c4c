"""`pcrm calibrate`: remove length bias from scores, or divide them by a temperature."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .._printable import printable
from . import _rows
from ._parser import Parser

if TYPE_CHECKING:
    from ..data.resumable import ResumableOutput

_DESCRIPTION = """\
Add calibrated scores to rows of one kind:

  chosen_score, rejected_score    pairs: calibrated_chosen_score and calibrated_rejected_score
  scores                          rankings: calibrated_scores
  score                           single responses: calibrated_score

Three methods subtract the part of a score that a feature, such as length, predicts (post-hoc
reward calibration, arXiv 2409.17407): calibrated = score - alpha b(feature), where b is

  lowess       a smooth curve through all responses of SCORES
  uniform      the mean score of the nearest responses, a fraction --frac of all
  penalty      the feature itself

One method rescales the scores so that margins match win probabilities (arXiv 1706.04599):

  temperature  calibrated = score / T. T is fitted by maximum likelihood to --fit-on: pairs, or
               rankings with ratings. --model and --save also divide the scores of the model

Rows keep their order and their other columns. SCORES ends in .jsonl, .jsonl.gz, .json, .csv or
.parquet, or is a folder of `datasets`. OUT ends in .jsonl, .jsonl.gz or .parquet, or is a folder.
An existing OUT is replaced at the end. To resume an interrupted run, give the same command again.
"""
_EXAMPLES = (
    "pcrm calibrate scores.jsonl --out calibrated.jsonl",
    "pcrm calibrate test.jsonl --method temperature --fit-on validation.jsonl --out tempered.jsonl",
)

# Options that only some methods have.
_OF_LENGTH = ("feature", "tokenizer", "column", "frac", "alpha", "delta")
_OF_TEMPERATURE = ("fit_on", "fit_split", "model", "save")


def main(argv: list[str]) -> int:
    parser = Parser("pcrm calibrate", _DESCRIPTION, *_EXAMPLES)
    parser.add_argument("scores", metavar="SCORES", help="rows with scores, as written by `pcrm score`")
    parser.add_argument("--out", required=True, help="output: the rows with their calibrated scores")
    parser.add_argument(
        "--method",
        choices=("lowess", "uniform", "penalty", "temperature"),
        default="lowess",
        help="see above (default: %(default)s)",
    )
    length = parser.add_argument_group("for --method lowess, uniform and penalty")
    length.add_argument(
        "--feature",
        choices=("characters", "tokens", "column"),
        help="feature of a response: its characters, its tokens, or columns of its row (default: characters)",
    )
    length.add_argument("--tokenizer", metavar="PATH", help="folder or hub name of the tokenizer, for --feature tokens")
    length.add_argument(
        "--column",
        metavar="NAME",
        help="name of the feature, for --feature column: in the columns chosen_NAME and rejected_NAME of pairs, NAMEs of "
        "rankings, NAME of single responses (default: length)",
    )
    length.add_argument(
        "--frac",
        metavar="X",
        type=float,
        help="fraction of responses in each smoothing window, in (0, 1] (default: 2/3)",
    )
    length.add_argument(
        "--alpha",
        metavar="X",
        type=float,
        help="fraction of b to subtract (default: 1); for a penalty, the cost of one unit of the feature (default for "
        "characters: 0.001)",
    )
    length.add_argument(
        "--delta",
        metavar="X",
        type=float,
        help="for lowess, distance in the feature within which the curve is interpolated; 0 fits at each value "
        "(default: 0)",
    )
    group = parser.add_argument_group("for --method temperature")
    group.add_argument(
        "--fit-on",
        metavar="FILE",
        help="scores of held-out pairs to fit the temperature to, in the format of SCORES",
    )
    group.add_argument(
        "--fit-split", metavar="NAME", help="split of --fit-on, if it has splits (default: the value of --split)"
    )
    group.add_argument(
        "--model", metavar="DIR", help="checkpoint that computed the scores: safetensors, or a PEFT adapter"
    )
    group.add_argument("--save", metavar="DIR", help="new folder for a copy of --model with its scores divided by T")
    _rows.add_arguments(parser)
    args = parser.parse_args(argv)
    from .._engine.native import library

    foreign = _OF_LENGTH if args.method == "temperature" else _OF_TEMPERATURE
    for name in foreign:
        if getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} does not work with --method {args.method}")
    library()  # all methods need it: fails before the files are read
    if args.method == "temperature":
        return _temperature(parser, args)
    args.feature = args.feature or "characters"
    if (args.feature == "tokens") != (args.tokenizer is not None):
        parser.error("--feature tokens requires --tokenizer (only tokens uses it)")
    if args.column is not None and args.feature != "column":
        parser.error("--column requires --feature column")
    if args.delta is not None and args.method != "lowess":
        parser.error(f"--delta requires --method lowess, got {args.method}")
    if args.frac is not None and args.method == "penalty":
        parser.error("--frac requires --method lowess or uniform, got penalty")
    if args.method == "penalty" and args.alpha is None and args.feature != "characters":
        parser.error(
            f"--method penalty with --feature {args.feature} requires --alpha, the cost of one unit of the feature"
        )
    if args.frac is not None and not 0 < args.frac <= 1:
        parser.error(f"--frac must be in (0, 1], got {args.frac}")
    if args.delta is not None and not 0 <= args.delta < math.inf:
        parser.error(f"--delta must be at least 0 and finite, got {args.delta}")
    if args.alpha is not None and not math.isfinite(args.alpha):
        parser.error(f"--alpha must be finite, got {args.alpha}")

    def work() -> ResumableOutput:
        from ..evaluate.length_bias import add_calibrated_scores

        tokenizer = None
        if args.tokenizer is not None:
            from .._pretrained import load_tokenizer

            tokenizer = load_tokenizer(args.tokenizer)
        return add_calibrated_scores(
            args.scores,
            args.out,
            split=args.split,
            tokenizer=tokenizer,
            column=(args.column or "length") if args.feature == "column" else None,
            method=args.method,
            alpha=args.alpha,
            frac=args.frac or 2 / 3,
            delta=args.delta or 0.0,
            skip=args.on_error == "skip",
            warn=lambda message: print(f"pcrm calibrate: {message}", file=sys.stderr),
        )

    return _rows.run(parser, args.scores, "SCORES", args.out, work)


def _temperature(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.fit_on is None:
        parser.error(
            "--method temperature requires --fit-on FILE with held-out pairs: results on the pairs that a temperature was "
            "fitted to are too optimistic"
        )
    if (args.model is None) != (args.save is None):
        parser.error("--model and --save must be given together: the checkpoint, and the folder for its copy")
    if _same(args.out, args.fit_on):
        parser.error(f"--out must be another file than --fit-on, got {args.out}")
    from .._checkpoint_folder import check_free
    from ..evaluate.score_head import find_head, write_divided
    from ..evaluate.temperature import Divided, add_divided_scores, comparison, fit_temperature

    head = None
    if args.model is not None:  # before anything takes time
        head = find_head(args.model)
        check_free(Path(args.save))
    fit_split = args.fit_split or args.split
    fit = fit_temperature(args.fit_on, split=fit_split)
    divided: Divided | None = None

    def work() -> ResumableOutput:
        nonlocal divided
        divided = add_divided_scores(
            args.scores, args.out, fit.temperature, split=args.split, skip=args.on_error == "skip"
        )
        return divided.output

    if (code := _rows.run(parser, args.scores, "SCORES", args.out, work)) != 0:
        return code
    same = _same(args.scores, args.fit_on) and args.split == fit_split
    for line in comparison(fit, None if same else divided):
        print(printable(line))
    if head is not None:
        try:
            write_divided(head, args.save, fit.temperature)
        except KeyboardInterrupt:
            print(f"{parser.prog}: interrupted; {args.save} was not written", file=sys.stderr)
            return 130
        print(f"\n{args.save}: {args.model} with {' and '.join(head.names)} divided by {fit.temperature:.6g}")
    return 0


def _same(a: str, b: str) -> bool:
    return os.path.exists(a) and os.path.exists(b) and os.path.samefile(a, b)
