"""`pcrm score`: the scores of a trained reward model."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from ..datafiles import Batch, Columns, Source, open_source
from ..rows import RowError, inputs
from ..scoring import DTYPES, RewardModel
from ..shards import Output
from . import _passes

_DESCRIPTION = """\
Adds the scores of a reward model to rows of one kind:

  chosen, rejected    pairs: chosen_score and rejected_score
  responses           rankings: scores, one for each response, in their order
  response            single responses: score

with a prompt or without one, plain or conversational, read as TRL's RewardTrainer reads them.
Rows keep their order and their other columns. DATA and OUT end in .jsonl, .jsonl.gz or .parquet
or are folders of `datasets`; DATA may be a data set of the hub. OUT is replaced if it is there,
once all is done. Killed, the same command goes on where it was; until then its shards are in
OUT.parts.
"""

# The columns that make a row one of a kind, and those of its scores.
_KINDS = {
    ("chosen", "rejected"): ("chosen_score", "rejected_score"),
    ("responses",): ("scores",),
    ("response",): ("score",),
}
_COLUMNS = ("prompt", "tools", "chat_template_kwargs", *(name for kind in _KINDS for name in kind))

# What is in memory at once and what a kill loses: a minute's work of a small model on a CPU.
# More would hardly pad less.
_SHARD_ROWS = 512


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pcrm score", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a checkpoint for sequence classification with one label, or a PEFT adapter of one: a folder or hub name",
    )
    parser.add_argument("data", metavar="DATA", help="the rows to score")
    parser.add_argument("--out", required=True, help="where to write them with their scores")
    parser.add_argument(
        "--max-length",
        type=int,
        help="tokens of prompt and response; a row with more is a bad row (default: what the model takes)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="bfloat16 and float16 compute as TRL does with bf16=True, its default, or fp16=True; float32 has the digits "
        "that these round away (default: %(default)s)",
    )
    parser.add_argument("--device", help="default: the GPU where there is one")
    parser.add_argument("--batch-size", type=int, default=32, help="responses in a pass (default: %(default)s)")
    _passes.add_arguments(parser)
    args = parser.parse_args(argv)
    return _passes.run(parser, args, args.data, "DATA", _run)


def _run(args: argparse.Namespace) -> Output:
    source = open_source(args.data, args.split)
    kind = _kind(source)
    model = RewardModel(
        args.model, dtype=args.dtype, device=args.device, batch_size=args.batch_size, max_length=args.max_length
    )
    return add_scores(args, source, kind, model)


def add_scores(args: argparse.Namespace, source: Source, kind: tuple[str, ...], model: RewardModel) -> Output:
    """The scores of a model for the rows of a source, in `args.out`.

    Args:
        args: `out`, `on_error`, `dtype` and `split`, as the command has them.
        kind: The columns of texts that the rows have: one of the keys of _KINDS.
    """
    from tqdm import tqdm

    skip = args.on_error == "skip"
    # Not the batch size nor the device, which move no more than a score's last bits: what was
    # too large for one of them goes on with another.
    settings: dict[str, Any] = {"MODEL": model.identity, "--dtype": args.dtype, "--max-length": model.max_length}
    settings |= _passes.settings_of_input(args, "DATA", source)
    with Output(args.out, settings, skip=skip) as output:
        with tqdm(total=source.total, initial=output.position, unit=" rows", disable=None, mininterval=0.5) as bar:
            for batch in source.batches(output.position, _SHARD_ROWS):
                if (fraction := source.fraction) is not None:
                    bar.total = int(batch.end / fraction)

                def progress(share: float, batch: Batch = batch) -> None:
                    bar.update(batch.start + int(share * (batch.end - batch.start)) - bar.n)

                output.write(batch, *_scored(batch, kind, model, skip, progress))
                progress(1.0)
        return _passes.finish(output, args.data)


def _kind(source: Source) -> tuple[str, ...]:
    """Which of _KINDS the rows are: what the table's columns say, or the first line that is of a kind."""

    def kind_of(columns: Any) -> tuple[str, ...] | None:
        return next((kind for kind in _KINDS if all(name in columns for name in kind)), None)

    if (columns := source.columns) is not None:
        if (kind := kind_of(columns)) is not None:
            for name in _KINDS[kind]:
                if name in columns:
                    raise ValueError(f"{source.name}: has a column {name!r} already")
            return kind
        raise ValueError(
            f"{source.name}: has no columns chosen and rejected, responses or response; its columns are {', '.join(columns)}"
        )
    empty = True
    for batch in source.batches(rows=_SHARD_ROWS):
        for row in batch.rows():
            empty = False
            if not isinstance(row, RowError) and (kind := kind_of(row)) is not None:
                return kind
    raise ValueError(
        f"{source.name}: holds no rows" + ("" if empty else " with chosen and rejected, responses or response")
    )


def _scored(
    batch: Batch, kind: tuple[str, ...], model: RewardModel, skip: bool, progress: Any
) -> tuple[Columns, list[int], list[dict[str, Any]]]:
    """The scores of the rows that are good, which those are, and what is to be said of the others."""
    bad: dict[int, str] = {}

    def refuse(i: int, error: RowError) -> None:
        if not skip:
            raise ValueError(f"{batch.place(i)}: {error.message}") from None
        bad[i] = error.message

    encoded: dict[int, dict[str, list[int]]] = {}
    for i, row in enumerate(batch.rows(_COLUMNS)):
        try:
            if isinstance(row, RowError):
                raise row
            if again := [name for name in _KINDS[kind] if name in row]:
                raise ValueError(f"{batch.place(i)}: has a column {again[0]!r} already")
            encoded[i] = _encoded(row, kind, model)
        except RowError as error:
            refuse(i, error)
    scores = model.score([ids for row in encoded.values() for ids in row.values()], progress)
    ends = np.cumsum([len(row) for row in encoded.values()], dtype=int)[:-1]
    kept: dict[int, np.ndarray] = {}
    for (i, row), numbers in zip(encoded.items(), np.split(scores, ends), strict=False):
        for name, score in zip(row, numbers, strict=True):
            if not np.isfinite(score):
                refuse(i, RowError(f"{name} gets the score {score} of {model.name}"))
                break
        else:
            kept[i] = numbers
    if kind == ("responses",):
        columns: dict[str, Any] = {"scores": list(kept.values())}
    else:
        table = np.array(list(kept.values()), np.float32).reshape(-1, len(kind))
        columns = dict(zip(_KINDS[kind], table.T, strict=True))
    skipped = [{"place": batch.place(i), "error": bad[i], "row": batch.original(i)} for i in sorted(bad)]
    return columns, list(kept), skipped


def _encoded(row: dict[str, Any], kind: tuple[str, ...], model: RewardModel) -> dict[str, list[int]]:
    """What the model reads for each response of a row."""
    for name in kind:
        if name not in row:
            raise RowError(f"has no {name}, its keys are {', '.join(row)}")
    if kind == ("responses",):
        if not isinstance(row["responses"], list) or not row["responses"]:
            raise RowError(f"responses is {row['responses']!r:.80}, must be a list of texts or lists of messages")
        responses = {f"responses[{i}]": response for i, response in enumerate(row["responses"])}
    else:
        responses = {name: row[name] for name in kind}
    values = inputs(row.get("prompt"), responses, end=model.end)
    tools, options = row.get("tools"), row.get("chat_template_kwargs")
    return {name: model.encode(name, value, tools, options) for name, value in zip(responses, values, strict=True)}
