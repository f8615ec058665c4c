"""`pcrm check`: check preference data before training on it."""

from __future__ import annotations

import json

from .._printable import printable
from ._parser import Parser

_DESCRIPTION = """\
Check pairs or rankings before training. Print errors and warnings, each with a remedy, about rows
that cannot be read, empty and identical responses, contradictory and repeated pairs, and more. Also
print how prompt and response are joined, the lengths, what prefix sharing saves, and what a
constraint would do. The command reads the data once, takes seconds, and needs no model.

DATA and OTHER end in .jsonl, .jsonl.gz, .json, .csv or .parquet, or are folders of `datasets` or
data sets on the hub. Rows are in TRL's formats: prompt, chosen and rejected; or prompt, responses
and ratings (or ranks, where 1 is best). The exit status is 1 if there is an error, else 0.
"""
_EXAMPLES = (
    "pcrm check train.jsonl test.jsonl",
    "pcrm check train.jsonl --tokenizer Qwen/Qwen3-0.6B --max-length 1024",
)


def main(argv: list[str]) -> int:
    parser = Parser("pcrm check", _DESCRIPTION, *_EXAMPLES)
    parser.add_argument("data", metavar="DATA", help="preference data")
    parser.add_argument(
        "other", metavar="OTHER", nargs="?", help="data that must not share prompts with DATA, such as test data"
    )
    parser.add_argument(
        "--split", default="train", help="split to read, if the data set has splits (default: %(default)s)"
    )
    parser.add_argument("--other-split", metavar="SPLIT", help="split of OTHER (default: the value of --split)")
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="folder or hub name of a tokenizer: count tokens instead of characters"
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="maximum tokens of prompt and response in training; requires --tokenizer",
    )
    parser.add_argument(
        "--prior",
        choices=("lexical", "length_ratio", "column"),
        help="similarity for the trial fit of targets; length_ratio requires --tokenizer (default: the column 'prior' if "
        "there is one, else lexical)",
    )
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="folder or hub name of a trained reward model: score 2,000 pairs to detect swapped labels",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    if args.tokenizer is None and args.max_length is not None:
        parser.error("--max-length requires --tokenizer")
    if args.tokenizer is None and args.prior == "length_ratio":
        parser.error("--prior length_ratio requires --tokenizer")
    if args.other_split is not None and args.other is None:
        parser.error("--other-split requires OTHER")
    parser.check_counts(args, "max_length")

    from ..data.sources import open_source
    from ..evaluate.check_data import check

    source = open_source(args.data, args.split)
    other = None if args.other is None else open_source(args.other, args.other_split or args.split)
    tokenizer = model = None
    if args.tokenizer is not None:
        from .._pretrained import load_tokenizer

        tokenizer = load_tokenizer(args.tokenizer)
    if args.model is not None:
        from ..evaluate.reward_model import RewardModel

        model = RewardModel(args.model)
    found = check(source, other=other, tokenizer=tokenizer, max_length=args.max_length, prior=args.prior, model=model)
    print(json.dumps(found.to_json(), indent=1) if args.json else "\n".join(map(printable, found.lines())))
    return 1 if found.count("error") else 0
