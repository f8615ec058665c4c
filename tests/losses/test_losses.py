"""The losses as modules: what their constructors refuse. What they compute is in test_functional and test_forms."""

import math
import re

import numpy as np
import pytest
import torch

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
    with pytest.raises(TypeError, match=r"prior\[1\] is masked, must be a number"):
        loss(scores, scores, np.ma.array([0.25, 0.5], mask=[False, True]))


@pytest.mark.slow
def test_compiled_with_another_fixed_constraint():
    """A graph of the old delta must not serve the new one."""
    torch.compiler.reset()
    loss = pcrm.PCRMLoss(pcrm.Constraint.fixed(4.5))
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    scores = torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0])
    for delta in (4.5, 2.0, math.inf):
        loss.constraint = pcrm.Constraint.fixed(delta)
        assert compiled(*scores) == pcrm.functional.pcrm_loss(*scores, delta)
