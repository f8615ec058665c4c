"""`pcrm prior`: add a column `prior` to preferences."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..settings import COMPUTED_PRIORS
from . import _rows

if TYPE_CHECKING:
    from ..data.resumable import ResumableOutput

_DESCRIPTION = """\
Adds a column `prior`, how alike the two responses of a row are, in [0, 1]. IN and OUT end in
.jsonl, .jsonl.gz or .parquet or are folders of `datasets`; IN may be a data set of the hub.
Rows are in TRL's formats, plain or conversational, with or without a prompt of their own, and
keep their order and their other columns. OUT is replaced if it is there, once all is done.
Killed, the same command goes on where it was; until then its shards are in OUT.parts.
How the prior was computed is recorded for the other commands: in Parquet in the schema's metadata, under
pcrm.prior, otherwise in the hidden file .OUT.prior.json beside OUT.
"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pcrm prior", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IN", help="the preferences")
    parser.add_argument("--out", required=True, help="where to write them with their prior")
    parser.add_argument(
        "--prior",
        choices=COMPUTED_PRIORS,
        default="lexical",
        help="length_ratio: shorter by longer in tokens; lexical: cosine of n-gram counts; cosine: of the embeddings "
        "of an encoder, as an angle (default: %(default)s). Models trained with length_ratio favor long responses more",
    )
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="the encoder for cosine: folder or hub name of a checkpoint of transformers, sentence-transformers or model2vec. "
        "A static encoder, such as minishlab/potion-base-8M, is the fastest",
    )
    parser.add_argument(
        "--pooling",
        choices=("mean", "cls"),
        help="of the encoder's vectors; `cls` is the authors' way (default: what the checkpoint says, else mean)",
    )
    parser.add_argument("--tokenizer", metavar="PATH", help="for length_ratio: a checkpoint's folder or hub name")
    parser.add_argument(
        "--batch-size", type=int, default=64, help="texts in a pass of the encoder (default: %(default)s)"
    )
    parser.add_argument("--device", help="of the encoder (default: the GPU where there is one)")
    parser.add_argument("--raw", action="store_true", help="the cosine itself, clamped to [0, 1], and not the angle")
    parser.add_argument("--no-cache", action="store_true", help="keep no embeddings in the cache folder of the user")
    parser.add_argument("--with-prompt", action="store_true", help="compare prompt + response, the authors' way")
    _rows.add_arguments(parser)
    args = parser.parse_args(argv)
    if (args.prior == "cosine") != (args.model is not None):
        parser.error("--model is what --prior cosine needs, and nothing else does")
    if (args.prior == "length_ratio") != (args.tokenizer is not None):
        parser.error("--tokenizer is what --prior length_ratio needs, and nothing else does")

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
