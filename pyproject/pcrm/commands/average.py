"""`pcrm average`: the mean of the weights of several models."""

from __future__ import annotations

import argparse
import sys

_DESCRIPTION = """\
Writes the weighted mean of checkpoints as a checkpoint (WARM, arXiv 2401.12187):

  theta = sum_i w_i theta_i / sum_i w_i

in float64, rounded once into the type of the checkpoints. They must have the same tensors, the
same configuration and the same tokenizer; what else belongs to a model is the first one's. DIR
appears once all is done.
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pcrm average", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", metavar="RM", nargs="+", help="two or more folders of safetensors checkpoints")
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder to make")
    parser.add_argument(
        "--weights", metavar="W", type=float, nargs="+", help="one for each RM, at least 0 (default: 1 each)"
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
            f"pcrm average: {done.not_finite} numbers of the average are NaN or infinite, the first in tensor {done.first}",
            file=sys.stderr,
        )
    return 0
