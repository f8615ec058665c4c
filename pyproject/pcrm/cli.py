"""The command line: `pcrm demo` and `pcrm verify`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

_DEMO = """\
Trains two small reward models on the CPU through TRL, plain and constrained, on the same
pairs, and a third with a published preset; prints one table of what they do on held-out
prompts, and writes the models, margins.png and summary.json. The constraint is fitted to the
data: its target margin is --target-alike for alike pairs and --target-unlike for unlike ones.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="pcrm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="see what the constraint does, in a few minutes",
        description=_DEMO,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument(
        "--data",
        metavar="FILE",
        help="preferences in TRL's format, .jsonl, .jsonl.gz or .parquet "
        "(default: generated ones with a known true reward)",
    )
    demo.add_argument("--model", metavar="PATH", help="a checkpoint to start from (default: a small random one)")
    demo.add_argument("--out", metavar="DIR", type=Path, default=Path("demo-out"), help="default: %(default)s")
    demo.add_argument(
        "--preset",
        default="alpaca/length_ratio",
        help="the published setting of the third model (default: %(default)s)",
    )
    for name, kind, default, text in (
        ("target-alike", float, 1.0, "target margin of alike pairs"),
        ("target-unlike", float, 3.0, "target margin of unlike pairs"),
        ("pairs", int, 5000, "pairs to train on, at most"),
        ("held-out", int, 2000, "pairs to hold out, about: whole prompts are"),
        ("epochs", float, 4.0, "passes over the pairs"),
        ("learning-rate", float, None, "1e-3, or 2e-5 with --model"),
        ("batch-size", int, 16, "pairs a step"),
        ("max-length", int, 256, "tokens of prompt and response; longer prompts lose their beginning"),
        ("seed", int, 0, "of the data, the split and the models"),
    ):
        demo.add_argument(
            f"--{name}", type=kind, default=default, help=text if default is None else f"{text} (default: {default:g})"
        )
    verify = commands.add_parser(
        "verify",
        help="recompute what a trace recorded",
        description="Recomputes every step that pcrm.trace or PCRM_TRACE recorded, in float64, and reports the worst errors of "
        "loss and gradient. Exits with 1 where one is beyond the tolerance of its dtype or a file is not what it should be.",
    )
    verify.add_argument("folder", metavar="DIR", help="the folder of the trace")
    args = vars(parser.parse_args(argv))
    if args.pop("command") == "verify":
        return _verify(args["folder"])
    return _demo(args.pop("out"), args)


def _verify(folder: str) -> int:
    from . import backends

    try:
        report = json.loads(backends.call(backends.library().bridge_VerifyTrace, folder))
    except (RuntimeError, ValueError, OSError) as error:
        print(f"pcrm verify: {error}", file=sys.stderr)
        return 1
    print(report["text"])
    return 0 if report["ok"] else 1


def _demo(out: Path, settings: dict) -> int:
    try:
        from .demo import run
    except ImportError as error:
        print(f"pcrm demo: {error}: pip install 'pcrm[demo]'", file=sys.stderr)
        return 1
    try:
        run.run(run.Settings(**settings), out)
    except (ValueError, OSError) as error:
        print(f"pcrm demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
