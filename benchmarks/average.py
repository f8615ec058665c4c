"""How long `pcrm.methods.averaging.average` takes, in units of the time of copying its inputs.

    python benchmarks/average.py [--dtype bfloat16] [--models 2] [--megabytes 300] [--rounds 7]

Checkpoints of one size are made up, read once so that the page cache has them, and then copied
and averaged in turns: what else the machine does falls on both. Each is timed until the kernel
has the bytes, and until the disk has them; averaging always waits for the disk, so in the first
its wait is taken out. The third figure is processor time, which says what is left of the first on
a machine whose processors are all taken: copying uses one, averaging all. The target is 1.5.
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
    """When the kernel has the copies, and when the disk has them."""
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
    """Seconds to the kernel, to the disk, and of all processors."""
    begin, cpu = time.perf_counter(), time.process_time()
    kernel, disk = do(models, out)
    cpu = time.process_time() - cpu
    shutil.rmtree(out)
    return np.array([kernel - begin, disk - begin, cpu])


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
    print(f"{args.megabytes} MB each, {os.cpu_count()} processors; median of {args.rounds} rounds")
    print("                   seconds until cached     averaging / copying, of the same round")
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
