"""Benchmark `pcrm.methods.averaging.average` against copying its inputs.

    python benchmarks/average.py [--dtype bfloat16] [--models 2] [--megabytes 300] [--rounds 7]

Random checkpoints of one size are read once, so that they are in the page cache. Then they are copied
and averaged in turns, so that other load on the machine affects both. The first ratio is the time until
the kernel has the bytes, and the second the time until the disk has them. Averaging always waits for
the disk; the first ratio excludes this wait. The third ratio is processor time, which matters on a busy
machine: copying uses one processor, averaging all of them. The target for the first ratio is 1.5.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pcrm.methods.averaging import average
from safetensors.torch import save_file


def checkpoint(folder: Path, dtype: torch.dtype, size: int, seed: int) -> Path:
    """Write a folder with a configuration and the weights of a small network, matrices of 1024 columns."""
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
    """Copy the models. Return the times when the kernel has the copies and when the disk has them."""
    out.mkdir()
    targets = [shutil.copyfile(m / "model.safetensors", out / m.name) for m in models]
    kernel = time.perf_counter()
    for target in targets:
        descriptor = os.open(target, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return kernel, time.perf_counter()


def averaged(models: list[Path], out: Path) -> tuple[float, float]:
    moments = []
    average(models, out, progress=lambda done, total: moments.append(time.perf_counter()))
    return moments[-1], time.perf_counter()


def measured(do: Callable[[list[Path], Path], tuple[float, float]], models: list[Path], out: Path) -> np.ndarray:
    """Return the seconds until the kernel and the disk have the bytes, and the processor time."""
    begin, cpu = time.perf_counter(), time.process_time()
    kernel, disk = do(models, out)
    cpu = time.process_time() - cpu
    shutil.rmtree(out)
    return np.array([kernel - begin, disk - begin, cpu])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dtype", nargs="+", default=["bfloat16", "float16", "float32"], help="dtypes (default: all except float64)"
    )
    parser.add_argument("--models", type=int, nargs="+", default=[2, 3], help="numbers of models (default: 2 and 3)")
    parser.add_argument("--megabytes", type=int, default=300, help="size of each model (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (default: %(default)s)")
    parser.add_argument("--folder", help="folder for temporary files (default: the system's)")
    args = parser.parse_args()
    print(f"{args.megabytes} MB each, {os.cpu_count()} processors; median of {args.rounds} rounds")
    print("                   seconds until cached     averaging / copying, same round")
    print("dtype     models      copy   average          cached   on disk   processors")
    for dtype in args.dtype:
        for count in args.models:
            with tempfile.TemporaryDirectory(dir=args.folder) as name:
                folder = Path(name)
                models = [
                    checkpoint(folder / f"m{i}", getattr(torch, dtype), args.megabytes * 10**6, i) for i in range(count)
                ]
                os.sync()
                rounds = [
                    [measured(do, models, folder / "out") for do in (copied, averaged)] for _ in range(args.rounds)
                ]
            copy, mean = (np.median([r[i] for r in rounds], axis=0) for i in range(2))
            ratio = np.median([after / before for before, after in rounds], axis=0)
            print(
                f"{dtype:10}{count:6}{copy[0]:10.2f}{mean[0]:10.2f}{ratio[0]:16.2f}{ratio[1]:10.2f}{ratio[2]:13.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
