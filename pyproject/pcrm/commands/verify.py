"""`pcrm verify`: recompute the losses in a trace."""

from __future__ import annotations

import json

from .._engine.native import call, library
from ._parser import Parser

_DESCRIPTION = """\
Recompute every step that pcrm.trace or PCRM_TRACE recorded, in float64, and report the worst
errors of the losses and gradients. The exit status is 1 if an error exceeds the tolerance of its
dtype, or if a file is damaged.
"""
_EXAMPLES = (
    "PCRM_TRACE=trace PCRM_TRACE_EVERY=10 python train.py && pcrm verify trace",
    "pcrm verify reward-model/trace",
)


def main(argv: list[str]) -> int:
    parser = Parser("pcrm verify", _DESCRIPTION, *_EXAMPLES)
    parser.add_argument("folder", metavar="DIR", help="folder with the trace")
    args = parser.parse_args(argv)
    report = json.loads(call(library().bridge_VerifyTrace, args.folder))
    print(report["text"])
    return 0 if report["ok"] else 1
