"""`pcrm average`: average the weights of several models."""

from __future__ import annotations

import sys

from ._parser import Parser

_DESCRIPTION = """\
Write the weighted mean of several checkpoints as a new checkpoint (WARM, arXiv 2401.12187):

  theta = sum_i w_i theta_i / sum_i w_i

computed in float64 and rounded once to the dtype of the checkpoints. They must have the same
tensors, configuration and tokenizer. All other files come from the first model. DIR appears only
when it is complete.
"""
_EXAMPLES = (
    "pcrm average rm-seed0 rm-seed1 rm-seed2 --out rm-warm",
    "pcrm average rm-a rm-b --out rm-mixed --weights 2 1",
)


def main(argv: list[str]) -> int:
    parser = Parser("pcrm average", _DESCRIPTION, *_EXAMPLES)
    parser.add_argument("models", metavar="RM", nargs="+", help="folders of safetensors checkpoints; at least two")
    parser.add_argument("--out", metavar="DIR", required=True, help="output: the folder to create")
    parser.add_argument(
        "--weights", metavar="W", type=float, nargs="+", help="one weight per RM, at least 0 (default: 1 each)"
    )
    args = parser.parse_args(argv)
    from tqdm import tqdm

    from ..methods.averaging import average

    try:
        with tqdm(unit="B", unit_scale=True, disable=None, mininterval=0.5) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            done = average(args.models, args.out, weights=args.weights, progress=progress)
    except KeyboardInterrupt:
        print("pcrm average: interrupted; nothing was written", file=sys.stderr)
        return 130
    weights = " ".join(f"{w:.6g}" for w in done.weights)
    print(f"{args.out}: {done.tensors} tensors, {done.bytes:,} bytes, weights {weights}")
    if done.not_finite:
        print(
            f"pcrm average: warning: {done.not_finite} elements of the average are NaN or infinite, the first in tensor "
            f"{done.first}. Check that tensor in the input models",
            file=sys.stderr,
        )
    return 0
