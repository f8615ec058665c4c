"""Ensemble scores against NumPy and by hand, and the errors."""

import math

import numpy as np
import pytest
import torch
from pcrm.methods.ensembles import ensemble

SCORES = np.random.default_rng(0).normal(size=(4, 3, 5))


def test_against_numpy():
    for scores in (SCORES, torch.from_numpy(SCORES)):
        for got, want in (
            (ensemble(scores), SCORES.mean(0)),
            (ensemble(scores, "min"), SCORES.min(0)),
            (ensemble(scores, "variance", coefficient=0.7), SCORES.mean(0) - 0.7 * SCORES.var(0)),
        ):
            assert type(got) is type(scores) and got.dtype == scores.dtype and got.shape == (3, 5)
            np.testing.assert_allclose(np.asarray(got), want, rtol=1e-14)


def test_by_hand():
    """The variance divides by the number of models: 2 and 4 have variance 1."""
    scores = np.array([[2.0, 1.0], [4.0, 1.0]])
    assert ensemble(scores).tolist() == [3, 1]
    assert ensemble(scores, "min").tolist() == [2, 1]
    assert ensemble(scores, "variance", coefficient=0.5).tolist() == [2.5, 1]
    for method, coefficient in (("mean", None), ("min", None), ("variance", 3.0)):
        assert ensemble(scores[:1], method, coefficient=coefficient).tolist() == [2, 1], "one model is itself"


def test_dtypes_and_layouts():
    for dtype in (torch.bfloat16, torch.float16):
        scores = torch.from_numpy(SCORES).to(dtype)
        got = ensemble(scores, "variance", coefficient=0.7)
        assert got.dtype == torch.float32
        assert torch.equal(got, ensemble(scores.float(), "variance", coefficient=0.7))
    single = SCORES.astype(np.float32)
    assert ensemble(single).dtype == np.float32
    frozen = single[::-1, :, ::2]
    frozen.flags.writeable = False
    np.testing.assert_allclose(ensemble(frozen, "min"), frozen.min(0))
    assert ensemble(SCORES[:, 0, 0]).shape == ()


def test_gradient():
    scores = torch.from_numpy(SCORES).requires_grad_()
    for method, coefficient in (("mean", None), ("min", None), ("variance", 0.7)):
        assert torch.autograd.gradcheck(lambda s, m=method, c=coefficient: ensemble(s, m, coefficient=c), scores)


def test_nan_propagates():
    scores = SCORES.copy()
    scores[1, 0, 0] = math.nan
    for method, coefficient in (("mean", None), ("min", None), ("variance", 0.7)):
        got = ensemble(scores, method, coefficient=coefficient)
        assert math.isnan(got[0, 0]) and np.isnan(got).sum() == 1


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "scores must be a torch.Tensor or a numpy.ndarray, got list", lambda: ensemble([[1.0]])),
        (TypeError, "scores must be floating point, got dtype torch.int64", lambda: ensemble(torch.ones(2, 2).long())),
        (
            TypeError,
            "scores must be floating point, got dtype torch.int64",
            lambda: ensemble(np.ones((2, 2), np.int64)),
        ),
        (
            ValueError,
            r"scores must have shape \(models, \.\.\.\) with at least one model, got \(\)",
            lambda: ensemble(torch.tensor(1.0)),
        ),
        (
            ValueError,
            r"scores must have shape .* with at least one model, got \(0, 3\)",
            lambda: ensemble(np.ones((0, 3))),
        ),
        (ValueError, "method must be one of mean, min, variance, got 'median'", lambda: ensemble(SCORES, "median")),
        (ValueError, "coefficient is missing: method 'variance' requires one", lambda: ensemble(SCORES, "variance")),
        (
            ValueError,
            "coefficient must be None for method 'min', got 0.5",
            lambda: ensemble(SCORES, "min", coefficient=0.5),
        ),
        (
            ValueError,
            "coefficient must be .*, got -1",
            lambda: ensemble(SCORES, "variance", coefficient=-1),
        ),
        (
            ValueError,
            "coefficient must be .*, got nan",
            lambda: ensemble(SCORES, "variance", coefficient=math.nan),
        ),
        (
            ValueError,
            r"coefficient must be a number of at most 1\.79769e\+308",
            lambda: ensemble(SCORES, "variance", coefficient=10**400),
        ),
        (TypeError, "coefficient must be a number, got '1'", lambda: ensemble(SCORES, "variance", coefficient="1")),
    ],
)
def test_bad_input(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_arrays_that_torch_does_not_read():
    assert ensemble(np.array([[1, 2], [3, 4]], ">f4")).tolist() == [2, 3]
    with pytest.raises(TypeError, match=r"scores\[1\] must be a number, got a masked value"):
        ensemble(np.ma.array([[1.0, 2.0], [3.0, 4.0]], mask=[[False, True], [False, False]]))
