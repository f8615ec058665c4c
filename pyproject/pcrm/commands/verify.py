"""`pcrm verify`: recompute what a trace recorded."""

from __future__ import annotations

import argparse
import json

from .._engine.native import call, library


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="pcrm verify",
        description="Recomputes every step that pcrm.trace or PCRM_TRACE recorded, in float64, and reports the worst errors of "
        "loss and gradient. Exits with 1 where one is beyond the tolerance of its dtype or a file is not what it should be.",
    )
    parser.add_argument("folder", metavar="DIR", help="the folder of the trace")
    args = parser.parse_args(argv)
    report = json.loads(call(library().bridge_VerifyTrace, args.folder))
    print(report["text"])
    return 0 if report["ok"] else 1
