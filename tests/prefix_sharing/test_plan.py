"""The packed batch, computed by Go and by Python, against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pcrm.prefix_sharing import pack

import pcrm

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=8)


@st.composite
def batches(draw):
    """Rows with common prefixes, at any depth."""
    rows = [draw(tokens)]
    for _ in range(draw(st.integers(0, 8))):
        of = draw(st.sampled_from(rows))
        rows.append(of[: draw(st.integers(0, len(of)))] + draw(tokens if draw(st.booleans()) else st.just([])))
    return [row for row in rows if row]


def padded(rows, pad=0):
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    return ids, torch.tensor([len(row) for row in rows])


def sees(packed):
    """For each index in the flattened batch, the indices that the rule lets a token attend to."""
    rows, width = packed.ids.shape
    return {
        r * width + q: [r * width + k for k in range(q + 1) if q < packed.ends[r, k]]
        for r in range(rows)
        for q in range(width)
    }


@given(batches(), st.integers(0, 4), st.sampled_from([0, 3, 6, 12]))
def test_unpacking_gives_the_rows_back_and_no_token_sees_more(rows, min_shared, budget):
    with pcrm.backends.use_backend("go"):
        packed = pack(*padded(rows), min_shared=min_shared, budget=budget)
    with pcrm.backends.use_backend("torch"):
        for by_go, by_python in zip(packed, pack(*padded(rows), min_shared=min_shared, budget=budget), strict=True):
            torch.testing.assert_close(by_go, by_python, rtol=0, atol=0)
    seen = sees(packed)
    for row, path in zip(rows, packed.gather.tolist(), strict=True):
        assert packed.ids.flatten()[path[: len(row)]].tolist() == row
        assert packed.positions.flatten()[path[: len(row)]].tolist() == list(range(len(row)))
        assert all(seen[at] == path[: i + 1] for i, at in enumerate(path[: len(row)]))
        assert set(path[len(row) :]) <= {path[len(row) - 1]}
    if budget:
        assert packed.ids.shape[1] <= max(budget, *map(len, rows))
    elif min_shared < 2:  # no fewer tokens would do
        assert len(set(packed.gather.flatten().tolist())) == len({(*r[: i + 1],) for r in rows for i in range(len(r))})


@pytest.mark.parametrize("backend", ["go", "torch"])
@pytest.mark.parametrize(
    ("lengths", "options", "error", "message"),
    [
        ([3, 4], {}, ValueError, r"lengths\[1\] must be in \[1, 3\], got 4"),
        ([0, 1], {}, ValueError, r"lengths\[0\] must be in \[1, 3\], got 0"),
        ([3], {}, ValueError, r"lengths must have shape \(2,\), got \(1,\)"),
        ([3, 3], {"min_shared": -1}, ValueError, "min_shared must be in .*, got -1"),
        ([3, 3], {"budget": 1.5}, TypeError, "budget must be an integer, got 1.5"),
    ],
)
def test_refused(backend, lengths, options, error, message):
    with pcrm.backends.use_backend(backend), pytest.raises(error, match=f"^{message}$"):
        pack(torch.zeros(2, 3, dtype=torch.long), torch.tensor(lengths), **options)


@pytest.mark.parametrize("ids", [torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), [[1]], torch.zeros(0, 3).long()])
def test_ids_refused(ids):
    with pytest.raises(ValueError, match=r"^ids must be token ids of shape"):
        pack(ids, torch.tensor([1, 1]))


def test_a_ranking_stays_in_bounded_memory():
    """64 responses of 500 tokens to a prompt of 300: one tree would need a mask of a billion entries."""
    ids = torch.arange(800).repeat(64, 1)
    ids[:, 300:] += 1000 * torch.arange(1, 65)[:, None]
    packed = pack(ids, torch.full((64,), 800), min_shared=16, budget=2048)
    assert packed.ids.shape == (22, 1800)  # three responses a tree
