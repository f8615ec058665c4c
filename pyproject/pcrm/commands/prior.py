"""`pcrm prior`: add a column `prior` to preferences."""

from __future__ import annotations

import argparse
from typing import Any

from ..data import row_pipeline
from ..data.preferences import RowError, listed, texts
from ..data.resumable import Output
from ..data.sources import Batch, open_source
from ..settings import COMPUTED_PRIORS

_DESCRIPTION = """\
Adds a column `prior`, how alike the two responses of a row are, in [0, 1]. IN and OUT end in
.jsonl, .jsonl.gz or .parquet or are folders of `datasets`; IN may be a data set of the hub.
Rows are in TRL's formats, plain or conversational, with or without a prompt of their own, and
keep their order and their other columns. OUT is replaced if it is there, once all is done.
Killed, the same command goes on where it was; until then its shards are in OUT.parts.
How the prior was computed is recorded for `pcrm fit`: in Parquet in the schema's metadata, under
pcrm.prior, otherwise in the hidden file .OUT.prior.json beside OUT.
"""

_COLUMNS = ("prompt", "chosen", "rejected")


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
        "of an encoder, as an angle (default: %(default)s)",
    )
    parser.add_argument("--model", metavar="PATH", help="the encoder for cosine: a checkpoint's folder or hub name")
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
    row_pipeline.add_arguments(parser)
    args = parser.parse_args(argv)
    if (args.prior == "cosine") != (args.model is not None):
        parser.error("--model is what --prior cosine needs, and nothing else does")
    if (args.prior == "length_ratio") != (args.tokenizer is not None):
        parser.error("--tokenizer is what --prior length_ratio needs, and nothing else does")
    return row_pipeline.run(parser, args, args.source, "IN", _run)


def _run(args: argparse.Namespace) -> Output:
    from tqdm import tqdm

    from .. import priors

    source = open_source(args.source, args.split)
    _check_columns(source.name, source.columns)
    how: dict[str, Any] = {"prior": args.prior}  # what of_texts is called with
    settings: dict[str, Any] = {"--prior": args.prior, "--with-prompt": args.with_prompt}
    record: dict[str, Any] = {"prior": args.prior, "with_prompt": args.with_prompt}
    if args.prior == "cosine":
        from ..priors.encoders import Encoder

        encoder = Encoder(
            args.model,
            pooling=args.pooling,
            device=args.device,
            batch_size=args.batch_size,
            cache=not args.no_cache,
        )
        how |= {"model": encoder, "angular": not args.raw}
        record |= {"model": args.model, "raw": args.raw}
        # The last bits of an embedding depend on what else is in its pass, and on the device.
        settings |= {"--model": encoder.identity, "--raw": args.raw}
        settings |= {"--batch-size": args.batch_size, "--device": encoder.device}
    elif args.prior == "length_ratio":
        how["tokenizer"], settings["--tokenizer"] = row_pipeline.tokenizer(args.tokenizer)
        record["tokenizer"] = args.tokenizer
    settings |= row_pipeline.settings_of_input(args, "IN", source)
    with Output(args.out, settings, skip=args.on_error == "skip", prior=record) as output:
        with tqdm(total=source.total, initial=output.position, unit=" rows", disable=None, mininterval=0.5) as bar:
            for batch in source.batches(output.position):
                pairs, bad = _pairs(batch, args.with_prompt, args.on_error == "skip")
                chosen, rejected = ([pair[side] for pair in pairs.values()] for side in (0, 1))
                numbers, errors = priors.of_texts_and_errors(chosen, rejected, **how)
                rows = list(pairs)
                for k, error in errors.items():
                    if args.on_error == "fail":
                        raise row_pipeline.bad_row(batch, rows[k], error)
                    bad[rows[k]] = error.message
                good = [k for k in range(len(rows)) if k not in errors]
                skipped = [{"place": batch.place(i), "error": bad[i], "row": batch.original(i)} for i in sorted(bad)]
                output.write(batch, {"prior": numbers.numpy()[good]}, [rows[k] for k in good], skipped)
                if (fraction := source.fraction) is not None:
                    bar.total = int(output.position / fraction)
                bar.update(batch.end - batch.start)
        return row_pipeline.finish(output, args.source)


def _check_columns(name: str, columns: list[str] | None) -> None:
    if columns is None:
        return
    if "prior" in columns:
        raise ValueError(f"{name}: has a column 'prior' already: remove or rename it")
    for column in ("chosen", "rejected"):
        if column not in columns:
            raise ValueError(f"{name}: has no column {column!r}, its columns are {listed(columns)}")


def _pairs(batch: Batch, with_prompt: bool, skip: bool) -> tuple[dict[int, tuple[str, str]], dict[int, str]]:
    """The responses of the good rows, and what is wrong with the others, by their place in the batch."""
    pairs: dict[int, tuple[str, str]] = {}
    bad: dict[int, str] = {}
    for i, row in enumerate(batch.rows(_COLUMNS)):
        try:
            if isinstance(row, RowError):
                raise row
            if "prior" in row:
                raise ValueError(f"{batch.place(i)}: has a column 'prior' already: remove or rename it")
            for name in ("chosen", "rejected"):
                if name not in row:
                    raise RowError(f"has no {name}, its keys are {listed(row)}")
            pairs[i] = texts(row.get("prompt"), row["chosen"], row["rejected"], with_prompt=with_prompt)
        except RowError as error:
            if not skip:
                raise row_pipeline.bad_row(batch, i, error) from None
            bad[i] = error.message
    return pairs, bad
