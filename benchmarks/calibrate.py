"""Benchmark the curve of `pcrm calibrate` against statsmodels, and the whole command on many pairs.

    python benchmarks/calibrate.py [--lengths 20000] [--pairs 1000000]

The curve is the lowess of points with distinct lengths, with two thirds of the points in each fit, three robust
iterations and no interpolation (delta = 0). The target is 0.6 of statsmodels' time. The pairs are random, with
responses of 20 to 400 characters.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pcrm.evaluate.statistics import lowess
from statsmodels.nonparametric.smoothers_lowess import lowess as of_statsmodels

from pcrm import backends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, default=20_000, help="points of the curve (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=1_000_000, help="pairs for the command (default: %(default)s)")
    args = parser.parse_args()
    random = np.random.default_rng(0)
    curve(random, args.lengths)
    command(random, args.pairs)


def curve(random: np.random.Generator, n: int) -> None:
    x = random.permutation(n) + 1.0
    y = np.log(x) + random.normal(size=n)
    theirs, want = timed(lambda: of_statsmodels(y, x, return_sorted=False))
    print(f"statsmodels{'':16}{theirs:8.2f} s for {n:,} distinct lengths", flush=True)
    for threads in sorted({1, os.cpu_count() or 1}):
        backends.set_num_threads(threads)
        ours, got = timed(lambda: lowess(x, y))
        print(
            f"pcrm, {threads} thread{'s' * (threads > 1):18}{ours:8.2f} s, {ours / theirs:.2f} of that; "
            f"largest difference {np.abs(got - want).max():.0e}",
            flush=True,
        )
    backends.set_num_threads(0)


def timed(compute: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Return the median time of three calls, and the result."""
    seconds, result = [], np.empty(0)
    for _ in range(3):
        begin = time.perf_counter()
        result = compute()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds), result


def command(random: np.random.Generator, n: int) -> None:
    length = random.integers(20, 401, (2, n))
    score = random.normal(0, 2, (2, n)) + 0.003 * length
    filler = "the quick brown fox jumps over the lazy dog; " * 10
    columns = {"prompt": ["Write a sentence about a fox."] * n}
    for name, its_length, its_score in zip(("chosen", "rejected"), length.tolist(), score, strict=True):
        columns |= {name: [filler[:i] for i in its_length], f"{name}_score": its_score}
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("parquet", "jsonl"):
            path, out = Path(folder, f"pairs.{ending}"), Path(folder, f"out.{ending}")
            if ending == "parquet":
                pq.write_table(pa.table(columns), path)
            else:
                pa.table(columns).to_pandas().to_json(path, orient="records", lines=True)
            begin = time.perf_counter()
            program = [sys.executable, "-m", "pcrm.cli", "calibrate", str(path), "--out", str(out)]
            subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
            print(f"pcrm calibrate, {ending:11}{time.perf_counter() - begin:8.1f} s for {n:,} pairs", flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
