"""`pcrm calibrate`: scores less what the length of a response alone lets one expect."""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING

from . import _rows

if TYPE_CHECKING:
    from ..data.resumable import ResumableOutput

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
    parser.add_argument(
        "--method", choices=("lowess", "uniform", "penalty"), default="lowess", help="default: %(default)s"
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
    _rows.add_arguments(parser)
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
