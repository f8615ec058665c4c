"""`pcrm demo`: see what the constraint does, in a few minutes."""

from __future__ import annotations

import sys
from pathlib import Path

from ._parser import Parser

_DESCRIPTION = """\
Train two small reward models on the CPU, plain and constrained, on the same generated pairs, and a
third with a published preset. This takes a few minutes and downloads nothing. Print one table of
held-out results, and write the models, margins.png and summary.json.

The constraint is fitted to the data: its target margin is --target-alike for similar responses and
--target-unlike for dissimilar ones. The pairs come from a small world whose true reward is known.
For your own pairs, use pcrm compare.

To resume an interrupted run, give the same command again. Finished models are not trained again.
"""
_EXAMPLES = (
    "pcrm demo",
    "pcrm demo --pairs 1000 --target-alike 0.5 --target-unlike 2 --out demo-small",
)


def main(argv: list[str]) -> int:
    parser = Parser("pcrm demo", _DESCRIPTION, *_EXAMPLES)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("demo-out"), help="output folder (default: %(default)s)"
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="preference pairs in TRL's format (default: generated pairs with a known true reward)",
    )
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="checkpoint to start from: folder or hub name (default: a small model with random weights)",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        default="alpaca/length_ratio",
        help="published setting of the third model (default: %(default)s)",
    )
    for name, kind, default, text in (
        ("target-alike", float, 1.0, "target margin of similar responses"),
        ("target-unlike", float, 3.0, "target margin of dissimilar responses"),
        ("pairs", int, 5000, "maximum number of pairs to train on"),
        ("held-out", int, 2000, "approximate number of pairs to hold out, as whole prompts"),
        ("epochs", float, 4.0, "passes over the pairs"),
        ("learning-rate", float, None, "peak learning rate (default: 1e-3, or 2e-5 with --model)"),
        ("batch-size", int, 16, "pairs per step"),
        ("max-length", int, 256, "maximum tokens of prompt and response; longer prompts lose their beginning"),
        ("seed", int, 0, "seed of the data, the split and the models"),
    ):
        note = "" if default is None else f" (default: {default:g})"
        unit = "MARGIN" if name.startswith("target") else "N" if kind is int else "X"
        parser.add_argument(f"--{name}", metavar=unit, type=kind, default=default, help=text + note)
    settings = vars(parser.parse_args(argv))
    out: Path = settings.pop("out")
    parser.check_folder("--out", out)
    print("loading torch and TRL", flush=True)
    from ..demo import run

    try:
        run.run(run.Settings(**settings), out)
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted; give the same command again to resume from {out}", file=sys.stderr)
        return 130
    return 0
