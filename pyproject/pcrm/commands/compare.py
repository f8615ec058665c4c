"""`pcrm compare`: plain, plain with a temperature, and constrained reward models on the user's own pairs."""

from __future__ import annotations

import sys
from pathlib import Path

from ._parser import Parser

_DESCRIPTION = """\
Train a plain and a constrained reward model on your own preference pairs. Print one table that
compares three models on held-out prompts: plain, plain with its scores divided by one fitted
temperature, and constrained. Write a report page, the scores and both models into a folder.

DATA holds pairs (prompt, chosen, rejected) in TRL's formats: a file (.jsonl, .jsonl.gz, .json,
.csv, .parquet), a folder of `datasets`, or a data set on the hub. Without --eval-data, a fifth of
the pairs is held out to evaluate on, as whole prompts. The temperature is fitted on further
held-out prompts, never on the evaluation pairs.

To resume an interrupted run, give the same command again. Finished models are not trained again.
"""
_EXAMPLES = (
    "pcrm compare pairs.jsonl --model Qwen/Qwen3-0.6B",
    "pcrm compare train.jsonl --eval-data test.jsonl --model ./base --epochs 1 --out compare-test",
)


def main(argv: list[str]) -> int:
    parser = Parser("pcrm compare", _DESCRIPTION, *_EXAMPLES)
    parser.add_argument("data", metavar="DATA", help="preference pairs")
    parser.add_argument("--model", metavar="BASE", required=True, help="checkpoint to start from: folder or hub name")
    parser.add_argument(
        "--eval-data", metavar="DATA", help="pairs to evaluate on (default: a fifth of DATA, as whole prompts)"
    )
    parser.add_argument(
        "--split", default="train", help="split to read, if the data set has splits (default: %(default)s)"
    )
    parser.add_argument("--eval-split", metavar="SPLIT", help="split of --eval-data (default: the value of --split)")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("compare-out"), help="output folder (default: %(default)s)"
    )
    group = parser.add_argument_group("constraint")
    group.add_argument(
        "--prior",
        choices=("lexical", "length_ratio", "column"),
        help="how similar two responses are: shared wording, ratio of their lengths in tokens, or the column 'prior' "
        "(default: column if the pairs have one, else lexical)",
    )
    for name, default, text in (
        ("target-alike", 1.0, "target margin of similar responses"),
        ("target-unlike", 3.0, "target margin of dissimilar responses"),
    ):
        group.add_argument(
            f"--{name}", metavar="MARGIN", type=float, default=default, help=f"{text} (default: {default:g})"
        )
    group = parser.add_argument_group("training")
    for name, kind, default, text in (
        ("epochs", float, 2.0, "passes over the training pairs"),
        ("learning-rate", float, 2e-5, "peak learning rate"),
        ("batch-size", int, 16, "pairs per step"),
        (
            "max-length",
            int,
            None,
            "maximum tokens of prompt and response; longer pairs are left out (default: 1024, or the model's limit if that is less)",
        ),
        ("pairs", int, None, "maximum number of pairs to train on (default: all)"),
        ("lora", int, None, "train a LoRA adapter of this rank instead of all weights; requires peft"),
        ("seed", int, 0, "seed of the split and the models"),
    ):
        note = "" if default is None else f" (default: {default:g})"
        group.add_argument(
            f"--{name}", metavar="N" if kind is int else "X", type=kind, default=default, help=text + note
        )
    group.add_argument("--cpu", action="store_true", help="train on the CPU even if there is a GPU")
    settings = vars(parser.parse_args(argv))
    out: Path = settings.pop("out")
    parser.check_folder("--out", out)

    from .._engine.native import library

    library()  # without it there are no statistics: said before anything takes time
    print("loading torch and TRL", flush=True)
    from ..compare import run

    try:
        run.run(run.Settings(**settings), out)
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted; give the same command again to resume from {out}", file=sys.stderr)
        return 130
    return 0
