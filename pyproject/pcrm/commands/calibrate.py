"""`pcrm calibrate`: scores less what the length of a response explains, or divided by a temperature."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .._printable import printable
from . import _rows

if TYPE_CHECKING:
    from ..data.resumable import ResumableOutput

_DESCRIPTION = """\
Adds calibrated scores to rows of one kind:

  chosen_score, rejected_score    pairs: calibrated_chosen_score and calibrated_rejected_score
  scores                          rankings: calibrated_scores
  score                           single responses: calibrated_score

Three methods subtract what a feature of the response, such as its length, lets one expect of a
score (post-hoc reward calibration, arXiv 2409.17407):

  calibrated = score - alpha b(feature), where b is
  lowess       the smooth curve through all responses of SCORES
  uniform      the mean score of the nearest responses, a share --frac of all
  penalty      the feature itself

One divides scores that are too far apart or too close together (arXiv 1706.04599):

  temperature  calibrated = score / T. T is fitted by maximum likelihood to the pairs, or rankings
               with ratings, of --fit-on. --model and --save divide the scores of the model, too

Rows keep their order and their other columns. SCORES and OUT end in .jsonl, .jsonl.gz or .parquet
or are folders of `datasets`. OUT is replaced if it is there, once all is done.
"""

# The options that are not for every method.
_OF_LENGTH = ("feature", "tokenizer", "column", "frac", "alpha", "delta")
_OF_TEMPERATURE = ("fit_on", "fit_split", "model", "save")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pcrm calibrate", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scores", metavar="SCORES", help="rows with scores, as `pcrm score` writes them")
    parser.add_argument("--out", required=True, help="where to write them with their calibrated scores")
    parser.add_argument(
        "--feature",
        choices=("characters", "tokens", "column"),
        help="of a response: how many characters or tokens it has, or columns of its row (default: characters)",
    )
    parser.add_argument("--tokenizer", metavar="PATH", help="for tokens: a checkpoint's folder or hub name")
    parser.add_argument(
        "--column",
        metavar="NAME",
        help="for column: pairs have it in chosen_NAME and rejected_NAME, rankings in NAMEs, single responses in NAME "
        "(default: length)",
    )
    parser.add_argument(
        "--method",
        choices=("lowess", "uniform", "penalty", "temperature"),
        default="lowess",
        help="default: %(default)s",
    )
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
    group = parser.add_argument_group("for --method temperature")
    group.add_argument(
        "--fit-on",
        metavar="FILE",
        help="scores of held-out pairs that the temperature is fitted to, as SCORES has them",
    )
    group.add_argument(
        "--fit-split", metavar="NAME", help="split of --fit-on, if it has splits (default: that of --split)"
    )
    group.add_argument(
        "--model", metavar="DIR", help="the checkpoint that gave the scores: safetensors, or a PEFT adapter"
    )
    group.add_argument("--save", metavar="DIR", help="folder to make: a copy of --model whose scores are divided by T")
    _rows.add_arguments(parser)
    args = parser.parse_args(argv)
    from .._engine.native import library

    foreign = _OF_LENGTH if args.method == "temperature" else _OF_TEMPERATURE
    for name in foreign:
        if getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} is not for --method {args.method}")
    library()  # it computes every method: said before the files are read
    if args.method == "temperature":
        return _temperature(parser, args)
    args.feature = args.feature or "characters"
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
    if args.delta is not None and not 0 <= args.delta < math.inf:
        parser.error(f"--delta is {args.delta}, must be at least 0 and finite")
    if args.alpha is not None and not math.isfinite(args.alpha):
        parser.error(f"--alpha is {args.alpha}, must be finite")

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
            "--method temperature needs --fit-on: held-out pairs, since a temperature that is fitted to the pairs that it is "
            "judged by looks better than it is"
        )
    if (args.model is None) != (args.save is None):
        parser.error("--model and --save go together: the checkpoint, and the folder of its copy")
    if _same(args.out, args.fit_on):
        parser.error("--out is --fit-on")
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
