"""`pcrm score`: the scores of a trained reward model."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data import row_pipeline
from ..data.preferences import RowError, inputs, listed
from ..data.resumable import Output
from ..data.sources import Batch, Columns, Source, open_source
from ..evaluate.reward_model import DTYPES, RewardModel
from ..methods import principles
from ..methods.principles import Principle

_DESCRIPTION = """\
Adds the scores of a reward model to rows of one kind:

  chosen, rejected    pairs: chosen_score and rejected_score
  responses           rankings: scores, one for each response, in their order
  response            single responses: score

with a prompt or without one, plain or conversational, read as TRL's RewardTrainer reads them.
With --principles the prompt has these in it, and scores_by_principle has the scores with each
of them alone. Rows keep their order and their other columns. DATA and OUT end in .jsonl, .jsonl.gz or .parquet
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
_COLUMNS = ("prompt", "principles", "tools", "chat_template_kwargs", *(name for kind in _KINDS for name in kind))

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
        help="tokens of prompt and response; a row with more is a bad row. More than the default only for models with "
        "relative, rotary or scaled positions (default: what model and tokenizer say)",
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
    parser.add_argument(
        "--principles",
        metavar="FILE",
        help="a JSON list of principles, texts or objects with text and name, or `column`: those of each row's principles",
    )
    parser.add_argument(
        "--principle-template",
        metavar="FILE",
        help="a text with {principles} and {prompt}, less a line end at its end: what the prompt becomes",
    )
    row_pipeline.add_arguments(parser)
    args = parser.parse_args(argv)
    if args.principle_template and not args.principles:
        parser.error("--principle-template goes with --principles")
    return row_pipeline.run(parser, args, args.data, "DATA", _run)


def _run(args: argparse.Namespace) -> Output:
    source = open_source(args.data, args.split)
    kind = row_pipeline.kind(source, _KINDS, "chosen and rejected, responses or response")
    if (columns := source.columns) is not None:
        for name in _KINDS[kind]:
            if name in columns:
                raise ValueError(f"{source.name}: has a column {name!r} already")
    asked = _Principles.of(args)
    model = RewardModel(
        args.model, dtype=args.dtype, device=args.device, batch_size=args.batch_size, max_length=args.max_length
    )
    return add_scores(args, source, kind, model, asked)


def add_scores(
    args: argparse.Namespace,
    source: Source,
    kind: tuple[str, ...],
    model: RewardModel,
    asked: _Principles | None = None,
) -> Output:
    """The scores of a model for the rows of a source, in `args.out`.

    Args:
        args: `out`, `on_error`, `dtype` and `split`, as the command has them.
        kind: The columns of texts that the rows have: one of the keys of _KINDS.
        asked: The principles in their prompts.
    """
    from tqdm import tqdm

    skip = args.on_error == "skip"
    # Not the batch size nor the device, which move no more than a score's last bits: what was
    # too large for one of them goes on with another.
    settings: dict[str, Any] = {"MODEL": model.identity, "--dtype": args.dtype, "--max-length": model.max_length}
    if asked is not None:
        settings |= {"--principles": asked.given or "column", "--principle-template": asked.template}
    settings |= row_pipeline.settings_of_input(args, "DATA", source)
    with Output(args.out, settings, skip=skip) as output:
        with tqdm(total=source.total, initial=output.position, unit=" rows", disable=None, mininterval=0.5) as bar:
            for batch in source.batches(output.position, _SHARD_ROWS):
                if (fraction := source.fraction) is not None:
                    bar.total = int(batch.end / fraction)

                def progress(share: float, batch: Batch = batch) -> None:
                    bar.update(batch.start + int(share * (batch.end - batch.start)) - bar.n)

                output.write(batch, *_scored(batch, kind, model, asked, skip, progress))
                progress(1.0)
        return row_pipeline.finish(output, args.data)


@dataclass
class _Principles:
    """What --principles and --principle-template ask for; `given` is None where the rows have theirs."""

    given: list[Principle] | None
    template: str

    @classmethod
    def of(cls, args: argparse.Namespace) -> _Principles | None:
        if not args.principles:
            return None
        template = principles.TEMPLATE
        if args.principle_template:
            template = Path(args.principle_template).read_text(encoding="utf-8-sig").removesuffix("\n")
        principles.into_prompt("", [], template)  # a template that is none says so before the model is read
        return cls(None if args.principles == "column" else principles.load(args.principles), template)

    def prompts(self, row: dict[str, Any]) -> dict[str | None, Any]:
        """The row's prompt with all of its principles, and by the name of each with it alone."""
        found = principles.parse(row.get("principles")) if self.given is None else self.given
        prompt = row.get("prompt")
        together = principles.into_prompt(prompt, [p.text for p in found], self.template)
        return {None: together} | {p.name: principles.into_prompt(prompt, [p.text], self.template) for p in found}


def _scored(
    batch: Batch, kind: tuple[str, ...], model: RewardModel, asked: _Principles | None, skip: bool, progress: Any
) -> tuple[Columns, list[int], list[dict[str, Any]]]:
    """The scores of the rows that are good, which those are, and what is to be said of the others."""
    bad: dict[int, str] = {}

    def refuse(i: int, error: RowError) -> None:
        if not skip:
            raise row_pipeline.bad_row(batch, i, error) from None
        bad[i] = error.message

    encoded: dict[int, dict[tuple[str | None, str], list[int]]] = {}
    new = (*_KINDS[kind], *(["scores_by_principle"] if asked else []))
    for i, row in enumerate(batch.rows((*_COLUMNS, *new))):
        try:
            if isinstance(row, RowError):
                raise row
            if again := [name for name in new if name in row]:
                raise ValueError(f"{batch.place(i)}: has a column {again[0]!r} already")
            encoded[i] = _encoded(row, kind, model, asked)
        except RowError as error:
            refuse(i, error)
    scores = model.score([ids for row in encoded.values() for ids in row.values()], progress)
    ends = np.cumsum([len(row) for row in encoded.values()], dtype=int)[:-1]
    kept: dict[int, dict[str | None, np.ndarray]] = {}
    for (i, row), numbers in zip(encoded.items(), np.split(scores, ends), strict=False):
        for (principle, name), score in zip(row, numbers, strict=True):
            if not np.isfinite(score):
                by = "" if principle is None else f" by the principle {principle!r:.80}"
                refuse(i, RowError(f"{name} gets the score {score} of {model.name}{by}"))
                break
        else:
            names = list(dict.fromkeys(principle for principle, _ in row))
            kept[i] = dict(zip(names, numbers.reshape(len(names), -1), strict=True))
    together = [row[None] for row in kept.values()]
    if kind == ("responses",):
        columns: dict[str, Any] = {"scores": together}
    else:
        table = np.array(together, np.float32).reshape(-1, len(kind))
        columns = dict(zip(_KINDS[kind], table.T, strict=True))
    if asked:
        columns["scores_by_principle"] = [
            [{"principle": name} | _named(kind, numbers) for name, numbers in row.items() if name is not None]
            for row in kept.values()
        ]
    skipped = [{"place": batch.place(i), "error": bad[i], "row": batch.original(i)} for i in sorted(bad)]
    return columns, list(kept), skipped


def _named(kind: tuple[str, ...], numbers: np.ndarray) -> dict[str, Any]:
    return {"scores": numbers} if kind == ("responses",) else dict(zip(_KINDS[kind], numbers, strict=True))


def _encoded(
    row: dict[str, Any], kind: tuple[str, ...], model: RewardModel, asked: _Principles | None
) -> dict[tuple[str | None, str], list[int]]:
    """What the model reads for each response of a row, by the name of a principle, None for all of them, and its own."""
    for name in kind:
        if name not in row:
            raise RowError(f"has no {name}, its keys are {listed(row)}")
    if kind == ("responses",):
        if not isinstance(row["responses"], list) or not row["responses"]:
            raise RowError(f"responses is {row['responses']!r:.80}, must be a list of texts or lists of messages")
        responses = {f"responses[{i}]": response for i, response in enumerate(row["responses"])}
    else:
        responses = {name: row[name] for name in kind}
    tools, options = row.get("tools"), row.get("chat_template_kwargs")
    return {
        (principle, name): model.encode(name, value, tools, options)
        for principle, prompt in (asked.prompts(row) if asked else {None: row.get("prompt")}).items()
        for name, value in zip(responses, inputs(prompt, responses, end=model.end), strict=True)
    }
