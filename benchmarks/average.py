"""How long `pcrm.averaging.average` takes, in units of the time of copying its inputs.

    python benchmarks/average.py [--dtype bfloat16] [--models 2] [--megabytes 300] [--rounds 7]

Checkpoints of one size are made up, read once so that the page cache has them, and then copied
and averaged in turns: what else the machine does falls on both. Each is timed until the kernel
has the bytes, and until the disk has them; averaging always waits for the disk, so in the first
its wait is taken out. The target is 1.5.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from pcrm.averaging import average
from safetensors.torch import save_file


def checkpoint(folder: Path, dtype: torch.dtype, size: int, seed: int) -> Path:
    """A folder of a configuration and matrices of 1024 columns, the weights of a small network."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    rows, tensors = 8192, {}
    for i in range(max(1, size // (rows * 1024 * dtype.itemsize))):
        tensors[f"layers.{i}.weight"] = torch.randn(rows, 1024, generator=generator).mul_(0.02).to(dtype)
        tensors[f"layers.{i}.bias"] = torch.randn(1024, generator=generator).to(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def copied(models: list[Path], out: Path) -> tuple[float, float]:
    """Seconds until the kernel has the copies, and until the disk has them."""
    out.mkdir()
    begin = time.perf_counter()
    targets = [shutil.copyfile(m / "model.safetensors", out / m.name) for m in models]
    kernel = time.perf_counter() - begin
    for target in targets:
        descriptor = os.open(target, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return kernel, time.perf_counter() - begin


def averaged(models: list[Path], out: Path) -> tuple[float, float]:
    begin = time.perf_counter()
    last = begin

    def progress(done: int, total: int) -> None:
        nonlocal last
        last = time.perf_counter()

    average(models, out, progress=progress)
    return last - begin, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dtype", nargs="+", default=["bfloat16", "float16", "float32"], help="default: all but float64"
    )
    parser.add_argument("--models", type=int, nargs="+", default=[2, 3], help="how many (default: 2 and 3)")
    parser.add_argument("--megabytes", type=int, default=300, help="of each (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--folder", help="where the files are made and removed (default: that of temporary files)")
    args = parser.parse_args()
    print(f"{args.megabytes} MB each, median of {args.rounds}; seconds, and averaging / copying of the same round")
    print("dtype     models   cached: copy average ratio   on disk: copy average ratio")
    for dtype in args.dtype:
        for count in args.models:
            with tempfile.TemporaryDirectory(dir=args.folder) as name:
                folder = Path(name)
                models = [
                    checkpoint(folder / f"m{i}", getattr(torch, dtype), args.megabytes * 10**6, i) for i in range(count)
                ]
                os.sync()
                rounds = []
                for i in range(args.rounds):
                    row = []
                    for do in (copied, averaged):
                        row += do(models, folder / f"out{i}{do.__name__}")
                        shutil.rmtree(folder / f"out{i}{do.__name__}")
                    rounds.append((row[0], row[2], row[2] / row[0], row[1], row[3], row[3] / row[1]))
            a = [statistics.median(column) for column in zip(*rounds, strict=True)]
            print(f"{dtype:9}{count:7}{a[0]:15.2f}{a[1]:8.2f}{a[2]:6.2f}{a[3]:16.2f}{a[4]:8.2f}{a[5]:6.2f}", flush=True)


if __name__ == "__main__":
    main()
