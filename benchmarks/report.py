"""Benchmark `pcrm report` on a million pairs, from start to finished page.

    python benchmarks/report.py [--pairs 1000000]

The pairs are random. Each has scores, a prior, a prompt and two responses of 20 to 400 characters. A second
file has lengths instead of texts. The target is 10 s on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000, help="number of pairs (default: %(default)s)")
    n = parser.parse_args().pairs
    random = np.random.default_rng(0)
    length = random.integers(20, 401, (2, n))
    score = random.normal(0, 2, (2, n)) + 0.003 * length + [[0.5], [0.0]]
    numbers = {"chosen_score": score[0], "rejected_score": score[1], "prior": random.random(n)}
    filler = "the quick brown fox jumps over the lazy dog; " * 10
    texts = {"prompt": ["Write a sentence about a fox."] * n}
    texts |= {k: [filler[:i] for i in row] for k, row in zip(("chosen", "rejected"), length.tolist(), strict=True)}
    lengths = {"chosen_length": length[0], "rejected_length": length[1]}
    with tempfile.TemporaryDirectory() as folder:
        for name, columns in (("lengths", numbers | lengths), ("texts", numbers | texts)):
            table = pa.table(columns)
            for ending in ("parquet", "jsonl"):
                path = Path(folder, f"{name}.{ending}")
                if ending == "parquet":
                    pq.write_table(table, path)
                else:
                    table.to_pandas().to_json(path, orient="records", lines=True)
                command = [sys.executable, "-m", "pcrm.cli", "report", str(path), "--out", f"{folder}/out"]
                begin = time.perf_counter()
                subprocess.run([*command, "--preset", "alpaca/length_ratio"], check=True, stdout=subprocess.DEVNULL)
                seconds = time.perf_counter() - begin
                size = path.stat().st_size / 1e6
                print(f"{path.name:16}{size:7.0f} MB{seconds:8.1f} s for {n:,} pairs", flush=True)
                path.unlink()


if __name__ == "__main__":
    main()
