"""`Constraint`: the curve, its types, presets, the fit and the errors."""

import math
import re
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from functools import partial

import numpy as np
import pyarrow
import pytest
import scipy.linalg
import scipy.optimize
import scipy.special
import torch
from helpers.project import ROOT
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pcrm.settings import presets

import pcrm
from pcrm import Constraint


def test_types(backend):
    c = Constraint(10, 0.001, -5)
    want = 10 / 0.501 - 5
    assert isinstance(c.delta(0.5), float) and math.isclose(c.delta(0.5), want, rel_tol=1e-15)
    assert math.isclose(c.delta(1), 10 / 1.001 - 5)
    for dtype in (np.float32, np.float64):
        array = c.delta(np.array([[0.5, 1.0]], dtype=dtype))
        assert array.dtype == dtype and array.shape == (1, 2)
        np.testing.assert_allclose(array[0, 0], want, rtol=1e-6)
    assert isinstance(c.delta(np.float32(0.5)), np.float32)
    tensor = c.delta(torch.tensor([[0.0], [0.5]]))
    assert tensor.dtype == torch.float32 and tensor.shape == (2, 1)
    assert c.delta(torch.tensor([0.5], dtype=torch.bfloat16)).dtype == torch.float32
    assert not c.delta(torch.tensor([0.5], requires_grad=True)).requires_grad
    assert c.delta(torch.zeros(3, 0)).shape == (3, 0)
    assert c.target(0.5) == c.delta(0.5) / 2
    assert torch.equal(c.delta(torch.linspace(0, 1, 9)[::2]), c.delta(torch.linspace(0, 1, 9))[::2])


def test_go_and_torch_have_the_same_deltas():
    s = torch.linspace(0, 1, 1001, dtype=torch.float64)
    c = Constraint(10, 0.001, -5, floor=5.5, cap=100)
    results = []
    for name in ("go", "torch"):
        with pcrm.backends.use_backend(name):
            results.append(c.delta(s))
    torch.testing.assert_close(*results, rtol=1e-14, atol=0)
    assert results[0].min() == 5.5 and results[0].max() == 100


@pytest.mark.parametrize(
    "c",
    [
        Constraint(10, 0.001, -5),
        Constraint(10, 0.0, -5),  # infinite at 0
        Constraint(10, 0.001, -5, floor=5.5, cap=100),
        Constraint(-3, 0.2, 20, cap=12),
        Constraint.fixed(4.5),
        Constraint.fixed(math.inf),
        Constraint.random(4, 5),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("error")
def test_floats_and_arrays_have_the_deltas_of_go(c):
    """Bit for bit: all three divide, add and clip in float64."""
    s = np.linspace(0, 1, 1001)
    with pcrm.backends.use_backend("go"):
        want = c.delta(torch.tensor(s)).numpy()
    np.testing.assert_array_equal(c.delta(s), want)
    np.testing.assert_array_equal([c.delta(x) for x in s.tolist()], want)
    for dtype in (np.float32, np.float16):
        got = c.delta(s.astype(dtype))
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, c.delta(s.astype(dtype).astype(float)).astype(np.float32))
    assert c.delta(np.array(0.5)).shape == () and c.delta(np.empty((0, 3))).shape == (0, 3)


def test_presets(backend):
    assert Constraint.preset("alpaca/length_ratio") == Constraint(10, 0.001, -5)
    assert Constraint.preset("tldr/fixed") == Constraint.fixed(5.0)
    assert {f"{d}/{p}" for d in ("alpaca", "tldr") for p in ("length_ratio", "cosine", "fixed")} <= presets().keys()
    for name in presets():
        assert Constraint.preset(name).delta(1.0) > 0
    with pytest.raises(ValueError, match=r"preset must be .*, got \['alpaca/cosine'\]"):
        pcrm.Constraint.preset(["alpaca/cosine"])
    with pytest.raises(ValueError, match=r"preset must be .*, got 'alpaca/typo'"):
        Constraint.preset("alpaca/typo")


def test_fixed(backend):
    assert Constraint.fixed(4.5).delta(0.0) == Constraint.fixed(4.5).delta(1.0) == 4.5
    assert Constraint.fixed(math.inf).delta(0.3) == math.inf
    assert Constraint.fixed(4.5).is_fixed and not Constraint(10, 0.001, -5).is_fixed


def test_fit_reaches_its_targets(backend):
    s = np.random.default_rng(0).beta(4, 2, 1001)
    c = Constraint.fit(s, target_alike=1, target_unlike=3)
    low, high = np.quantile(s, (0.05, 0.95))
    assert math.isclose(c.target(low), 3, rel_tol=1e-9) and math.isclose(c.target(high), 1, rel_tol=1e-9)
    assert c.target(0.0) == 3 and c.target(1.0) == 1
    assert (c.floor, c.cap) == (2, 6)
    other = Constraint.fit(s.tolist(), target_alike=1, target_unlike=3, quantiles=(0.25, 0.75))
    assert math.isclose(other.target(np.quantile(s, 0.25)), 3, rel_tol=1e-9)


# The quantiles fall on pairs. With others, rounding may change which pairs lie between them.
@given(
    st.lists(st.integers(0, 1000).map(lambda x: x / 1000), min_size=2, max_size=30),
    st.floats(0.1, 5),
    st.floats(0.1, 50),
    st.data(),
)
@settings(max_examples=300, deadline=None)
@pytest.mark.filterwarnings("ignore:most pairs get a target near")
def test_fit_is_the_solution_of_three_equations(s, alike, more, data):
    """SciPy finds beta2, and a linear solver the other betas, on both backends."""
    ascending, last = sorted(s), len(s) - 1
    i, j = sorted((data.draw(st.integers(0, last)), data.draw(st.integers(0, last))))
    low, high = ascending[i], ascending[j]
    assume(high > low and int(i / last * last) == i and int(j / last * last) == j)
    unlike = alike + more

    def betas(beta2):
        x = [[1 / (low + beta2), 1], [1 / (high + beta2), 1]]
        return scipy.linalg.solve(x, [2 * unlike, 2 * alike])

    def off(pole):  # how far the target is from midway at the median of the pairs between
        beta1, beta3 = betas(pole - low)
        return (beta1 / (middle + pole - low) + beta3) / 2 - (alike + unlike) / 2

    between = [x for x in s if low < x < high]
    middle = np.median(between) if between else high
    least, line = low + 1e-6, 10 * (high - low)
    if line <= least or off(least) >= 0:
        pole = least
    elif off(line) <= 0:
        pole = line
    else:
        pole = scipy.optimize.brentq(off, least, line, xtol=1e-14, rtol=1e-14)
    beta2 = pole - low
    beta1, beta3 = betas(beta2)
    for name in ("go", "torch"):
        with pcrm.backends.use_backend(name):
            c = Constraint.fit(s, target_alike=alike, target_unlike=unlike, quantiles=(i / last, j / last))
        # The spread is at least 1e-3, so the rounding of the quantiles, 2^-53, is 1e-13 of it. The solver's
        # equations are worse: beta1 is a difference of about 1/10 of the numbers in it, and beta2 is solved for.
        assert c.beta2 == pytest.approx(beta2, rel=1e-7, abs=1e-9)
        assert c.beta1 == pytest.approx(beta1, rel=1e-6)
        assert c.beta3 == pytest.approx(beta3, rel=1e-6, abs=1e-6 * unlike)
        assert (c.floor, c.cap) == (2 * alike, 2 * unlike)
        target = c.target(np.array([0.0, low, high, 1.0]))
        assert target == pytest.approx([unlike, unlike, alike, alike], rel=1e-9)
        assert (np.diff(c.target(np.linspace(0, 1, 101))) <= 0).all()
        if least < pole < line:
            assert c.target(float(middle)) == pytest.approx((alike + unlike) / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("similarities", "end", "half"),
    [
        ([0.0] * 6 + [0.2, 0.3, 0.5, 0.7], 3, "most 0"),
        ([0.3] * 6 + [0.301, 0.302, 0.5, 0.7], 3, "most 0.3"),
        (np.array([0.1, 0.2, 0.5, *[1.0] * 4]), 1, "least 1"),
        (torch.tensor([0.1, 0.2, 0.5, 1, 1, 1, 1]), 1, "least 1"),
    ],
)
def test_fit_warns_of_a_prior_that_tells_few_pairs_apart(backend, similarities, end, half):
    message = (
        f"most pairs get a target near {end}, because half of them have a similarity of at {half}: this prior hardly tells "
        "pairs apart. Use another prior, other quantiles or a fixed delta"
    )
    with pytest.warns(UserWarning, match=re.escape(message)) as warned:
        Constraint.fit(similarities, target_alike=1, target_unlike=3)
    assert warned[0].filename == __file__


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("similarities", [np.random.default_rng(0).beta(*ab, 500) for ab in ((4, 2), (2, 9), (1, 1))])
def test_fit_does_not_warn_of_usual_priors(backend, similarities):
    Constraint.fit(similarities, target_alike=1, target_unlike=3)
    Constraint.fit([0.1, 0.9], target_alike=1, target_unlike=3)


def test_fit_takes_any_column(backend):
    s = np.random.default_rng(0).beta(4, 2, 64).astype(np.float32)

    def fit(column):
        return Constraint.fit(column, target_alike=1, target_unlike=3)

    want = fit(s)
    wide = np.stack([s, 1 - s], axis=1)
    tensor = torch.tensor(s)
    negated = torch.complex(tensor, -tensor).conj().imag  # a view with the negative bit
    assert negated.is_neg()
    for column in (
        s[::-1],
        wide[:, 0],
        s.tolist(),
        tuple(s),
        tensor,
        tensor.requires_grad_(),
        negated,
        pyarrow.array(s),
    ):
        assert fit(column) == want
    # ascontiguousarray of the other byte order gives the bytes in memory, not the numbers.
    assert fit(s.astype(">f4")) == want
    assert fit(np.array([0, 1])) == fit([0, 1]) == fit(torch.tensor([0, 1], dtype=torch.uint8))
    # Several kinds of numbers and containers.
    mixed = [0, 0.25, np.float32(0.5), torch.tensor(0.75), Fraction(7, 8), np.int8(1)]
    numbers = [0, 0.25, 0.5, 0.75, 0.875, 1]
    for column in (
        mixed,
        (x for x in mixed),
        dict(enumerate(mixed)).values(),
        np.array(numbers, object),
        np.ma.masked_invalid(numbers),
        pyarrow.chunked_array([numbers[:2], numbers[2:]], pyarrow.float64()),
    ):
        assert fit(column) == fit(numbers)


def test_fit_of_many_similarities():
    """torch.quantile has a limit of 2^24."""
    s = torch.linspace(0, 1, 2**24 + 2, dtype=torch.float64)
    results = []
    for name in ("go", "torch"):
        with pcrm.backends.use_backend(name):
            results.append(Constraint.fit(s, target_alike=1, target_unlike=3))
    assert results[0].beta1 == pytest.approx(results[1].beta1, rel=1e-12)
    assert results[0].target(0.05) == pytest.approx(3, rel=1e-9)


def test_margin_of():
    for p in (0.50001, 0.7, 0.95, 0.9999):
        assert scipy.special.expit(pcrm.margin_of(p)) == pytest.approx(p, rel=1e-15)
    assert pcrm.margin_of(np.float64(0.75)) == math.log(3)
    for bad in (0.5, 0.3, 1, 0, -1, 2):
        with pytest.raises(ValueError, match=rf"win_probability must be in \(0\.5, 1\), got {bad}"):
            pcrm.margin_of(bad)
    with pytest.raises(ValueError, match="win_probability must be a number, got nan"):
        pcrm.margin_of(math.nan)
    with pytest.raises(TypeError, match=r"win_probability must be a number, got '0\.7'"):
        pcrm.margin_of("0.7")
    c = Constraint.fit([0.0, 1.0], target_alike=pcrm.margin_of(0.7), target_unlike=pcrm.margin_of(0.95))
    assert scipy.special.expit([c.target(1.0), c.target(0.0)]) == pytest.approx([0.7, 0.95], rel=1e-14)


@pytest.mark.parametrize(
    ("error", "message", "similarities", "options"),
    [
        (ValueError, "target_alike must be greater than 0, got 0: a ceiling of 0", None, {"target_alike": 0}),
        (ValueError, "target_alike must be greater than 0, got -1", None, {"target_alike": -1}),
        (ValueError, "target_alike must be a number, got nan", None, {"target_alike": math.nan}),
        (TypeError, "target_alike must be a number, got '1'", None, {"target_alike": "1"}),
        (
            ValueError,
            "target_unlike must be finite and greater than target_alike, which is 1, got 1",
            None,
            {"target_unlike": 1},
        ),
        (
            ValueError,
            r"target_unlike must be finite and greater than target_alike, which is 1, got 0\.5",
            None,
            {"target_unlike": 0.5},
        ),
        (
            ValueError,
            "target_unlike must be finite and greater than target_alike, which is 1, got inf",
            None,
            {"target_unlike": math.inf},
        ),
        (ValueError, r"beta1 must be finite, got \+?[iI]nf", None, {"target_unlike": 1.7e308}),
        (TypeError, "target_unlike must be a number, got None", None, {"target_unlike": None}),
        (
            ValueError,
            r"quantiles must satisfy 0 <= low < high <= 1, got \(0\.9, 0\.1\)",
            None,
            {"quantiles": (0.9, 0.1)},
        ),
        (ValueError, r"quantiles must satisfy .*, got \(0\.5, 0\.5\)", None, {"quantiles": (0.5, 0.5)}),
        (ValueError, r"quantiles must satisfy 0 <= low .*, got \(nan, 1\.0\)", None, {"quantiles": (math.nan, 1)}),
        (ValueError, r"quantiles must satisfy .*, got \(0\.5, 1\.5\)", None, {"quantiles": (0.5, 1.5)}),
        (ValueError, r"quantiles must satisfy .*, got \(-1\.0, 0\.5\)", None, {"quantiles": (-1, 0.5)}),
        (TypeError, r"quantiles must be two numbers, got \(0\.1, 0\.5, 0\.9\)", None, {"quantiles": (0.1, 0.5, 0.9)}),
        (TypeError, r"quantiles must be two numbers, got 0\.5", None, {"quantiles": 0.5}),
        (TypeError, r"quantiles must be two numbers, got \('a', 1\)", None, {"quantiles": ("a", 1)}),
        (ValueError, "similarities must have at least one number, got none", [], {}),
        (ValueError, "similarities must have at least one number, got none", np.empty(0), {}),
        (ValueError, r"similarities\[1\] must be in \[0, 1\], got 2", [0.1, 2.0], {}),
        (ValueError, r"similarities\[1\] must be .*, got nan", np.array([0.1, np.nan]), {}),
        (TypeError, r"similarities\[1\] must be a number, got None", [0.1, None], {}),
        (TypeError, r"similarities\[0\] must be a number, got \[0\.1, 0\.2\]", [[0.1, 0.2]], {}),
        (ValueError, r"similarities must have one dimension, got shape \(1, 2\)", np.array([[0.1, 0.2]]), {}),
        (ValueError, r"similarities must have one dimension, got shape \(\)", np.float64(0.5), {}),
        (TypeError, r"similarities must be real numbers, got dtype <U3", np.array(["0.1", "0.9"]), {}),
        (TypeError, r"similarities must be real numbers, got dtype \|S3", np.array([b"0.1", b"0.9"]), {}),
        (TypeError, r"similarities must be real numbers, got dtype bool", np.array([False, True]), {}),
        (TypeError, r"similarities must be real numbers, got dtype complex128", np.array([0.1, 0.9 + 1j]), {}),
        (TypeError, r"similarities must be .*, got dtype datetime64\[s\]", np.array([0, 1], "datetime64[s]"), {}),
        (TypeError, r"similarities must be real numbers, got dtype torch\.bool", torch.tensor([False, True]), {}),
        (TypeError, r"similarities must be .*, got dtype torch\.complex64", torch.tensor([0.1, 0.9 + 1j]), {}),
        (
            TypeError,
            r"similarities\[1\] must be .*, got a masked value",
            np.ma.masked_array([0.1, 0.2, 0.9], [False, True, False]),
            {},
        ),
        (TypeError, r"similarities\[1\] must be a number, got None", np.array([0.1, None]), {}),
        (TypeError, r"similarities\[0\] must be a number, got '0\.1'", pyarrow.array(["0.1", "0.9"]), {}),
        (TypeError, r"similarities\[1\] must be a number, got True", [0.1, True], {}),
        (TypeError, r"similarities\[0\] must be a number, got (np\.False_|False)", [np.False_, 0.9], {}),
        (TypeError, r"similarities\[1\] must be a number, got True", [0.1, torch.tensor(True)], {}),
        (TypeError, r"similarities\[1\] must be a number, got .*1j.*", [0.1, np.complex128(1j)], {}),
        (TypeError, r"similarities\[2\] must be a number, got masked", [0.1, 0.9, np.ma.masked], {}),
        (TypeError, r"similarities must be a sequence of numbers, got b'\\x00\\x01'", b"\0\1", {}),
        (TypeError, r"similarities must be a sequence of numbers, got {0\.1: 1, 0\.9: 2}", {0.1: 1, 0.9: 2}, {}),
        (TypeError, r"similarities must be a sequence of numbers, got 0\.5", 0.5, {}),
        (ValueError, r"similarities\[1\] must be a number of at most 1\.79769e\+308", [0.1, 10**400], {}),
        (ValueError, r"target_alike must be a number of at most 1\.79769e\+308", None, {"target_alike": 10**400}),
        (
            ValueError,
            r"target_unlike must be a number of at most 1\.79769e\+308",
            None,
            {"target_unlike": Fraction(10**400)},
        ),
        (TypeError, r"quantiles must be two numbers, got \(0, 10+\)", None, {"quantiles": (0, 10**400)}),
        (
            ValueError,
            r"similarities must differ by at least 1e-06 between the quantiles 0\.05 and 0\.95, got 0\.5 and 0\.5",
            [0.5] * 9,
            {},
        ),
        (
            ValueError,
            "similarities must differ by at least 1e-06 between the quantiles 0 and 1, got 0.5 and 0.5000009: this prior "
            "does not tell pairs apart. Use another prior or a fixed delta",
            [0.5, 0.5000009],
            {"quantiles": (0, 1)},
        ),
    ],
)
def test_bad_fit(backend, error, message, similarities, options):
    similarities = [0.1, 0.9] if similarities is None else similarities
    with pytest.raises(error, match=message):
        Constraint.fit(similarities, **{"target_alike": 1, "target_unlike": 3} | options)


def test_a_generator_with_a_hole(backend):
    """The elements before the missing value cannot be read a second time."""
    with pytest.raises(TypeError, match=r"similarities\[1\] must be a number, got None"):
        Constraint.fit((x for x in (0.1, None, 0.9)), target_alike=1, target_unlike=3)


@pytest.mark.filterwarnings("error")
def test_arrays_that_are_read_only(backend, request):
    request.addfinalizer(partial(torch.set_warn_always, torch.is_warn_always_enabled()))
    torch.set_warn_always(True)  # otherwise torch warns only once per process
    s = np.linspace(0, 1, 9)
    want = Constraint.fit(s, target_alike=1, target_unlike=3)
    s.setflags(write=False)
    assert Constraint.fit(s, target_alike=1, target_unlike=3) == want
    np.testing.assert_array_equal(want.delta(s), want.delta(s.copy()))
    np.testing.assert_array_equal(want.delta(s[::-2]), want.delta(s.copy())[::-2])


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "delta must be greater than 0 on all of \[0, 1\], got -10.01 at similarity 1", (10, 0.001, -20)),
        (ValueError, "delta must be greater than 0 on all of \[0, 1\], got -1 at similarity 0", (-2, 1, 1)),
        (ValueError, "delta must be greater than 0 on all of \[0, 1\], got nan at similarity 0", (0, 0, 5)),
        (ValueError, "beta1 must be a number, got nan", (math.nan, 1, 1)),
        (ValueError, "beta1 must be finite, got inf", (math.inf, 1, 1)),
        (ValueError, "beta2 must be at least 0, got -1", (1, -1, 5)),
        (TypeError, "beta3 must be a number, got '5'", (1, 1, "5")),
        (TypeError, "beta1 must be a number, got None", (None, 1, 1)),
        (ValueError, "floor must be greater than 0, got 0", (1, 1, 5, 0)),
        (ValueError, "cap must be greater than 0, got -1", (1, 1, 5, None, -1)),
        (ValueError, "floor must be at most cap, which is 5, got 6", (1, 1, 5, 6, 5)),
    ],
)
def test_bad_constraint(error, message, arguments):
    with pytest.raises(error, match=message):
        Constraint(*arguments)


@pytest.mark.parametrize("name", ["beta1", "beta2", "beta3", "floor", "cap", "low", "high"])
@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_that_no_float64_has(name, sign):
    random = {"low": 4, "high": 5} if name in ("low", "high") else {}
    # With so many digits that Python refuses to print the number.
    for huge in (sign * 10**400, sign * 10**5000):
        with pytest.raises(ValueError, match=rf"^{name} must be a number of at most 1\.79769e\+308"):
            Constraint(**{"beta1": 1, "beta2": 1, "beta3": 5} | random | {name: huge})


def test_more_numbers_that_no_float64_has(backend):
    for name, call in {
        "delta": Constraint.fixed,
        "low": lambda x: Constraint.random(x, x),
        "win_probability": pcrm.margin_of,
        "s": Constraint(10, 0.001, -5).delta,
    }.items():
        with pytest.raises(ValueError, match=f"^{name} must be a number of at most"):
            call(10**400)


def test_bad_random():
    """Every field is checked, whatever kind of constraint it is."""
    for more in ({}, {"low": 4, "high": 5}):
        for seed in ("x", None, 0.5, True):
            with pytest.raises(TypeError, match=f"seed must be an integer, got {seed!r}"):
                Constraint(1, 0.1, 5, seed=seed, **more)
        for seed in (-1, 2**64):
            with pytest.raises(ValueError, match=rf"seed must be in \[0, 2\*\*64\), got {seed}"):
                Constraint(1, 0.1, 5, seed=seed, **more)
        for name in ("beta1", "beta2", "beta3", "floor", "cap"):
            with pytest.raises(ValueError, match=f"{name} must be a number, got nan"):
                Constraint(**{"beta1": 1, "beta2": 0.1, "beta3": 5} | more | {name: math.nan})
    seed = Constraint.random(4, 5, np.uint64(2**64 - 1)).seed
    assert type(seed) is int and seed == 2**64 - 1


@pytest.mark.parametrize("delta", [0, -1, math.nan])
def test_bad_fixed(delta):
    with pytest.raises(ValueError, match=f"delta must be greater than 0, got {delta}"):
        Constraint.fixed(delta)


def test_bad_similarities(backend):
    c = Constraint(10, 0.001, -5)
    for bad in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match=rf"(?i)similarities\[0\] must be in \[0, 1\], got {bad}"):
            c.delta(bad)
        with pytest.raises(ValueError, match=rf"(?i)similarities\[1\] must be in \[0, 1\], got {bad:g}"):
            c.delta(torch.tensor([0.5, bad], dtype=torch.float64))
    with pytest.raises(TypeError, match=r"similarities must be floating point, got dtype torch\.int64"):
        c.delta(torch.tensor([1]))
    with pytest.raises(TypeError, match="s must be a float, a NumPy array or a tensor, got list"):
        c.delta([0.5])


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    "constraint",
    [Constraint(10, 0.001, -5), Constraint(10, 0.001, -5, 2, 12), Constraint.fixed(4.5), Constraint.random(4, 5)],
)
def test_delta_under_transforms(backend, constraint):
    loss = pcrm.PCRMLoss(constraint)
    one, other = torch.rand(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b, p = one
    a = a.clone().requires_grad_()
    want = torch.autograd.grad(loss(a, b, p), a)[0]
    a = a.detach()
    # Rounding in Go and torch: some tens of 1.1e-16 each, amplified where terms cancel.
    close = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(torch.func.grad(lambda a: loss(a, b, p))(a), want, **close)
    torch.testing.assert_close(torch.func.grad(lambda p: loss(a, b, p))(p), torch.zeros(4).double(), **close)
    value, tangent = torch.func.jvp(lambda a: loss(a, b, p), (a,), (b,))
    torch.testing.assert_close(value, loss(a, b, p), **close)
    torch.testing.assert_close(tangent, want @ b, **close)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(a, b)
        tangent = torch.autograd.forward_ad.unpack_dual(loss(dual, b, p)).tangent
    torch.testing.assert_close(tangent, want @ b, **close)
    priors = torch.stack([p, other[2]])
    each = torch.stack([loss(a, b, x) for x in priors])
    torch.testing.assert_close(torch.vmap(loss, (None, None, 0))(a, b, priors), each, **close)
    torch.testing.assert_close(torch.vmap(constraint.delta)(priors), constraint.delta(priors), **close)
    # The traced function computes from its input and does not return the values it was traced with.
    traced = torch.jit.trace(loss, (a, b, p))
    torch.testing.assert_close(traced(*other), loss(*other), **close)
    traced = torch.jit.trace(constraint.delta, (p,))
    torch.testing.assert_close(traced(other[2]), constraint.delta(other[2]), **close)


def test_default_device(backend):
    """Results are in CPU memory, even if torch's default device is another one."""

    def everything():
        c = Constraint.fit([0.1, 0.5, 0.9], target_alike=1, target_unlike=pcrm.margin_of(0.95))
        curve = Constraint(3.0, 0.1, 2.0)
        return c, curve, c.delta(0.5), Constraint.fixed(4.5).delta(1.0), curve.delta(np.array([0.5])).tolist()

    want = everything()
    with torch.device("meta"):
        assert everything() == want


@pytest.mark.parametrize("huge", [Decimal("1e400"), Decimal("-1e400"), np.longdouble("1e400")])
def test_a_number_beyond_float64_is_not_infinity(huge):
    for name, call in {"delta": Constraint.fixed, "cap": lambda x: Constraint(1, 1, 1, cap=x)}.items():
        with pytest.raises(ValueError, match=f"^{name} must be a number of at most"):
            call(huge)
    assert Constraint.fixed(Decimal("Infinity")) == Constraint.fixed(np.longdouble("inf")) == Constraint.fixed(math.inf)
    with pytest.raises(ValueError, match=r"^delta must be a number, got Decimal\('sNaN'\)"):
        Constraint.fixed(Decimal("sNaN"))


def test_numbers_of_numpy_become_floats():
    c = Constraint(np.float64(1), np.float32(1), 1, cap=np.float64(3))
    assert repr(c) == "Constraint(beta1=1.0, beta2=1.0, beta3=1.0, cap=3.0)"
    assert {type(x) for x in (c.beta1, c.beta2, c.beta3, c.cap)} == {float}


def test_delta_of_arrays_that_torch_does_not_read(backend):
    c = Constraint(10, 0.001, -5)
    assert c.delta(np.array([0.25, 0.5], ">f8")).tolist() == c.delta(np.array([0.25, 0.5])).tolist()
    with pytest.raises(TypeError, match=r"similarities\[1\] must be a number, got a masked value"):
        c.delta(np.ma.array([0.25, 0.5], mask=[False, True]))
    for bad in (np.array([1]), np.array([0.5], np.longdouble), np.array(["0.5"]), np.array([0.5], object)):
        with pytest.raises(TypeError, match=r"similarities must be floating point of at most 64 bits, got dtype"):
            c.delta(bad)
    with pytest.raises(ValueError, match=r"similarities\[4\] must be in \[0, 1\], got 1\.5"):
        c.delta(np.array([[0.5, 0.5, 0.5], [0.5, 1.5, 2.5]]))


@pytest.mark.slow
def test_floats_and_arrays_need_no_torch(tmp_path):
    """Replace the package pcrm by an empty one, so that only the imports of `pcrm.settings` count."""
    (tmp_path / "pcrm.toml").write_text("[constraint]\nprior = 'fixed'\ndelta = 4.5\n")
    code = f"""
import sys, types
sys.modules["pcrm"] = package = types.ModuleType("pcrm")
package.__path__ = {[str(ROOT / "pyproject" / "pcrm")]!r}
import numpy as np
from pcrm.settings import Constraint, margin_of
from pcrm.settings.similarities import vector
assert Constraint.from_toml({str(tmp_path / "pcrm.toml")!r}).delta(0.5) == 4.5
assert Constraint.preset("alpaca/length_ratio").delta(np.array([1.0])).tolist() == [10 / 1.001 - 5]
assert list(vector([0, 0.5])) == list(vector(np.array([0, 0.5]))) == [0, 0.5]
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
