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
            "center_rewards_coefficient is -1, must be at least",
        ),
        (
            "PCRMLoss",
            {"center_rewards_coefficient": math.nan},
            ValueError,
            "center_rewards_coefficient is nan, must be",
        ),
        (
            "PCRMLoss",
            {"center_rewards_coefficient": math.inf},
            ValueError,
            "center_rewards_coefficient is inf, must be",
        ),
        (
            "PCRMLoss",
            {"center_rewards_coefficient": "x"},
            TypeError,
            "center_rewards_coefficient is 'x', must be a number",
        ),
        ("PCRMLoss", {"center_rewards_coefficient": None}, TypeError, "center_rewards_coefficient is None, must be"),
        ("PCRMLoss", {"label_smoothing": 0.5}, ValueError, "label_smoothing is 0.5, must be in [0, 0.5)"),
        ("PCRMDPOLoss", {"beta": -1}, ValueError, "beta is -1, must be greater than 0 and finite"),
        ("PCRMDPOLoss", {"beta": 0.0}, ValueError, "beta is 0, must be greater than 0 and finite"),
        ("PCRMDPOLoss", {"beta": math.inf}, ValueError, "beta is inf, must be greater than 0 and finite"),
        ("PCRMDPOLoss", {"beta": math.nan}, ValueError, "beta is nan, must be greater than 0 and finite"),
        ("PCRMDPOLoss", {"beta": "x"}, TypeError, "beta is 'x', must be a number"),
        ("PCRMDPOLoss", {"reduction": "max"}, ValueError, "reduction is 'max', must be one of mean, sum, none"),
    ],
)
def test_bad_settings_are_refused_at_construction(loss, settings, error, message):
    with pytest.raises(error, match=re.escape(message)):
        getattr(pcrm, loss)(CONSTRAINT, **settings)
