"""`pcrm demo`: see what the constraint does, in a few minutes."""

from __future__ import annotations

import argparse
from pathlib import Path

_DEMO = """\
Trains two small reward models on the CPU through TRL, plain and constrained, on the same
pairs, and a third with a published preset; prints one table of what they do on held-out
prompts, and writes the models, margins.png and summary.json. The constraint is fitted to the
data: its target margin is --target-alike for alike pairs and --target-unlike for unlike ones.
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pcrm demo", description=_DEMO, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="preferences in TRL's format, .jsonl, .jsonl.gz or .parquet "
        "(default: generated ones with a known true reward)",
    )
    parser.add_argument("--model", metavar="PATH", help="a checkpoint to start from (default: a small random one)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("demo-out"), help="default: %(default)s")
    parser.add_argument(
        "--preset",
        default="alpaca/length_ratio",
        help="the published setting of the third model (default: %(default)s)",
    )
    for name, kind, default, text in (
        ("target-alike", float, 1.0, "target margin of alike pairs"),
        ("target-unlike", float, 3.0, "target margin of unlike pairs"),
        ("pairs", int, 5000, "pairs to train on, at most"),
        ("held-out", int, 2000, "pairs to hold out, about: whole prompts are"),
        ("epochs", float, 4.0, "passes over the pairs"),
        ("learning-rate", float, None, "1e-3, or 2e-5 with --model"),
        ("batch-size", int, 16, "pairs a step"),
        ("max-length", int, 256, "tokens of prompt and response; longer prompts lose their beginning"),
        ("seed", int, 0, "of the data, the split and the models"),
    ):
        parser.add_argument(
            f"--{name}", type=kind, default=default, help=text if default is None else f"{text} (default: {default:g})"
        )
    settings = vars(parser.parse_args(argv))
    print("loading torch and TRL", flush=True)
    from ..demo import run

    out = settings.pop("out")
    run.run(run.Settings(**settings), out)
    return 0
