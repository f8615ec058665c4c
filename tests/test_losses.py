"""The losses as modules: what their constructors refuse. What they compute is in test_functional and test_forms."""

import math
import re

import pytest

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
