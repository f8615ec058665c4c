"""A million calls do not grow the process."""

import contextlib
import gc
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pcrm._engine import native


@pytest.mark.slow
def test_a_million_calls_keep_their_size():
    """Less than 1 MB, over all functions of the bridge, including errors.

    Runs in a separate process: after other tests, a process has a gigabyte that the kernel reclaims and
    returns at any time.
    """
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2**20


def resident() -> int:
    """The process's anonymous memory (not of files) in bytes, as counted by the kernel."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", status)[1])


def growth() -> int:
    bridge = native.library()
    n = 8
    chosen, rejected, delta, similarity = (torch.rand(n) for _ in range(4))
    bad = -delta
    loss, g, h = torch.empty(()), torch.empty(n), torch.empty(n)
    ids = torch.randint(1, 9, (n, 4))
    offsets = torch.arange(n + 1) * 4
    numbers = torch.tensor([10, 0.001, -5, 0, 0, 0, 0], dtype=torch.float64)
    ragged = (ids.data_ptr(), offsets.data_ptr(), ids.numel())
    pairs = (chosen.data_ptr(), rejected.data_ptr())

    def calls() -> None:
        for _ in range(20_000):
            bridge.bridge_RewardLoss(
                4, n, loss.data_ptr(), g.data_ptr(), h.data_ptr(), *pairs, delta.data_ptr(), 0.0, 0.0, 0, False
            )
            bridge.bridge_Deltas(4, n, g.data_ptr(), similarity.data_ptr(), numbers.data_ptr())
            bridge.bridge_LengthRatios(n, g.data_ptr(), *ragged, *ragged, -1)
            bridge.bridge_Tier()
            with contextlib.suppress(RuntimeError):
                bridge.bridge_RewardLoss(4, n, loss.data_ptr(), 0, 0, *pairs, bad.data_ptr(), 0.0, 0.0, 0, False)

    calls()  # warm up: allocations that happen once
    gc.collect()
    before = resident()
    for _ in range(10):
        calls()
    gc.collect()
    return resident() - before


if __name__ == "__main__":
    print(growth())
