"""`pcrm check`: what to know of preferences before training on them."""

from __future__ import annotations

import argparse
import json

from .._printable import printable

_DESCRIPTION = """\
Reads pairs or rankings in seconds and says what is wrong with them, what may be, and what to do:
rows that cannot be read, empty and identical responses, contradictory and repeated pairs, and
more. Also shows lengths, what prefix sharing would save, and what a constraint would do.
DATA and OTHER end in .jsonl, .jsonl.gz or .parquet, or are folders of `datasets` or data sets of
the hub. Rows are in TRL's formats: prompt, chosen and rejected, or prompt, responses and ratings
(or ranks, 1 for the best). The exit status is 1 if there is an error, else 0.
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pcrm check", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA", help="the preferences")
    parser.add_argument(
        "other", metavar="OTHER", nargs="?", help="preferences that must share no prompt with DATA, as for evaluation"
    )
    parser.add_argument("--split", default="train", help="of data sets that have some (default: %(default)s)")
    parser.add_argument("--other-split", metavar="SPLIT", help="of OTHER (default: that of --split)")
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="counts tokens, not characters: a checkpoint's folder or hub name"
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens of a prompt with its response in training; needs --tokenizer",
    )
    parser.add_argument(
        "--prior",
        choices=("lexical", "length_ratio", "column"),
        help="similarities to try the targets with; length_ratio needs --tokenizer (default: the column 'prior' if there "
        "is one, else lexical)",
    )
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="a trained reward model that scores 2,000 pairs, to see whether the labels are swapped: a folder or hub name",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    if args.tokenizer is None and args.max_length is not None:
        parser.error("--max-length needs --tokenizer")
    if args.tokenizer is None and args.prior == "length_ratio":
        parser.error("--prior length_ratio needs --tokenizer")
    if args.other_split is not None and args.other is None:
        parser.error("--other-split needs OTHER")
    if args.max_length is not None and args.max_length < 1:
        parser.error(f"--max-length must be at least 1, got {args.max_length}")

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
