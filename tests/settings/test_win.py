"""`win_probability` against mpmath and against the loss itself."""

import math

import mpmath
import numpy as np
import pytest
import scipy.optimize
import torch
from helpers.cases import close, precisions, refused
from helpers.documents import blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from pcrm.functional import pcrm_loss

import pcrm
from pcrm import win_probability


@precisions
def test_golden(backend, golden, dtype, tolerance):
    """To 6 roundings of the compute dtype, which is float64 in Go, and the smallest number of each dtype."""
    cases = golden["win_probability"]
    margin = torch.tensor([c["margin"] for c in cases], dtype=dtype)
    delta = torch.tensor([math.inf if c["delta"] is None else c["delta"] for c in cases], dtype=dtype)
    got = win_probability(margin, delta)
    assert got.dtype == dtype
    close(got, [c["win_probability"] for c in cases], 6 * torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal)


def by_definition(margin, delta):
    with mpmath.workdps(700):  # enough digits for the cancellation at the smallest delta and margin
        m, d = mpmath.mpf(margin), mpmath.mpf(delta)
        if 2 * abs(m) >= d:
            return 1.0 if m > 0 else 0.0

        def sigmoid(x):
            return 1 / (1 + mpmath.exp(-x))

        a, b = sigmoid(m) - sigmoid(-m - d), sigmoid(-m) - sigmoid(m - d)
        return float(a / (a + b))


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-300, 1e4), st.floats(-1.1, 1.1) | st.floats(0.999999, 1) | st.floats(-1e-9, 1e-9))
def test_against_mpmath(delta, share):
    margin = share * delta / 2
    want = by_definition(margin, delta)
    for name in ("go", "torch"):
        with pcrm.backends.use_backend(name):
            assert win_probability(margin, delta) == pytest.approx(want, rel=6 * 2**-52, abs=2.3e-308)


def test_the_page(capsys):
    (block,) = blocks("docs/idea.md", "python")
    exec(block, {})
    assert block.split("# ")[1].strip() == ", ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("delta", [0.5, 2.0, 4.0, 9.0, math.inf])
@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.7, 0.95])
def test_it_is_where_the_expected_loss_is_least(backend, p, delta):
    """Checked with the values of the loss, and then with its gradient."""

    def expected(m):
        m = torch.as_tensor(m, dtype=torch.float64).reshape(1)
        return p * pcrm_loss(m, torch.zeros_like(m), delta) + (1 - p) * pcrm_loss(-m, torch.zeros_like(m), delta)

    found = scipy.optimize.minimize_scalar(lambda m: expected(m).item(), (-0.1, 0.1)).x
    # A minimum can be located to the square root of the precision.
    assert win_probability(found, delta) == pytest.approx(p, abs=1e-6)
    margin = scipy.optimize.brentq(lambda m: win_probability(m, delta) - p, -min(delta, 50), min(delta, 50), xtol=1e-15)
    margin = torch.tensor(margin, dtype=torch.float64, requires_grad=True)
    expected(margin).backward()
    assert abs(margin.grad.item()) < 1e-13


def test_types(backend):
    want = 0.7658104099987692
    assert type(win_probability(1, 4)) is float and win_probability(1, 4) == pytest.approx(want, rel=1e-15)
    assert win_probability(1.0, math.inf) == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-15)
    for dtype, result in ((np.float64, np.float64), (np.float32, np.float32), (np.float16, np.float32)):
        margin, delta = np.array([[1.0], [-1.0]], dtype), np.full((2, 1), 4.0, dtype)
        for got in (win_probability(margin, 4), win_probability(margin, delta), win_probability(margin, dtype(4))):
            assert got.dtype == result and got.shape == (2, 1)
            np.testing.assert_allclose(got, [[want], [1 - want]], rtol=1e-7)
        assert type(win_probability(dtype(1), dtype(4))) is result
        assert win_probability(1.0, delta).dtype == result and win_probability(1.0, delta).shape == (2, 1)
    assert win_probability(np.array(1.0), 4.0).shape == () and win_probability(np.empty((0, 3)), 4.0).shape == (0, 3)
    assert (
        win_probability(np.arange(4.0)[::2], np.full(2, 4.0)).tolist()
        == win_probability(np.array([0.0, 2]), 4.0).tolist()
    )
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        margin, delta = torch.tensor([[1.0, -1.0]], dtype=dtype), torch.full((1, 2), 4.0, dtype=dtype)
        for got in (win_probability(margin, 4), win_probability(margin, delta), win_probability(margin, delta[0, 0])):
            assert got.dtype == (dtype if dtype.itemsize > 2 else torch.float32) and got.shape == (1, 2)
            torch.testing.assert_close(
                got.double(), torch.tensor([[want, 1 - want]], dtype=torch.float64), rtol=1e-6, atol=0
            )
        assert win_probability(1.0, delta).shape == (1, 2)
        assert win_probability(margin[0, 0], delta).shape == (1, 2)
    assert win_probability(torch.empty(0, 3), 4.0).shape == (0, 3)
    assert not win_probability(torch.ones(2, requires_grad=True), 4.0).requires_grad
    margins = torch.linspace(-3, 3, 12).reshape(3, 4).T
    assert torch.equal(win_probability(margins, 4.0), win_probability(margins.contiguous(), 4.0))
    assert math.isnan(win_probability(math.nan, 4)) and win_probability(math.inf, 4) == 1


def test_symmetric(backend):
    margin = torch.linspace(0, 3, 301, dtype=torch.float64)
    for delta in (0.1, 4.0, 7.0, math.inf):
        p = win_probability(margin, delta)
        assert torch.equal(p, 1 - win_probability(-margin, delta))
        assert (p.diff() >= 0).all() and (p >= margin.sigmoid() - 2**-52).all()


@pytest.mark.slow
def test_where_torch_looks_into_the_computation():
    margin, delta = torch.tensor([1.0, -1.0]), torch.tensor([4.0, 3.0])
    want = win_probability(margin, delta)
    for traced in (
        torch.compile(win_probability, backend="eager", fullgraph=True),
        torch.func.vmap(win_probability),
    ):
        torch.testing.assert_close(traced(margin, delta), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("margin", "delta", "error", "message"),
    [
        ("1", 4, TypeError, "^margin must be a number, got '1'$"),
        (True, 4, TypeError, "^margin must be a number, got True$"),
        ([1.0], 4, TypeError, r"^margin must be a number, got \[1\.0\]$"),
        (1, None, TypeError, "^delta must be a number, got None$"),
        (1, 0, ValueError, "^delta must be greater than 0, got 0$"),
        (1, math.nan, ValueError, "^delta must be greater than 0, got nan$"),
        (np.ones(2), -1, ValueError, "^delta must be greater than 0, got -1$"),
        (np.ones(2), np.array([4.0, -1]), ValueError, r"^delta\[1\] must be greater than 0, got -1$"),
        (np.ones(2), np.ones(3), ValueError, r"^delta must be one number or have the shape of margin, \(2,\), got \(3,\)$"),
        (np.ones((2, 1)), np.ones(2), ValueError, r"must .* have the shape of margin, \(2, 1\), got \(2,\)$"),
        (np.ones(2, int), 4, TypeError, "^margin must be floating point of at most 64 bits, got dtype int64$"),
        (1.0, np.array(["4"]), TypeError, "^delta must be floating point of at most 64 bits, got dtype <U1$"),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), 4, TypeError, r"^margin\[1\] must be a number, got a masked value$"),
        (torch.ones(2), torch.tensor([4.0, -1.0]), ValueError, r"^delta\[1\] must be greater than 0, got -1$"),
        (torch.ones(2), -1.0, ValueError, "^delta must be greater than 0, got -1$"),
        (torch.ones(2), torch.ones(3), ValueError, r"must .* have the shape of margin, \(2,\), got \(3,\)$"),
        (torch.ones(2, 1), torch.ones(2), ValueError, r"must .* have the shape of margin, \(2, 1\), got \(2,\)$"),
        (torch.ones(2, dtype=torch.int64), 4, TypeError, "^margin must be float32, .* got dtype torch.int64$"),
        (torch.ones(2), np.ones(2), TypeError, "^delta must be a number or a tensor, got ndarray$"),
        (np.ones(2), torch.ones(2), TypeError, "^margin must be a number or a tensor, got ndarray$"),
        (torch.ones(2).to_sparse(), 4, TypeError, "^margin must be a dense tensor"),
        (torch.ones(2), torch.ones(2, requires_grad=True), ValueError, "^delta must not require a gradient"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_input(backend, margin, delta, error, message):
    with refused(backend, error, message):
        win_probability(margin, delta)
