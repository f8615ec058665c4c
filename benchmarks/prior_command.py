"""Benchmark `pcrm prior --prior lexical` against reading and writing the same lines as JSON.

    python benchmarks/prior_command.py FILE [--repeat 10] [--rounds 3]

Both run in their own process with one thread, on FILE repeated `--repeat` times. FILE is a .jsonl or
.jsonl.gz file of preferences. The plain pass is json.loads and json.dumps of each line. The start-up time
of the command, mostly the import of torch, is measured on a single row and reported separately, because
it matters less for longer files.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_PLAIN = """
import json, sys
with open(sys.argv[1]) as source, open(sys.argv[2], "w") as out:
    for line in source:
        out.write(json.dumps(json.loads(line)) + "\\n")
"""
_PRIOR = """
import sys, pcrm
from pcrm.cli import main
pcrm.backends.set_num_threads(1)
sys.exit(main(["prior", sys.argv[1], "--out", sys.argv[2]]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--repeat", type=int, default=10, help="repetitions of FILE (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds, of which the median is reported (default: %(default)s)"
    )
    args = parser.parse_args()
    lines = gzip.decompress(args.file.read_bytes()) if args.file.suffix == ".gz" else args.file.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        source, one = Path(folder, "in.jsonl"), Path(folder, "one.jsonl")
        with source.open("wb") as file:
            for _ in range(args.repeat):
                file.write(lines)
        one.write_bytes(lines.splitlines(keepends=True)[0])

        def seconds(code: str, path: Path) -> float:
            begin = time.perf_counter()
            argv = [sys.executable, "-c", code, str(path), str(Path(folder, "out.jsonl"))]
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
            return time.perf_counter() - begin

        # In turns, so that other load on the machine affects all of them.
        rounds = [[seconds(_PLAIN, source), seconds(_PRIOR, source), seconds(_PRIOR, one)] for _ in range(args.rounds)]
        plain, prior, start = map(statistics.median, zip(*rounds, strict=True))
        rows = sum(1 for line in source.open("rb") if json.loads(line))
    print(f"{rows:,} rows, {rows and len(lines) * args.repeat / rows:.0f} bytes each, median of {args.rounds}")
    print(f"json.loads, json.dumps   {plain:7.2f} s")
    print(f"pcrm prior               {prior:7.2f} s   {prior / plain:.2f} times as long")
    print(f"  without start-up       {prior - start:7.2f} s   {(prior - start) / plain:.2f} times as long")


if __name__ == "__main__":
    main()
