"""`pcrm prior`: add a column `prior` to preferences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..settings import COMPUTED_PRIORS
from . import _rows
from ._parser import Parser

if TYPE_CHECKING:
    from ..data.resumable import ResumableOutput

_DESCRIPTION = """\
Add a column `prior` to preferences: how similar the two responses of a row are, in [0, 1]. Rows are
in TRL's formats, plain or conversational, with or without a prompt. They keep their order and their
other columns.

IN ends in .jsonl, .jsonl.gz, .json, .csv or .parquet, or is a folder of `datasets` or a data set on
the hub. OUT ends in .jsonl, .jsonl.gz or .parquet, or is a folder. An existing OUT is replaced at
the end. To resume an interrupted run, give the same command again; its shards are in OUT.parts.

The settings of the prior are recorded for other commands: for Parquet in the schema's metadata
under pcrm.prior, otherwise in the hidden file .OUT.prior.json next to OUT.
"""
_EXAMPLES = (
    "pcrm prior pairs.jsonl --out with-prior.jsonl",
    "pcrm prior pairs.jsonl --out with-prior.jsonl --prior cosine --model all-MiniLM-L6-v2",
)


def main(argv: list[str]) -> int:
    parser = Parser("pcrm prior", _DESCRIPTION, *_EXAMPLES)
    parser.add_argument("source", metavar="IN", help="the preferences")
    parser.add_argument("--out", required=True, help="output: the preferences with their prior")
    parser.add_argument(
        "--prior",
        choices=COMPUTED_PRIORS,
        default="lexical",
        help="lexical: cosine of n-gram counts; cosine: angular cosine of an encoder's embeddings; length_ratio: shorter "
        "length / longer length in tokens. Models trained with length_ratio favor long responses more (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="encoder for --prior cosine: folder or hub name of a checkpoint of transformers, sentence-transformers or "
        "model2vec. A static encoder, such as minishlab/potion-base-8M, is the fastest",
    )
    parser.add_argument(
        "--pooling",
        choices=("mean", "cls"),
        help="pooling of the encoder's vectors; the authors use cls (default: that of the checkpoint, else mean)",
    )
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="tokenizer for --prior length_ratio: a checkpoint's folder or hub name"
    )
    parser.add_argument(
        "--batch-size", metavar="N", type=int, default=64, help="texts per encoder pass (default: %(default)s)"
    )
    parser.add_argument("--device", help="torch device of the encoder (default: the GPU if there is one, else the CPU)")
    parser.add_argument(
        "--raw", action="store_true", help="use the cosine itself, clamped to [0, 1], instead of the angular cosine"
    )
    parser.add_argument("--no-cache", action="store_true", help="do not cache embeddings on disk")
    parser.add_argument(
        "--with-prompt",
        action="store_true",
        help="compare prompt + response, as the authors do, instead of the response",
    )
    _rows.add_arguments(parser)
    args = parser.parse_args(argv)
    parser.check_counts(args, "batch_size")
    if (args.prior == "cosine") != (args.model is not None):
        parser.error("--prior cosine requires --model (only cosine uses it)")
    if (args.prior == "length_ratio") != (args.tokenizer is not None):
        parser.error("--prior length_ratio requires --tokenizer (only length_ratio uses it)")

    def work() -> ResumableOutput:
        from ..priors.annotate_file import annotate_file

        return annotate_file(
            args.source,
            args.out,
            prior=args.prior,
            split=args.split,
            model=args.model,
            tokenizer=args.tokenizer,
            with_prompt=args.with_prompt,
            angular=not args.raw,
            pooling=args.pooling,
            device=args.device,
            batch_size=args.batch_size,
            cache=not args.no_cache,
            skip=args.on_error == "skip",
        )

    return _rows.run(parser, args.source, "IN", args.out, work)
