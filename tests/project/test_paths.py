"""What is given in place of a path: the argument is named in the error."""

import re

import pytest
from pcrm.data.sources import read_rows
from pcrm.evaluate.optimization import rl
from pcrm.evaluate.optimization.sampling import Policy
from pcrm.evaluate.reward_model import RewardModel
from pcrm.priors.encoders import Encoder

import pcrm


@pytest.mark.parametrize("given", [3, None, ["a"], b"a"])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("model", RewardModel),
        ("model", Policy),
        ("policy", lambda given: rl.train(given, ["a"], len, len, "out")),
        ("path", pcrm.settings.load_config),
        ("path", pcrm.Constraint.from_toml),
        ("name", lambda given: list(read_rows(given))),
        ("model", Encoder),
    ],
)
def test_not_a_path(name, call, given):
    with pytest.raises(TypeError, match=re.escape(f"{name} must be a str or a path, got {given!r}")):
        call(given)
