"""Batches for the tests of the losses, and comparisons of their results."""

import contextlib
import math

import pytest
import torch

PAD = 0
PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 2e-6)]
precisions = pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=["float64", "float32"])


def close(got, want, relative, absolute=0.0):
    torch.testing.assert_close(got.double(), torch.as_tensor(want, dtype=torch.float64), rtol=relative, atol=absolute)


def batch(n=8, dtype=torch.float64, seed=0, requires_grad=True):
    g = torch.Generator().manual_seed(seed)
    chosen, rejected = (4 * torch.randn(n, generator=g, dtype=torch.float64) for _ in range(2))
    delta = 1 + 20 * torch.rand(n, generator=g, dtype=torch.float64)
    delta[::3] = math.inf
    return *(x.to(dtype).requires_grad_(requires_grad) for x in (chosen, rejected)), delta.to(
        torch.float32 if dtype.itemsize < 4 else dtype
    )


def tokens(rows=4, width=9, seed=0, dtype=torch.float64):
    """Scores, ids and deltas of a batch with shared starts, padding and one pair of equal rows."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 50, (2, rows, width), generator=g)
    ids[1, :, :3] = ids[0, :, :3]
    for i in range(rows):
        ids[0, i, width - i % 4 :] = PAD
        ids[1, i, width - (2 * i) % 5 :] = PAD
    ids[1, -1] = ids[0, -1]
    scores = 3 * torch.randn(2, rows, width, generator=g, dtype=torch.float64)
    delta = 1 + 9 * torch.rand(rows, generator=g, dtype=torch.float64)
    delta[0] = math.inf
    return (
        *(s.to(dtype).requires_grad_() for s in scores),
        *ids,
        delta.to(torch.float64 if dtype == torch.float64 else torch.float32),
    )


def logps(n=6, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    policy = -5 - 200 * torch.rand(2, n, generator=g, dtype=torch.float64)
    reference = policy + 10 * torch.randn(2, n, generator=g, dtype=torch.float64)
    delta = 1 + 9 * torch.rand(n, generator=g, dtype=torch.float64)
    delta[1] = math.inf
    out = (*(p.to(dtype).requires_grad_() for p in policy), *reference.to(dtype))
    return *out, delta.to(torch.float64 if dtype == torch.float64 else torch.float32)


def refused(backend, error, message):
    """`pytest.raises`, except for values of delta on a device, which are not checked."""
    unseen = backend == "cuda" and "delta\\[" in message
    return contextlib.nullcontext() if unseen else pytest.raises(error, match=message)
