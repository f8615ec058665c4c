"""`Constraint`: the curve, its types, its presets, its fit, what it refuses."""

import math

import numpy as np
import pytest
import torch
from pcrm.constraint import presets

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


def test_presets(backend):
    assert Constraint.preset("alpaca/length_ratio") == Constraint(10, 0.001, -5)
    assert Constraint.preset("tldr/fixed") == Constraint.fixed(5.0)
    assert {f"{d}/{p}" for d in ("alpaca", "tldr") for p in ("length_ratio", "cosine", "fixed")} <= presets().keys()
    for name in presets():
        assert Constraint.preset(name).delta(1.0) > 0
    with pytest.raises(ValueError, match="preset is 'alpaca/typo', must be one of alpaca/cosine, "):
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
    assert (c.beta2, c.floor, c.cap) == (0.001, 2, 6)
    other = Constraint.fit(s.tolist(), target_alike=1, target_unlike=3, quantiles=(0.25, 0.75))
    assert math.isclose(other.target(np.quantile(s, 0.25)), 3, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("message", "similarities", "options"),
    [
        ("target_alike is 0", [0.1, 0.9], {"target_alike": 0}),
        (
            "target_unlike is 1, must be finite and greater than target_alike, which is 1",
            [0.1, 0.9],
            {"target_unlike": 1},
        ),
        (r"quantiles are \(0.9, 0.1\)", [0.1, 0.9], {"quantiles": (0.9, 0.1)}),
        ("similarities are empty", [], {}),
        (r"similarities\[1\] is 2, must be in \[0, 1\]", [0.1, 2.0], {}),
        (r"similarities have shape \(1, 2\)", [[0.1, 0.2]], {}),
        ("similarities have the same value, 0.5, at both quantiles 0.05 and 0.95", [0.5] * 9, {}),
    ],
)
def test_bad_fit(backend, message, similarities, options):
    with pytest.raises(ValueError, match=message):
        Constraint.fit(similarities, **{"target_alike": 1, "target_unlike": 3} | options)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "delta is -10.01 at similarity 1, must be greater than 0", (10, 0.001, -20)),
        (ValueError, "delta is -1 at similarity 0, must be greater than 0", (-2, 1, 1)),
        (ValueError, "delta is nan at similarity 0", (0, 0, 5)),
        (ValueError, "beta1 is nan, must be a number", (math.nan, 1, 1)),
        (ValueError, "beta1 is inf, must be finite", (math.inf, 1, 1)),
        (ValueError, "beta2 is -1, must be at least 0", (1, -1, 5)),
        (TypeError, "beta3 is '5', must be a number", (1, 1, "5")),
        (TypeError, "beta1 is None, must be a number", (None, 1, 1)),
        (ValueError, "floor is 0, must be greater than 0", (1, 1, 5, 0)),
        (ValueError, "cap is -1, must be greater than 0", (1, 1, 5, None, -1)),
        (ValueError, "floor is 6, must not be greater than cap, which is 5", (1, 1, 5, 6, 5)),
    ],
)
def test_bad_constraint(error, message, arguments):
    with pytest.raises(error, match=message):
        Constraint(*arguments)


@pytest.mark.parametrize("delta", [0, -1, math.nan])
def test_bad_fixed(delta):
    with pytest.raises(ValueError, match=f"delta is {delta}, must be greater than 0"):
        Constraint.fixed(delta)


def test_bad_similarities(backend):
    c = Constraint(10, 0.001, -5)
    for bad in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match=rf"(?i)similarities\[0\] is {bad}, must be in \[0, 1\]"):
            c.delta(bad)
        with pytest.raises(ValueError, match=rf"(?i)similarities\[1\] is {bad:g}"):
            c.delta(torch.tensor([0.5, bad], dtype=torch.float64))
    with pytest.raises(TypeError, match=r"similarities have dtype torch\.int64, must be floating point"):
        c.delta(torch.tensor([1]))
    with pytest.raises(TypeError, match="s is a list, must be a float, a NumPy array or a tensor"):
        c.delta([0.5])
