"""The length ratio, from lists and tensors, on both backends."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pcrm.priors import length_ratio

import pcrm

ids = st.lists(st.integers(0, 3), max_size=12)


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=6), st.sampled_from([None, 0, 3]))
@settings(max_examples=200, deadline=None)
def test_go_has_the_bits_of_python(pairs, pad):
    results = []
    for name in ("go", "torch"):
        with pcrm.backends.use_backend(name):
            results.append(length_ratio(*zip(*pairs, strict=True), pad_token_id=pad))
    assert torch.equal(*results)
    assert ((results[0] >= 0) & (results[0] <= 1)).all()


@given(
    st.lists(st.tuples(st.lists(st.integers(1, 3), max_size=9), st.lists(st.integers(1, 3), max_size=9)), min_size=1)
)
@settings(max_examples=100, deadline=None)
def test_padding_changes_nothing(pairs):
    def padded(rows, extra):
        width = max(map(len, rows)) + extra
        return torch.tensor([r + [0] * (width - len(r)) for r in rows]).reshape(len(rows), width)

    chosen, rejected = map(list, zip(*pairs, strict=True))
    want = length_ratio(chosen, rejected)
    for dtype in (torch.int64, torch.int32):
        got = length_ratio(padded(chosen, 2).to(dtype), padded(rejected, 0).to(dtype), pad_token_id=0)
        assert torch.equal(got, want)


def test_values(backend):
    chosen, rejected = [[1, 2, 3], [1, 2], [], [1, 2]], [[1, 9], [1, 2], [], [1]]
    got = length_ratio(chosen, rejected)
    assert got.dtype == torch.float32 and got.tolist() == [0.5, 1, 1, 0]
    assert length_ratio([], []).shape == (0,)
    wide = torch.tensor([[1, 2, 3, 0], [1, 2, 0, 0]])
    assert length_ratio(wide[:, :3], wide.flip(0), pad_token_id=0).tolist() == [0, 0]
    assert length_ratio(wide[:, 1:], wide[:, 1:].flip(0), pad_token_id=0).tolist() == [0, 0]  # not contiguous


@pytest.mark.parametrize(
    ("error", "message", "chosen", "rejected", "pad"),
    [
        (ValueError, "rejected_ids has 1 rows, chosen_ids has 2", [[1], [2]], [[1]], None),
        (ValueError, r"chosen_ids has shape \(2,\), must be \(B, L\)", torch.tensor([1, 2]), [[1], [2]], None),
        (TypeError, "rejected_ids has dtype torch.float32, must be int64 or int32", [[1]], torch.ones(1, 1), None),
        (TypeError, "chosen_ids is a str", "ab", [[1], [2]], None),
        (ValueError, "pad_token_id is -1, must be at least 0", [[1]], [[1]], -1),
    ],
)
def test_bad_input(backend, error, message, chosen, rejected, pad):
    with pytest.raises(error, match=message):
        length_ratio(chosen, rejected, pad_token_id=pad)


def test_bad_rows():
    with pcrm.backends.use_backend("go"):
        with pytest.raises(TypeError, match=r"rejected_ids\[1\] is no sequence of integers"):
            length_ratio([[1], [2]], [[1], ["x"]])
        with pytest.raises(TypeError, match=r"chosen_ids\[0\] is no sequence of integers"):
            length_ratio([3, 4], [[1], [2]])
