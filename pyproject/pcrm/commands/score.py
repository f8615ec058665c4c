"""`pcrm score`: the scores of a trained reward model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluate import DTYPES
from . import _rows

if TYPE_CHECKING:
    from ..data.resumable import ResumableOutput
    from ..evaluate.score_rows import PrinciplePrompts
    from ..evaluate.shared_out import Processes

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

    torchrun --nproc_per_node 8 -m pcrm score MODEL DATA --out OUT

shares the rows out among 8 GPUs, those of one prompt to the same GPU. Begun with one number of
processes, a run goes on with any other. Without GPUs the processes compute on the CPU.
"""


def main(argv: list[str]) -> int:
    from ..evaluate.shared_out import Processes

    with Processes() as processes:
        return processes.serve() if processes.rank else run(argv, processes)


def run(argv: list[str], processes: Processes) -> int:
    """What the first process does."""
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
    parser.add_argument("--device", help="default: the GPU where there is one, one for each process")
    parser.add_argument("--batch-size", type=int, default=32, help="responses in a pass (default: %(default)s)")
    parser.add_argument(
        "--no-prefix-sharing",
        action="store_true",
        help="compute the prompt once for each of its responses, as training does",
    )
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
    _rows.add_arguments(parser)
    args = parser.parse_args(argv)
    if args.principle_template and not args.principles:
        parser.error("--principle-template goes with --principles")

    def work() -> ResumableOutput:
        from ..data.sources import open_source
        from ..evaluate.score_rows import add_scores, kind_to_score, load_models

        source = open_source(args.data, args.split)
        kind = kind_to_score(source)
        asked = _asked(args.principles, args.principle_template)  # before the model, which takes longer to read
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
    """What --principles and --principle-template ask for."""
    from ..evaluate.score_rows import PrinciplePrompts
    from ..methods import principles

    if not given:
        return None
    text = Path(template).read_text(encoding="utf-8-sig").removesuffix("\n") if template else principles.TEMPLATE
    asked = PrinciplePrompts(None, text)
    if given != "column":
        asked.given = principles.load(given)
    return asked
