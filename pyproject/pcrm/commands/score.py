"""`pcrm score`: add the scores of a trained reward model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluate import DTYPES
from . import _rows
from ._parser import Parser

if TYPE_CHECKING:
    from ..data.resumable import ResumableOutput
    from ..evaluate.score_rows import PrinciplePrompts
    from ..evaluate.shared_out import Processes

_DESCRIPTION = """\
Add the scores of a reward model to rows of one kind:

  chosen, rejected    pairs: chosen_score and rejected_score
  responses           rankings: scores, one per response, in the same order
  response            single responses: score

with or without a prompt, plain or conversational, tokenized as in TRL's RewardTrainer. With
--principles the prompts contain the principles, and scores_by_principle has the scores with each
single principle. Rows keep their order and their other columns.

DATA ends in .jsonl, .jsonl.gz, .json, .csv or .parquet, or is a folder of `datasets` or a data set
on the hub. OUT ends in .jsonl, .jsonl.gz or .parquet, or is a folder. An existing OUT is replaced
at the end. To resume an interrupted run, give the same command again; its shards are in OUT.parts.

With torchrun, each process takes a part of the rows, and all rows of a prompt go to the same
process. Each process uses its own GPU, or the CPU if there is none. A run may resume with another
number of processes.
"""
_EXAMPLES = (
    "pcrm score reward-model pairs.jsonl --out scores.jsonl",
    "torchrun --nproc_per_node 8 -m pcrm score reward-model pairs.jsonl --out scores.jsonl",
)


def main(argv: list[str]) -> int:
    from ..evaluate.shared_out import Processes

    with Processes() as processes:
        return processes.serve() if processes.rank else run(argv, processes)


def run(argv: list[str], processes: Processes) -> int:
    """The command, in the first process."""
    parser = Parser("pcrm score", _DESCRIPTION, *_EXAMPLES)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder or hub name of a sequence classification checkpoint with one label, or of a PEFT adapter for one",
    )
    parser.add_argument("data", metavar="DATA", help="the rows to score")
    parser.add_argument("--out", required=True, help="output: the rows with their scores")
    parser.add_argument(
        "--max-length",
        metavar="N",
        type=int,
        help="maximum tokens of prompt and response; a longer row is a bad row. Values above the default only work for "
        "models with relative, rotary or scaled positions (default: the limit of model and tokenizer)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="bfloat16 and float16 compute like TRL with bf16=True (its default) and fp16=True; float32 avoids their "
        "rounding (default: %(default)s)",
    )
    parser.add_argument("--device", help="torch device (default: a GPU per process, or the CPU without GPUs)")
    parser.add_argument(
        "--batch-size", metavar="N", type=int, default=32, help="responses per pass (default: %(default)s)"
    )
    parser.add_argument(
        "--no-prefix-sharing",
        action="store_true",
        help="compute the prompt again for each of its responses, as in training",
    )
    parser.add_argument(
        "--principles",
        metavar="FILE",
        help="JSON list of principles (texts, or objects with text and name), or `column` to read the column principles",
    )
    parser.add_argument(
        "--principle-template",
        metavar="FILE",
        help="text with {principles} and {prompt} that replaces the prompt; a final line end is ignored",
    )
    _rows.add_arguments(parser)
    args = parser.parse_args(argv)
    parser.check_counts(args, "batch_size", "max_length")
    if args.principle_template and not args.principles:
        parser.error("--principle-template requires --principles")

    def work() -> ResumableOutput:
        from ..data.sources import open_source
        from ..evaluate.score_rows import add_scores, kind_to_score, load_models

        source = open_source(args.data, args.split)
        kind = kind_to_score(source)
        asked = _asked(args.principles, args.principle_template)  # before the model, which takes longer to load
        model = {
            "model": args.model,
            "dtype": args.dtype,
            "device": args.device,
            "batch_size": args.batch_size,
            "max_length": args.max_length,
            "prefix_sharing": not args.no_prefix_sharing,
        }
        loaded = processes.everywhere(load_models, [model])[args.model]
        return add_scores(
            source, args.out, loaded, kind, asked=asked, skip=args.on_error == "skip", processes=processes
        )

    return _rows.run(parser, args.data, "DATA", args.out, work)


def _asked(given: str | None, template: str | None) -> PrinciplePrompts | None:
    """The principles from --principles and --principle-template."""
    from ..evaluate.score_rows import PrinciplePrompts
    from ..methods import principles

    if not given:
        return None
    text = Path(template).read_text(encoding="utf-8-sig").removesuffix("\n") if template else principles.TEMPLATE
    asked = PrinciplePrompts(None, text)
    if given != "column":
        asked.given = principles.load(given)
    return asked
