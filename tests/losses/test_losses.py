"""The losses as modules: errors of their constructors. test_functional and test_operators test the results."""

import math
import re

import numpy as np
import pytest
import torch
from pcrm.settings import Targets

import pcrm

CONSTRAINT = pcrm.Constraint.fixed(4.5)


@pytest.mark.parametrize(
    ("loss", "settings", "error", "message"),
    [
        (
            "PCRMLoss",
            {"center_rewards_coefficient": -1},
            ValueError,
            "center_rewards_coefficient must be finite and at least 0, got -1",
        ),
        (
            "PCRMLoss",
            {"center_rewards_coefficient": math.nan},
            ValueError,
            "center_rewards_coefficient must be finite and at least 0, got nan",
        ),
        (
            "PCRMLoss",
            {"center_rewards_coefficient": math.inf},
            ValueError,
            "center_rewards_coefficient must be finite and at least 0, got inf",
        ),
        (
            "PCRMLoss",
            {"center_rewards_coefficient": "x"},
            TypeError,
            "center_rewards_coefficient must be a number, got 'x'",
        ),
        (
            "PCRMLoss",
            {"center_rewards_coefficient": None},
            TypeError,
            "center_rewards_coefficient must be a number, got None",
        ),
        ("PCRMLoss", {"label_smoothing": 0.5}, ValueError, "label_smoothing must be in [0, 0.5), got 0.5"),
        ("PCRMDPOLoss", {"beta": -1}, ValueError, "beta must be finite and greater than 0, got -1"),
        ("PCRMDPOLoss", {"beta": 0.0}, ValueError, "beta must be finite and greater than 0, got 0"),
        ("PCRMDPOLoss", {"beta": math.inf}, ValueError, "beta must be finite and greater than 0, got inf"),
        ("PCRMDPOLoss", {"beta": math.nan}, ValueError, "beta must be finite and greater than 0, got nan"),
        ("PCRMDPOLoss", {"beta": "x"}, TypeError, "beta must be a number, got 'x'"),
        ("PCRMDPOLoss", {"reduction": "max"}, ValueError, "reduction must be one of mean, sum, none, got 'max'"),
    ],
)
def test_bad_settings_are_refused_at_construction(loss, settings, error, message):
    with pytest.raises(error, match=re.escape(message)):
        getattr(pcrm, loss)(CONSTRAINT, **settings)


def test_priors_of_numpy(backend):
    loss, scores = pcrm.PCRMLoss(pcrm.Constraint(1, 1, 1)), torch.zeros(2)
    want = loss(scores, scores, torch.tensor([0.25, 0.5], dtype=torch.float64))
    assert torch.equal(loss(scores, scores, np.array([0.25, 0.5], ">f8")), want)
    with pytest.raises(TypeError, match=r"prior\[1\] must be a number, got a masked value"):
        loss(scores, scores, np.ma.array([0.25, 0.5], mask=[False, True]))


@pytest.mark.parametrize(("module", "option"), [(pcrm.PCRMLoss, "label_smoothing"), (pcrm.PCRMDPOLoss, "beta")])
def test_a_loss_of_targets(module, option):
    prior = np.linspace(0.1, 0.9, 9)
    loss_fn = module.fitted(prior, target_alike=1, target_unlike=3, **{option: 0.2})
    assert type(loss_fn) is module and loss_fn.settings[option] == 0.2
    assert loss_fn.constraint == pcrm.Constraint.fit(prior, target_alike=1, target_unlike=3)
    with pytest.raises(
        TypeError, match=r"constraint must be a pcrm\.Constraint, got Targets: fit them to the priors of your data"
    ):
        module(Targets(1, 3))


@pytest.mark.slow
@pytest.mark.parametrize("module", [pcrm.PCRMLoss, pcrm.PCRMDPOLoss])
def test_compiled_modules_take_another_fixed_constraint(module):
    """They also switch from a fixed constraint to a curve and back."""
    torch.compiler.reset()
    fixed = pcrm.Constraint.fixed
    loss_fn = module(fixed(2.0))
    compiled = torch.compile(loss_fn, backend="aot_eager", fullgraph=True)
    scores = torch.randn(2 if module is pcrm.PCRMLoss else 4, 4, generator=torch.Generator().manual_seed(0))
    prior = torch.tensor([0.1, 0.4, 0.7, 1.0])
    clipped = (pcrm.Constraint(0, 1, 3, floor=4.0), pcrm.Constraint(0, 1, 3, cap=1.5))
    for constraint in (fixed(2.0), fixed(3.0), fixed(math.inf), *clipped, pcrm.Constraint(1, 0.1, 0.5), fixed(5.0)):
        loss_fn.constraint = constraint
        results = []
        for of in (compiled, loss_fn):
            leaves = scores.clone().requires_grad_()
            result = of(*leaves, prior)
            loss = result if module is pcrm.PCRMLoss else result[0]
            loss.backward()
            results.append((loss.detach(), leaves.grad))
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want)
        if constraint.is_fixed:
            # Every pair of a fixed constraint has the delta of every similarity.
            assert pcrm.losses.delta_of(constraint, None)[0] == constraint.delta(0.3)
